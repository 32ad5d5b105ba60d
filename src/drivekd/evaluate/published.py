"""Published tables as rows of data, each with what it may be compared with.

Judged scores depend on the judge: a row of another judge's table is shown with a notice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

OTHER_JUDGE = "other judge: not comparable"
_SAME_JUDGE = "same judge; sheets and questions may be others"
#: names under which a server gives another model tomorrow
_MOVING = re.compile(r"(?:^|[-_/])(?:chat|reasoner|latest)$")


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One row of a published table.

    Attributes:
        table: `main`, `ablation`, `teachers`, `drivebench_clean`, `drivebench_corrupted` or
            `drivebench_no_image`.
        title: of the table.
        model: as published.
        figures: by column, None where nothing was published; scores are 0 … 100.
        benchmark, judge, source: of the table; the source is a paper.
        note: what the table says about its rows.
        notice: what its judge means for a comparison.
    """

    table: str
    title: str
    model: str
    figures: Mapping[str, float | None]
    benchmark: str
    judge: str
    source: str
    note: str
    notice: str


def rows(judge_model: str | None) -> list[PublishedRow]:
    """All published rows, with a notice that fits the judge of your own figures.

    Args:
        judge_model: its name, None where nothing was judged.
    """
    return [
        PublishedRow(
            table=table["name"],
            title=table["title"],
            model=model,
            figures=dict(zip(table["columns"], figures, strict=True)),
            benchmark=table["benchmark"],
            judge=table["judge"],
            source=table["source"],
            note=table["note"],
            notice=notice(judge_model, table["judge"]),
        )
        for table in _tables()
        for model, *figures in table["rows"]
    ]


def notice(judge_model: str | None, published: str) -> str:
    """What to say beside a published figure.

    A name counts as that of the published judge if the two are equal without their owner
    (`deepseek-ai/`), case and punctuation. `deepseek-chat` does not: the model behind it changes
    with time.
    """
    if judge_model is None:
        return f"judged by {published}, yours by nobody: not comparable"
    if _plain(judge_model) == _plain(published):
        return _SAME_JUDGE
    moving = _MOVING.search(judge_model.strip().lower()) is not None
    return OTHER_JUDGE + (f" ({judge_model} names another model over time)" if moving else "")


def table(found: Sequence[PublishedRow]) -> str:
    """Rows as lines for people, each table under its title, judge and notice."""
    lines: list[str] = []
    last = ""
    for row in found:
        if row.table != last:
            last = row.table
            lines += [""] * bool(lines)
            lines.append(f"{row.title} ({row.benchmark}, judge {row.judge}; {row.source})")
            lines.append("; ".join(part for part in (row.notice, row.note) if part))
            lines.append(f"{'':<58}" + "".join(f"{name:>14}" for name in row.figures))
        cells = ("" if value is None else f"{value:g}" for value in row.figures.values())
        lines.append(f"{row.model:<58}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.rsplit("/", 1)[-1].lower())


def _tables() -> list[dict[str, Any]]:
    text = files("drivekd.evaluate").joinpath("published.json").read_text(encoding="utf-8")
    found: list[dict[str, Any]] = json.loads(text)["tables"]
    return found
