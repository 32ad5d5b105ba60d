"""Picture files as upright RGB, and the error of a file that cannot be read as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

#: what Pillow raises for a file that is missing, truncated, too large or no picture
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def read_image(path: Path, enough: int | None = None) -> Image.Image:
    """Read a picture as upright RGB; a ValueError names a file that is missing or no picture.

    A large JPEG is decoded smaller, with no side below `enough` [px]: several times faster.
    """
    try:
        with Image.open(path) as image:
            if enough is not None:
                image.draft("RGB", (enough, enough))
            return _eight_bits(ImageOps.exif_transpose(image)).convert("RGB")
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def image_or_none(path: Path, enough: int | None = None) -> Image.Image | None:
    """Read a picture as `read_image` does, None where it cannot be read."""
    try:
        return read_image(path, enough)
    except ValueError:
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey of 16 bits to 8: Pillow would cut off everything above 255."""
    if not image.mode.startswith("I"):
        return image
    scaled = np.asarray(image).astype(np.float64) / 257
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))


def unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"image {path}: cannot be read as a picture ({error}); expected a whole JPEG or PNG file. "
        "Check the path and the image root, or restore the file"
    )
