"""The pre-study's picture: four panels as in the paper, whose published curves are dashed."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from drivekd.files.writing import atomic_file

Content = Mapping[str, Any]

#: Okabe and Ito's colours, safe for colour-blind readers
BLUE, ORANGE, GREEN, PINK, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#6b6b6b"
_COLOURS = {"perception": BLUE, "reasoning": ORANGE, "planning": GREEN}
TITLES = {
    "a": "similarity of states",
    "b": "consistency within a capability",
    "c": "dispersion over paraphrases",
    "d": "margin of answer tokens",
}
#: of every picture of a study
SETTINGS: Any = {
    "svg.hashsalt": "drivekd",  # else ids differ from run to run
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.framealpha": 0.75,
    "legend.edgecolor": "none",
    "legend.fontsize": 7.5,
}


@cache
def published() -> Content:
    """Read the paper's curves of InternVL3-8B, taken off its figure, with their source."""
    path = resources.files("drivekd") / "report" / "published_prestudy.json"
    return dict(json.loads(path.read_text(encoding="utf-8")))


def draw(content: Content, folder: Path) -> tuple[Path, Path]:
    """Draw `prestudy.json` as `prestudy.png` and `prestudy.svg` into the folder of the study.

    Bands are 95 % by resampled scenes. Depth is relative, 0 the first layer and 1 the last, so that
    models of different depth share an axis.
    """
    return write_both(_figure(content), folder / "prestudy")


def write_both(figure: Figure, path: Path) -> tuple[Path, Path]:
    """Write a figure as `path.png` and `path.svg`."""
    places = path.with_suffix(".png"), path.with_suffix(".svg")
    for place in places:
        with atomic_file(place) as draft:
            draft.write_bytes(_encoded(figure, place.suffix[1:]))
    return places


def as_address(content: Content) -> str:
    """Encode the picture as a data URI: SVG in base64."""
    svg = base64.b64encode(_encoded(_figure(content), "svg"))
    return "data:image/svg+xml;base64," + svg.decode()


def _encoded(figure: Figure, format: str) -> bytes:
    buffer = io.BytesIO()
    with mpl.rc_context(SETTINGS):
        metadata = {"Date": None} if format == "svg" else None
        figure.savefig(buffer, format=format, dpi=110, metadata=metadata)
    return buffer.getvalue()


def _figure(content: Content) -> Figure:
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(10.4, 7.6), layout="constrained")
        panels = (_similarity, _consistency, _dispersion, _margin)
        for axes, letter, draw_panel in zip(
            figure.subplots(2, 2).flat, "abcd", panels, strict=True
        ):
            draw_panel(axes, content["curves"])
            _finish(axes, letter, content["lacks"].get(letter, ()))
        figure.suptitle(_title(content), fontsize=9.5)
    return figure


def _title(content: Content) -> str:
    data, paper = content["data"], published()
    return (
        f"{content['teacher']['source']}, {content['layers']} layers; {data['samples']} questions "
        f"of {data['scenes']} scenes\nsolid: measured, 95 % bands; dashed: {paper['model']} as "
        "published (arXiv 2601.21288)"
    )


def _finish(axes: Any, letter: str, lacks: Sequence[str]) -> None:
    axes.set_title(f"({letter}) {TITLES[letter]}", loc="left", fontsize=10)
    axes.set_xlabel("tenth of the answer" if letter == "d" else "relative depth")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", ncols=2 if letter == "b" else 1)
    if lacks:
        text = "\n".join(["not enough data:", *lacks])
        place = {"transform": axes.transAxes, "ha": "center", "va": "center"}
        box = {"facecolor": "white", "edgecolor": "#d9b8a6", "alpha": 0.9}
        axes.text(0.5, 0.5, text, color="#7a2f00", bbox=box, **place)


def _similarity(axes: Any, curves: Content) -> None:
    paper = published()
    for name, label, colour in (
        ("adjacent", "state and the next one", BLUE),
        ("vision_text", "images and text", ORANGE),
    ):
        # Neighbours are compared halfway between them.
        half = 0.5 if name == "adjacent" else 0.0
        _measured(axes, curves.get(name), label, colour, half)
        _dashed(axes, paper[name], colour, half)
    axes.set_ylabel("cosine")


def _consistency(axes: Any, curves: Content) -> None:
    names = [n.removeprefix("intra/hidden/") for n in curves if n.startswith("intra/hidden/")]
    spare = iter([PINK, GREY] * len(names))
    for name in sorted(names, key=lambda n: (list(_COLOURS) + names).index(n)):
        colour = _COLOURS.get(name) or next(spare)
        _measured(axes, curves.get(f"intra/attention/{name}"), f"{name}, attention", colour)
        hidden = curves.get(f"intra/hidden/{name}")
        _measured(axes, hidden, f"{name}, states", colour, style=":")
        if name in published()["intra"]:
            _dashed(axes, published()["intra"][name], colour)
    axes.set_ylabel("mean cosine of two samples")


def _dispersion(axes: Any, curves: Content) -> None:
    paper = published()["dispersion"]
    _measured(axes, curves.get("dispersion/hidden/all"), "hidden states", ORANGE)
    _measured(axes, curves.get("dispersion/attention/all"), "attention", BLUE)
    _dashed(axes, paper["hidden"], ORANGE)
    points = {int(layer): value for layer, value in paper["attention"].items()}
    depth = (np.array(list(points)) - 1) / (len(paper["hidden"]) - 1)
    axes.plot(depth, list(points.values()), "--x", color=BLUE, linewidth=1, markersize=4)
    axes.set_ylabel("1 − cosine of two wordings")


def _margin(axes: Any, curves: Content) -> None:
    for name, colour in (("driving", ORANGE), ("general", BLUE)):
        paper = published()["margin"][name]
        tenths = np.arange(1, len(paper) + 1)
        _measured(axes, curves.get(f"margin/{name}"), name, colour, x=tenths)
        axes.plot(tenths, paper, "--", color=colour, linewidth=1)
    axes.set_xticks(tenths)
    axes.set_ylabel("p(best) − p(second)")


def _measured(
    axes: Any,
    curve: Content | None,
    label: str,
    colour: str,
    half: float = 0.0,
    style: str = "-",
    x: Any = None,
) -> None:
    """Draw a curve with its band; places without data are left out."""
    if curve is None:
        return
    mean = np.array(curve["mean"], dtype=float)
    seen = np.isfinite(mean)
    x = _depth(len(mean), half) if x is None else x
    marker = "o" if len(mean) <= 12 else None
    axes.plot(x[seen], mean[seen], style, color=colour, label=label, marker=marker, markersize=3)
    if curve["low"] is not None:
        low, high = (np.array(curve[end], dtype=float)[seen] for end in ("low", "high"))
        axes.fill_between(x[seen], low, high, color=colour, alpha=0.18, linewidth=0)


def _dashed(axes: Any, values: Sequence[float], colour: str, half: float = 0.0) -> None:
    axes.plot(_depth(len(values), half), values, "--", color=colour, linewidth=1, alpha=0.8)


def _depth(count: int, half: float) -> Any:
    return (np.arange(count) + half) / max(1.0, count - 1 + 2 * half)
