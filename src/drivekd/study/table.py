"""What a pre-study found, as tables for the console."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from drivekd.data.sample import CAPABILITIES

Content = Mapping[str, Any]

PANELS = {
    "a": "a similarity",
    "b": "b consistency",
    "c": "c dispersion",
    "d": "d answer margin",
}


def table(content: Content) -> str:
    """Curves layer by layer, the choice per capability with its reason, and what is lacking.

    Args:
        content: what `prestudy.json` holds.
    """
    console = Console(file=io.StringIO(), width=110)
    console.print(_layers(content))
    console.print(_margins(content))
    console.print(_choices(content))
    for panel, said in content["lacks"].items():
        for each in said:
            console.print(f"{PANELS[panel]}: not enough data: {each}", markup=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()


def _layers(content: Content) -> Table:
    """A row per layer; states are shown at the block that they leave.

    att. and hid.: consistency of attention and of hidden states; disp.: their dispersion.
    """
    curves = content["curves"]
    shown = [
        ("in–out", "adjacent", 0),
        ("vision–\ntext", "vision_text", 1),
        ("on\nimages", "share", 0),
    ]
    for kind in ("attention", "hidden"):
        start = f"intra/{kind}/"
        for name in (name for name in curves if name.startswith(start)):
            capability = escape(name.removeprefix(start))
            short = f"{capability[:4]}." if capability in CAPABILITIES else capability
            shown.append((f"{kind[:3]}.\n{short}", name, 0))
    shown += [
        ("disp.\natt.", "dispersion/attention/all", 0),
        ("disp.\nhid.", "dispersion/hidden/all", 0),
    ]
    shown = [each for each in shown if each[1] in curves]
    titles = [title for title, _, _ in shown]
    made = Table("layer", *titles, title=escape(content["teacher"]["source"]), box=None)
    for layer in range(content["layers"]):
        cells = [_cell(curves[name]["mean"], layer + first) for _, name, first in shown]
        made.add_row(str(layer + 1), *cells)
    return made


def _margins(content: Content) -> Table:
    curves = content["curves"]
    made = Table("tenth of the answer", *map(str, range(1, 11)), title="answer margin", box=None)
    for name in ("driving", "general"):
        if f"margin/{name}" in curves:
            mean = curves[f"margin/{name}"]["mean"]
            made.add_row(name, *(_cell(mean, place, 2) for place in range(len(mean))))
    return made


def _cell(values: list[float | None], place: int, digits: int = 3) -> str:
    value = values[place] if place < len(values) else None
    return "–" if value is None else f"{value:.{digits}f}"


def _choices(content: Content) -> Table:
    made = Table("capability", "signal", "teacher layers", "why", title="choice")
    for each in content["advice"]:
        said = [each["reason"], each["paper"], *(f"weak: {doubt}" for doubt in each["weak"])]
        said += [f"{100 * each['sure']:.0f} % of bootstrap draws agree"] * (not each["weak"])
        why = "; ".join(filter(None, said))
        cells = (each["capability"], each["signal"], each["teacher_layers"], why)
        made.add_row(*map(escape, cells))
    return made
