"""One picture clean and under every corruption, side by side, to look at."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from drivekd.data.corrupt.corruptions import CORRUPTIONS, corrupt

_COLUMNS = 6
_WIDEST, _GAP, _CAPTION = 400, 8, 22  # of a tile [px]
_PAPER, _INK = "#fbfaf7", "#22252a"


def corruption_sheet(
    picture: UInt8[np.ndarray, "h w 3"], severity: int | None = None, seed: int = 0
) -> Image.Image:
    """Draw a picture of a camera that every corruption strikes, each with its name.

    Args:
        picture: RGB.
        severity: 1 to 5; the ones that DriveBench uses where None.
        seed: as in `corrupt`.

    Raises:
        ValueError: ffmpeg is missing, or the severity is unknown.
    """
    pictures = {"clean": picture}
    pictures |= {kind.name: corrupt(picture, kind.name, severity, seed) for kind in CORRUPTIONS}
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
