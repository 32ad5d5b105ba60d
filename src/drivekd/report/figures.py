"""Drawings of arrays: attention over camera tiles, tags, curves as inline SVG.

Colours are roles (`ink`, `c1` … `c6`), not values: SVG carries CSS variables, so that one drawing
follows a light and a dark page. The palette is Okabe and Ito's, safe for colour-blind readers, and
lines differ in dash as well.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

TILE = 192  # side of a camera tile [px]
_NAMES = ("ink", "muted", "rule", "c1", "c2", "c3", "c4", "c5", "c6")
#: a value to draw with, which the variable of that name replaces
_ROLES = {name: f"#{i:02x}{i + 1:02x}{i + 2:02x}" for i, name in enumerate(_NAMES, 1)}
#: dash patterns in units of the line width, for lines that share a panel
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
_POINTS = 240  # a line with more is averaged in bins: no eye tells them apart


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: its name, role of colour, dash number, and points."""

    name: str
    colour: str
    dash: int
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, slots=True)
class Mark:
    """A tag to draw: its name and place in fractions of the picture from the upper left."""

    name: str
    x: float
    y: float


def tile(
    picture: Image.Image,
    heat: NDArray[np.floating] | None = None,
    *,
    peak: float = 1.0,
    marks: Sequence[Mark] = (),
    size: int = TILE,
) -> Image.Image:
    """Draw one camera, squeezed to a square as the model sees it, with its tags circled.

    `heat` is attention on the grid of visual tokens [rows, columns], drawn as cells of that grid;
    `peak` of it is drawn in full colour.
    """
    drawn = picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    if heat is not None:
        drawn = _heated(drawn, heat, peak)
    return _marked(drawn, marks) if marks else drawn


def _heated(picture: Image.Image, heat: NDArray[np.floating], peak: float) -> Image.Image:
    """Draw the picture in dim grey under colour whose opacity grows with attention."""
    level = np.clip(heat / peak if peak > 0 else np.zeros_like(heat), 0, 1)
    cells = Image.fromarray((255 * level).astype(np.uint8))
    strength = np.asarray(cells.resize(picture.size, Image.Resampling.NEAREST)) / 255.0
    colours = mpl.colormaps["inferno"](0.25 + 0.72 * strength)[..., :3]
    grey = np.asarray(picture.convert("L"), dtype=np.float64)[..., None] / 255.0
    shown = 0.35 * np.asarray(picture, dtype=np.float64) / 255.0 + 0.4 * grey
    opacity = 0.82 * (strength**0.7)[..., None]
    mixed = (1 - opacity) * shown + opacity * (0.75 * colours + 0.25 * grey)
    return Image.fromarray((255 * np.clip(mixed, 0, 1)).astype(np.uint8))


def _marked(picture: Image.Image, marks: Sequence[Mark]) -> Image.Image:
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    side = picture.width
    radius, font = max(5, side // 18), typeface(max(11, side // 14))
    for mark in marks:
        x, y = mark.x * side, mark.y * side
        ring = (x - radius, y - radius, x + radius, y + radius)
        # Two rings, so that one of them stands out on any background.
        draw.ellipse(ring, outline=(0, 0, 0), width=4)
        draw.ellipse(ring, outline=(255, 255, 255), width=2)
        if mark.name:
            inward = x < side * 0.75
            place = (x + radius + 5 if inward else x - radius - 5, y)
            anchor = "lm" if inward else "rm"
            box = draw.textbbox(place, mark.name, font=font, anchor=anchor)
            draw.rectangle((box[0] - 3, box[1] - 2, box[2] + 3, box[3] + 2), fill=(0, 0, 0))
            draw.text(place, mark.name, font=font, fill=(255, 255, 255), anchor=anchor)
    return picture


def attention_strip(
    pictures: Mapping[str, Image.Image],
    maps: Mapping[str, NDArray[np.floating]],
    title: str,
    note: str,
) -> Image.Image:
    """Draw attention [rows, columns] over the cameras in a row, on one scale, with their names."""
    missing = [camera for camera in pictures if camera not in maps]
    if not pictures or missing:
        raise ValueError(
            f"attention picture: expected one map per camera, got none for {missing or 'any'};"
            f" maps are for {list(maps)}"
        )
    peak = max(float(grid.max()) for grid in maps.values())
    size, gap, head, foot = 256, 6, 34, 54  # [px]
    width = max(len(pictures) * (size + gap) + gap, 420)
    canvas = Image.new("RGB", (width, head + size + foot), (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    _write(draw, title, (gap, 8), 15, "black", width - 2 * gap)
    for i, (camera, picture) in enumerate(pictures.items()):
        left = gap + i * (size + gap)
        canvas.paste(tile(picture, maps[camera], peak=peak, size=size), (left, head))
        share = f"{camera}  {100 * float(maps[camera].sum()):.1f} %"
        _write(draw, share, (left, head + size + 4), 13, "black", width)
    text = f"{note}; brightest: {100 * peak:.2f} % on one visual token, one scale for all cameras"
    _write(draw, text, (gap, head + size + 28), 12, "#5a5a5a", width - 2 * gap)
    return canvas


def _write(
    draw: ImageDraw.ImageDraw, text: str, at: tuple[int, int], size: int, ink: str, width: int
) -> None:
    font = typeface(size)
    draw.text(at, fitted(text, font, width), fill=ink, font=font)


@lru_cache(maxsize=8)
def typeface(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


def fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + " …") > width:
        text = text[:-1]
    return text + " …"


def data_uri(picture: Image.Image) -> str:
    """Encode a picture as a data URI: WebP in base64."""
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=80, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def curves(
    lines: Sequence[Line],
    *,
    log: bool = False,
    limits: tuple[float, float] | None = None,
    reference: float | None = None,
    unit: str = "",
    wide: bool = False,
) -> str:
    """Draw a small panel of curves over optimizer steps as SVG for inlining in HTML.

    On a logarithmic axis points that are not positive are left out; `reference` is a horizontal
    line; `wide` panels take half of the page's width instead of a third.
    """
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "drivekd",  # else ids differ from run to run
        "font.family": "sans-serif",
        "font.size": 9,
    }
    with mpl.rc_context(settings):
        # The page scales drawings to their place: at these sizes [inch] letters stay readable
        # on a telephone and do not shout on a desk.
        figure = Figure(figsize=(5.6, 2.8) if wide else (4.1, 2.7), dpi=72)
        axes = figure.add_axes((0.1, 0.15, 0.88, 0.76) if wide else (0.12, 0.16, 0.86, 0.75))
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        for line in lines:
            _draw(axes, line, log)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
            axes.yaxis.set_major_formatter(_power)
            axes.yaxis.set_minor_locator(NullLocator())
        if limits is not None:
            axes.set_ylim(*limits)
        if reference is not None:
            axes.axhline(reference, color=_ROLES["muted"], linewidth=0.8, zorder=1)
        _style(axes, unit)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _inline(buffer.getvalue())


def _draw(axes: Any, line: Line, log: bool) -> None:
    x, y = _thinned(np.asarray(line.x, dtype=np.float64), np.asarray(line.y, dtype=np.float64))
    if log:
        x, y = x[y > 0], y[y > 0]
    dash = DASHES[line.dash % len(DASHES)]
    marker = "o" if len(x) == 1 else None
    axes.plot(
        x, y, color=_ROLES[line.colour], linestyle=dash, linewidth=1.6, marker=marker, markersize=4
    )


def _thinned(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average consecutive points to at most _POINTS."""
    if len(x) <= _POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), _POINTS)
    return np.array([x[p].mean() for p in parts]), np.array([y[p].mean() for p in parts])


def _power(value: float, _position: float) -> str:
    """Write 5e-4 rather than 5 × 10⁻⁴, and plain numbers where they are short."""
    if 0.01 <= value < 10_000:
        return f"{value:g}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")


def _style(axes: Any, unit: str) -> None:
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(_ROLES["rule"])
    axes.grid(axis="y", color=_ROLES["rule"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", color=_ROLES["rule"], labelcolor=_ROLES["muted"], length=3)
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True))
    axes.set_xlabel("optimizer step", color=_ROLES["muted"], labelpad=2)
    if unit:
        place = {"transform": axes.transAxes, "ha": "left", "va": "bottom"}
        axes.text(0, 1.04, unit, color=_ROLES["muted"], **place)


def _inline(svg: str) -> str:
    """Strip prolog, metadata, ids of parts and size, and colour by variables of the page."""
    svg = svg[svg.index("<svg") :]
    # Its style has a rule for `*`, which would reach out into the page.
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[a-z]+[0-9a-z_.]*">', "<g>", svg)
    for side in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?)\s{side}="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"\s*font-family: [^;\"]*;?", "", svg)
    for role, value in _ROLES.items():
        svg = svg.replace(value, f"var(--{role})")
    return _unique(svg)


def _unique(svg: str) -> str:
    """Give what is referred to inside the drawing a unique id: a page holds many drawings."""
    stamp = hashlib.blake2b(svg.encode(), digest_size=5).hexdigest()
    for i, name in enumerate(sorted(set(re.findall(r'\bid="([^"]+)"', svg)))):
        svg = re.sub(rf'(\bid="|#){re.escape(name)}(?=["\)])', rf"\g<1>f{stamp}-{i}", svg)
    return svg
