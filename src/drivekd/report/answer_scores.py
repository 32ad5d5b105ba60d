"""The table of scores on the page of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drivekd.data.sample import CAPABILITIES
from drivekd.report.answer_rows import number
from drivekd.report.results import Row

_SINGLE = ("average", "everything")


def score_table(scores: Row) -> dict[str, Any]:
    """Rows of the model, its judge and the controls; a column per capability, average, all.

    Args:
        scores: {"capabilities": {name: S}, "average": S, "everything": S}, each optional; the same
            under "judged" and by name under "controls"; S = {"n", "accuracy" or "mean", "low",
            "high"} of 100, low and high may be null, "unscored": verdicts by status.
    """
    controls = _mapping(scores.get("controls"))
    judged = _mapping(scores.get("judged"))
    blocks = [
        ("Right answers", "percent", False, scores),
        ("Judge's points", "mean, out of 100" + _unscored(judged), False, judged),
        *((str(name), "percent right", True, _mapping(controls[name])) for name in controls),
    ]
    names = dict.fromkeys(name for *_, block in blocks for name in _named(block))
    columns = sorted(names, key=_place)
    rows = [
        {"name": name, "what": what, "control": control, "cells": cells}
        for name, what, control, block in blocks
        if any(cells := [_cell(block, column) for column in columns])
    ]
    return {
        "columns": ["all questions" if name == "everything" else name for name in columns],
        "rows": rows,
        "counts": [_number_of(scores, name) for name in columns],
    }


def _unscored(judged: Row) -> str:
    """In words how many verdicts entered no mean."""
    groups = _mapping(judged.get("capabilities")).values()
    counts = [n for group in groups for n in _mapping(_mapping(group).get("unscored")).values()]
    found = sum(int(number(n) or 0) for n in counts)
    return f"; {found} verdict{'s' * (found != 1)} without a score" if found else ""


def _mapping(value: Any) -> Row:
    return value if isinstance(value, Mapping) else {}


def _named(block: Row) -> list[str]:
    return [*_mapping(block.get("capabilities")), *(name for name in _SINGLE if name in block)]


def _place(name: str) -> int:
    order = (*CAPABILITIES, "", *_SINGLE)
    return order.index(name if name in order else "")


def _scored(block: Row, column: str) -> Row:
    place = block if column in _SINGLE else _mapping(block.get("capabilities"))
    return _mapping(place.get(column))


def _cell(block: Row, column: str) -> dict[str, float | None] | None:
    scored = _scored(block, column)
    value = number(scored.get("accuracy", scored.get("mean")))
    if value is None:
        return None
    return {"value": value, "low": number(scored.get("low")), "high": number(scored.get("high"))}


def _number_of(block: Row, column: str) -> int | None:
    n = number(_scored(block, column).get("n"))
    return None if n is None else int(n)
