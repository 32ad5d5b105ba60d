"""Where a rewording moves a teacher's attention most: pictures beside maps of three wordings."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from drivekd.data.pictures import read_image
from drivekd.data.sample import CAMERAS
from drivekd.data.tags import PICTURE, read_tags
from drivekd.files.writing import atomic_file
from drivekd.report.figures import Mark, data_uri, tile
from drivekd.report.prestudy import SETTINGS

Content = Mapping[str, Any]

TILE = 112
"""Side of a camera's tile [px]."""

#: left, ahead, right; then behind from the left
_AROUND = tuple(CAMERAS[i] for i in (1, 0, 2, 4, 3, 5))


def draw_stability(content: Content, folder: Path) -> tuple[Path, Path]:
    """Draws `stability.png` and `stability.svg` into a folder.

    A row per case: all cameras of the question as the model sees them, then the same under the
    attention of the question's rows in three wordings. Each of these has its own scale: cosines
    compare where a map looks, not how much it looks at images altogether.

    Args:
        content: what `stability.json` holds.
        folder: of the study, with `stability.npz`; pictures are looked up from there.
    """
    places = folder / "stability.png", folder / "stability.svg"
    with np.load(folder / "stability.npz", allow_pickle=False) as maps:
        figure = _figure(content, folder, maps)
    for path in places:
        with atomic_file(path) as draft:
            draft.write_bytes(_bytes(figure, path.suffix[1:]))
    return places


def stability_address(folder: Path) -> str:
    """The picture of a study as the address of itself; empty where there is none."""
    path = folder / "stability.png"
    return data_uri(read_image(path)) if path.is_file() else ""


def _bytes(figure: Figure, format: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None} if format == "svg" else None
    with mpl.rc_context(SETTINGS):
        figure.savefig(buffer, format=format, dpi=110, metadata=metadata)
    return buffer.getvalue()


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
            said = "\n".join(["not enough data:", *content["lacks"]])
            grid[0, 1].text(0, 0.5, said, va="center", color="#7a2f00")
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
            said = f"{case['capability']}, layer {case['layer']}: cosine {case['cosine']:.2f}"
            axes.set_title(said, fontsize=8.5, loc="left")
            continue
        words = textwrap.fill(" ".join(case["wordings"][place - 1].split()), 44)
        apart = place - 1 in case["apart"]
        # At the foot of its map; a dollar sign would begin a formula.
        axes.text(
            0,
            picture.height * 1.03,
            words if len(words) <= 130 else words[:129] + "…",
            fontsize=7.5,
            va="top",
            color="#d55e00" if apart else "black",
            parse_math=False,
        )


def _tiles(
    case: Content, folder: Path, maps: Mapping[str, NDArray[np.float32]], number: int
) -> list[Image.Image]:
    """The plain pictures, and the same under the maps of each wording."""
    cameras = sorted(case["images"], key=lambda c: _AROUND.index(c) if c in _AROUND else 6)
    pictures = {camera: _picture(folder / case["images"][camera]) for camera in cameras}
    marks = {camera: _marks(case["wordings"][0], camera) for camera in cameras}
    words = range(len(case["wordings"]))
    heat = [{camera: maps[f"{number}/{word}/{camera}"] for camera in cameras} for word in words]
    plain = [tile(pictures[c], marks=marks[c], size=TILE) for c in cameras]
    return [_together(plain), *(_heated(pictures, one) for one in heat)]


def _heated(
    pictures: Mapping[str, Image.Image], heat: Mapping[str, NDArray[np.float32]]
) -> Image.Image:
    peak = max(float(each.max()) for each in heat.values())
    return _together([tile(pictures[c], heat[c], peak=peak, size=TILE) for c in pictures])


def _together(tiles: Sequence[Image.Image]) -> Image.Image:
    """Up to three tiles side by side, further ones below."""
    columns, gap = min(3, len(tiles)), 3
    rows = -(-len(tiles) // columns)
    size = columns * (TILE + gap) - gap, rows * (TILE + gap) - gap
    canvas = Image.new("RGB", size, (255, 255, 255))
    for i, each in enumerate(tiles):
        canvas.paste(each, (i % columns * (TILE + gap), i // columns * (TILE + gap)))
    return canvas


def _picture(path: Path) -> Image.Image:
    """A picture; grey where the file is gone, for the maps are still worth seeing."""
    try:
        return read_image(path)
    except ValueError:
        return Image.new("RGB", (TILE, TILE), (128, 128, 128))


def _marks(question: str, camera: str) -> list[Mark]:
    """The objects that a question names in one camera, with their names."""
    found = []
    for tag in read_tags(question):
        width, height = PICTURE if tag.unit == "pixel" else (1, 1)
        if tag.camera == camera and tag.unit is not None:
            found.append(Mark(tag.name, tag.x / width, tag.y / height))
    return found
