"""The stability picture: cameras beside attention maps of three wordings, the worst cases."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from drivekd.data.cameras import around
from drivekd.data.pictures import image_or_none, read_image
from drivekd.data.tags import read_tags
from drivekd.report.figures import Mark, data_uri, tile
from drivekd.report.prestudy import SETTINGS, Content, write_both

#: side of a camera's tile [px]
TILE = 112


def draw_stability(content: Content, folder: Path) -> tuple[Path, Path]:
    """Draw `stability.json` as `stability.png` and `stability.svg` into the folder of the study.

    A row per case: all cameras of the question as the model sees them, then the same under the
    attention of the question's rows in three wordings (`stability.npz`). Each of these has another
    scale: cosines compare where a map looks, not how much it looks at images altogether.
    """
    with np.load(folder / "stability.npz", allow_pickle=False) as maps:
        figure = _figure(content, folder, maps)
    return write_both(figure, folder / "stability")


def stability_address(folder: Path) -> str:
    """Encode the picture of a study as a data URI, empty where there is none."""
    path = folder / "stability.png"
    return data_uri(read_image(path)) if path.is_file() else ""


def _figure(content: Content, folder: Path, maps: Mapping[str, NDArray[np.float32]]) -> Figure:
    cases = content["worst"]
    with mpl.rc_context(SETTINGS):
        height = 0.7 + 2.6 * max(1, len(cases))  # [inch]
        figure = Figure(figsize=(12.4, height))
        figure.suptitle(_title(content), fontsize=9.5, y=1 - 0.08 / height, va="top")
        # By hand: a layout that measures every text takes seconds.
        figure.subplots_adjust(0.01, 0.45 / height, 0.99, 1 - 0.7 / height, 0.03, 0.25)
        grid = figure.subplots(max(1, len(cases)), 4, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for number, (row, case) in enumerate(zip(grid, cases, strict=False)):
            _case(row, case, _tiles(case, folder, maps, number))
        if not cases:
            text = "\n".join(["not enough data:", *content["lacks"]])
            grid[0, 1].text(0, 0.5, text, va="center", color="#7a2f00")
    return figure


def _title(content: Content) -> str:
    data = content["data"]
    verdict = content["verdict"] or "no verdict"
    return (
        f"{content['teacher']['source']}: {verdict}; {data['samples']} questions of "
        f"{data['scenes']} scenes\nthe questions whose maps differ most over wordings, in the "
        "layers that would be distilled; each map has its own scale, the farthest two in orange"
    )


def _case(row: Any, case: Content, tiles: Sequence[Image.Image]) -> None:
    for place, (axes, picture) in enumerate(zip(row, tiles, strict=True)):
        axes.imshow(picture, interpolation="none")
        if place == 0:
            title = f"{case['capability']}, layer {case['layer']}: cosine {case['cosine']:.2f}"
            axes.set_title(title, fontsize=8.5, loc="left")
            continue
        words = textwrap.fill(" ".join(case["wordings"][place - 1].split()), 44)
        words = words if len(words) <= 130 else words[:129] + "…"
        colour = "#d55e00" if place - 1 in case["apart"] else "black"
        # At the foot of its map; a dollar sign would begin a formula.
        style = {"fontsize": 7.5, "va": "top", "parse_math": False}
        axes.text(0, picture.height * 1.03, words, color=colour, **style)


def _tiles(
    case: Content, folder: Path, maps: Mapping[str, NDArray[np.float32]], number: int
) -> list[Image.Image]:
    """Draw the plain pictures, and the same under the maps of each wording."""
    grey = Image.new("RGB", (TILE, TILE), (128, 128, 128))  # a map is worth seeing without one
    cameras = around(case["images"])
    pictures = {c: image_or_none(folder / case["images"][c]) or grey for c in cameras}
    tags = read_tags(case["wordings"][0])
    marks = {
        c: [Mark(t.name, *t.place) for t in tags if t.camera == c and t.place] for c in cameras
    }
    drawn = [_together([tile(pictures[c], marks=marks[c], size=TILE) for c in cameras])]
    for word in range(len(case["wordings"])):
        heat = {camera: maps[f"{number}/{word}/{camera}"] for camera in cameras}
        peak = max(float(grid.max()) for grid in heat.values())
        drawn.append(_together([tile(pictures[c], heat[c], peak=peak, size=TILE) for c in cameras]))
    return drawn


def _together(tiles: Sequence[Image.Image]) -> Image.Image:
    """Paste up to three tiles side by side, further ones below."""
    columns, gap = min(3, len(tiles)), 3
    rows = -(-len(tiles) // columns)
    size = columns * (TILE + gap) - gap, rows * (TILE + gap) - gap
    canvas = Image.new("RGB", size, (255, 255, 255))
    for i, picture in enumerate(tiles):
        canvas.paste(picture, (i % columns * (TILE + gap), i // columns * (TILE + gap)))
    return canvas
