"""Draws a picture under all corruptions onto one sheet, to look at.

`python benchmarks/corruption_sheet.py docs/pictures/corruptions.png` draws a frame of the embedded
world, the picture in docs/data.md; a picture file behind the sheet's name is drawn instead, e.g. a
real one into out/.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "src")]

from drivekd.data.corrupt.corruptions import CORRUPTIONS, corrupt  # noqa: E402
from drivekd.data.pictures import read_image  # noqa: E402
from drivekd.world.make import make  # noqa: E402

SCENE, SIDE = 0, 160  # of the demo split; side of its pictures [px]
_COLUMNS = 6
_WIDEST, _GAP, _CAPTION = 400, 8, 22  # of a tile [px]
_PAPER, _INK = "#fbfaf7", "#22252a"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("sheet", type=Path, help="the PNG file to write")
    options.add_argument("picture", type=Path, nargs="?", help="a picture file")
    options.add_argument("--severity", type=int, help="1 to 5; by default DriveBench's")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        image = read_image(given.picture or world_picture(Path(scratch)))
    sheet = corruption_sheet(np.asarray(image), given.severity)
    given.sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(given.sheet, optimize=True)
    print(given.sheet)


def corruption_sheet(
    picture: UInt8[np.ndarray, "h w 3"], severity: int | None = None
) -> Image.Image:
    """Draw a picture clean and under every corruption, each with its name."""
    pictures = {"clean": picture}
    pictures |= {kind.name: corrupt(picture, kind.name, severity) for kind in CORRUPTIONS}
    tiles = {name: Image.fromarray(pixels) for name, pixels in pictures.items()}
    for tile in tiles.values():
        tile.thumbnail((_WIDEST, _WIDEST))
    width, height = tiles["clean"].size
    step = (width + _GAP, height + _GAP + _CAPTION)
    rows = -(-len(tiles) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * step[0] + _GAP, rows * step[1] + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, (name, tile) in enumerate(tiles.items()):
        row, column = divmod(number, _COLUMNS)
        left, top = column * step[0] + _GAP, row * step[1] + _GAP
        draw.text((left, top), name, _INK, font)
        sheet.paste(tile, (left, top + _CAPTION))
    return sheet


def world_picture(folder: Path) -> Path:
    make(folder, 1, "demo", first=SCENE, size=SIDE, workers=1)
    return next((folder / "images").glob("*/CAM_FRONT.png"))


if __name__ == "__main__":
    main()
