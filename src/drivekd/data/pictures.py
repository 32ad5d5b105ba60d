"""Picture files as upright RGB, and what is said of a file that cannot be read as one."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

#: what Pillow raises for a file that is missing, truncated or no picture
UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError)


def read_image(path: Path) -> Image.Image:
    """Read a picture as upright RGB.

    Raises:
        ValueError: naming the file, if it is missing, truncated or no picture.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"image {path}: cannot be read as a picture ({error}); expected a whole JPEG or PNG file. "
        "Check the path and the image root, or restore the file"
    )
