"""The table of scores on the page of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from drivekd.data.sample import CAPABILITIES
from drivekd.report.answer_rows import number
from drivekd.report.results import Row

_SINGLE = ("average", "everything")
_MEASURES = {"accuracy": "percent right", "judged": "judge's points"}


def score_table(scores: Row) -> dict[str, Any]:
    """Make rows of the model, its judge and the controls; a column per capability, average, all.

    What scores.json lacks has no row, column or cell. Its keys are "capabilities" {name: S},
    "average" and "everything" S, "unreadable" {name: count}; the first two also under "judged";
    S = {"n", "accuracy" or "mean", "low", "high"} of 100, with "unscored" {status: count} of
    verdicts; and "controls" [{"measure": accuracy or judged, "group": a column, "controls": {name:
    {"theirs", "mean": the model's advantage, "low", "high"}}}].
    """
    judged = _mapping(scores.get("judged"))
    blocks = [
        ("Right answers", _right(scores), False, _scored(scores)),
        ("Judge's points", _points(judged), False, _scored(judged)),
        *_controls(scores.get("controls")),
    ]
    columns = sorted(dict.fromkeys(name for *_, cells in blocks for name in cells), key=_place)
    scored = _scored(scores)
    names = ("name", "what", "control")
    return {
        "columns": ["all questions" if name == "everything" else name for name in columns],
        "rows": [
            dict(zip(names, head, strict=True)) | {"cells": [cells.get(name) for name in columns]}
            for *head, cells in blocks
            if cells or (head[0] == "Judge's points" and judged)
        ],
        "counts": [scored[name]["n"] if name in scored else None for name in columns],
    }


def _mapping(value: Any) -> Row:
    return value if isinstance(value, Mapping) else {}


def _place(name: str) -> int:
    order = (*CAPABILITIES, "", *_SINGLE)
    return order.index(name if name in order else "")


def _scored(block: Row) -> dict[str, dict[str, Any]]:
    """Make the cells of a model or its judge, by column."""
    named = {**_mapping(block.get("capabilities")), **{n: block.get(n) for n in _SINGLE}}
    cells = {}
    for name, score in ((name, _mapping(block)) for name, block in named.items()):
        value, n = number(score.get("accuracy", score.get("mean"))), number(score.get("n"))
        if value is not None:
            cells[name] = {"value": value, **_ends(score), "n": None if n is None else int(n)}
    return cells


def _ends(score: Row) -> dict[str, float | None]:
    return {"low": number(score.get("low")), "high": number(score.get("high"))}


def _right(scores: Row) -> str:
    lost = _sum([_mapping(scores.get("unreadable"))])
    return f"percent; {lost} replies could not be read" if lost else "percent"


def _points(judged: Row) -> str:
    groups = _mapping(judged.get("capabilities")).values()
    unscored = [_mapping(_mapping(group).get("unscored")) for group in groups]
    without = _mapping(_mapping(judged.get("without_score")).get("capabilities")).values()
    lost = _sum([*unscored, *(_mapping(counts) for counts in without)])
    return f"mean, out of 100; {lost} verdicts without a score" if lost else "mean, out of 100"


def _sum(counts: Iterable[Row]) -> int:
    return sum(int(number(n) or 0) for group in counts for n in group.values())


def _controls(rows: Any) -> list[tuple[str, str, bool, dict[str, dict[str, Any]]]]:
    """Make a row per control and measure; its cells say how much more the model has."""
    by_control: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows if isinstance(rows, list) else []:
        measure, group = str(_mapping(row).get("measure")), str(_mapping(row).get("group"))
        for name, gap in _mapping(_mapping(row).get("controls")).items():
            if (value := number(_mapping(gap).get("theirs"))) is not None:
                cell = {"value": value, "low": None, "high": None, "more": _more(gap)}
                by_control.setdefault((str(name), measure), {})[group] = cell
    return [
        (name, f"{_MEASURES.get(measure, measure)}, and what the model has more", True, cells)
        for (name, measure), cells in by_control.items()
    ]


def _more(gap: Row) -> str:
    mean, low, high = (number(gap.get(name)) for name in ("mean", "low", "high"))
    if mean is None:
        return ""
    interval = f" ({low:+.1f} to {high:+.1f})" if low is not None and high is not None else ""
    return f"{mean:+.1f}{interval}".replace("-", "−")
