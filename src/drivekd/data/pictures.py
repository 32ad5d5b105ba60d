"""Picture files as upright RGB, and what is said of a file that cannot be read as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

#: what Pillow raises for a file that is missing, truncated, too large or no picture
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def read_image(path: Path, enough: int | None = None) -> Image.Image:
    """Read a picture as upright RGB.

    Args:
        path: of the file.
        enough: a large JPEG is decoded smaller, which is several times faster, but with no side
            below this [px].

    Raises:
        ValueError: naming the file, if it is missing, truncated or no picture.
    """
    try:
        with Image.open(path) as image:
            if enough is not None:
                image.draft("RGB", (enough, enough))
            return _eight_bits(ImageOps.exif_transpose(image)).convert("RGB")
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits scaled to 8: Pillow would cut off everything above 255."""
    if not image.mode.startswith("I"):
        return image
    scaled = np.asarray(image).astype(np.float64) / 257
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))


def unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"image {path}: cannot be read as a picture ({error}); expected a whole JPEG or PNG file. "
        "Check the path and the image root, or restore the file"
    )
