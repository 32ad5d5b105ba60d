"""Tables for the console: what a pre-study, its stability and its probes of teachers found.

Each takes what the study's JSON file holds.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from drivekd.data.sample import CAPABILITIES

Content = Mapping[str, Any]
PANELS = {"a": "similarity", "b": "consistency", "c": "dispersion", "d": "answer margin"}


def prestudy(content: Content) -> str:
    """Show curves layer by layer, the choice per capability with its reason, and what lacks."""
    lacks = [
        f"{panel} {PANELS[panel]}: not enough data: {each}"
        for panel, reasons in content["lacks"].items()
        for each in reasons
    ]
    return _text(_layers(content), _margins(content), _choices(content), *lacks)


def stability(content: Content) -> str:
    """Show the verdicts, and what they rest on in every layer."""
    lines = [f"stability: not enough data: {each}" for each in content["lacks"]]
    if content["verdict"] is not None:
        lines.append(f"attention of this teacher: {content['verdict']}")
    return _text(_verdicts(content), _cosines(content), *lines)


def capacity(content: Content) -> str:
    """Show distances at the paper's layers, and the teacher that the student follows best."""
    table = Table("capability", "teacher", "distance", "after the probe", "closed", box=None)
    for name in CAPABILITIES:
        for teacher, figures in content["candidates"].items():
            if name in figures:
                row = figures[name]
                after, closed = (
                    f"{np.mean(row['left']):.3f}",
                    _with_band(row["closed"], percent=True),
                )
                table.add_row(name, escape(teacher), f"{row['distance']:.3f}", after, closed)
    return _text(table, *(f"{n}: {_followed(a)}" for n, a in content["advice"].items()))


def _text(*parts: Table | str) -> str:
    file = io.StringIO()
    console = Console(file=file, width=110)
    for part in parts:
        text = isinstance(part, str)
        console.print(part, markup=not text, soft_wrap=text)
    return file.getvalue().rstrip()


def _cell(curve: Content | None, place: int, digits: int = 3) -> str:
    values = [] if curve is None else curve["mean"]
    value = values[place] if place < len(values) else None
    return "–" if value is None else f"{value:.{digits}f}"


def _layers(content: Content) -> Table:
    """Make a row per layer; states are shown at the block that they leave.

    att. and hid.: consistency of attention and of hidden states; disp.: their dispersion.
    """
    curves = content["curves"]
    shown = [("in–out", "adjacent", 0), ("vision–\ntext", "vision_text", 1)]
    shown += [("on\nimages", "share", 0)]
    for kind in ("attention", "hidden"):
        start = f"intra/{kind}/"
        for name in (name for name in curves if name.startswith(start)):
            capability = escape(name.removeprefix(start))
            short = f"{capability[:4]}." if capability in CAPABILITIES else capability
            shown.append((f"{kind[:3]}.\n{short}", name, 0))
    shown += [(f"disp.\n{k[:3]}.", f"dispersion/{k}/all", 0) for k in ("attention", "hidden")]
    shown = [column for column in shown if column[1] in curves]
    titles = [title for title, _, _ in shown]
    table = Table("layer", *titles, title=escape(content["teacher"]["source"]), box=None)
    for layer in range(content["layers"]):
        cells = [_cell(curves[name], layer + first) for _, name, first in shown]
        table.add_row(str(layer + 1), *cells)
    return table


def _margins(content: Content) -> Table:
    table = Table("tenth of the answer", *map(str, range(1, 11)), title="answer margin", box=None)
    for name in ("driving", "general"):
        if curve := content["curves"].get(f"margin/{name}"):
            table.add_row(name, *(_cell(curve, i, 2) for i in range(len(curve["mean"]))))
    return table


def _choices(content: Content) -> Table:
    table = Table("capability", "signal", "teacher layers", "why", title="choice")
    for row in content["advice"]:
        why = [row["reason"], row["paper"], *(f"weak: {doubt}" for doubt in row["weak"])]
        why += [f"{100 * row['sure']:.0f} % of bootstrap draws agree"] * (not row["weak"])
        cells = (row["capability"], row["signal"], row["teacher_layers"])
        table.add_row(*map(escape, (*cells, "; ".join(filter(None, why)))))
    return table


def _verdicts(content: Content) -> Table:
    beyond = f"beyond\n{content['drop']:g}"
    heads = ("capability", "layers", "n", "cosine of\nwordings", beyond, "of other\nquestions")
    table = Table(*heads, "spared", "verdict", title="stability over wordings")
    for row in content["verdicts"]:
        cells = (
            row["capability"],
            row["teacher_layers"],
            str(row["n"]),
            _with_band(row["cosine"]),
            _with_band(row["beyond"], percent=True),
            _with_band(row["other"]),
            _with_band(row["spared"], percent=True),
            f"{row['verdict']}: {'; '.join(row['reasons'])}",
        )
        table.add_row(*map(escape, cells))
    return table


def _with_band(figure: Mapping[str, float | None] | None, *, percent: bool = False) -> str:
    if figure is None:
        return "–"
    scale, digits = (100, 0) if percent else (1, 3)
    ends = [value for key in ("mean", "low", "high") if (value := figure[key]) is not None]
    mean, *band = (f"{scale * value:.{digits}f}" for value in ends)
    unit = " %" if percent else ""
    return f"{mean}{unit}\n[{', '.join(band)}]" if band else f"{mean}{unit}"


def _cosines(content: Content) -> Table:
    """Make a row per layer and rows: cosine of wordings, of other questions, what is spared."""
    curves, start = content["curves"], "cosine/question/"
    names = [name.removeprefix(start) for name in curves if name.startswith(start)]
    shown = [(kind, name) for name in names for kind in ("cosine", "other", "spared")]
    heads = [f"{escape(name[:4])}.\n{kind}" for kind, name in shown]
    table = Table("layer", "rows", *heads, box=None)
    for layer in range(content["layers"]):
        for rows in ("question", "all"):
            cells = [_cell(curves.get(f"{kind}/{rows}/{name}"), layer) for kind, name in shown]
            table.add_row(str(layer + 1), rows, *cells)
    return table


def _followed(advice: Content) -> str:
    if advice["next"] is None:
        return f"{advice['teacher']} is the only candidate"
    margin = _with_band(advice["margin"]).replace("\n", " ")
    text = (
        f"the student ends nearest to {advice['teacher']}, by {margin} nearer than to"
        f" {advice['next']}"
    )
    return f"{text}; the evidence is weak" if advice["weak"] else text
