"""Pictures that a client sends inside its request, checked and written to files of our own."""

from __future__ import annotations

import base64
import binascii
import io
import re
from pathlib import Path

from PIL import Image

from drivekd.data.pictures import UNREADABLE, read_image
from drivekd.deploy.serving.protocol import Refused

#: what is decoded; every other format of Pillow's is code that a client need not reach
FORMATS = ("JPEG", "PNG", "WEBP")
_HEAD = re.compile(r"data:image/[\w.+-]+(;[\w=.+-]+)*;base64", re.ASCII | re.IGNORECASE)


def write_picture(url: str, path: Path, max_pixels: int, param: str) -> None:
    """Write the picture in a data URL into a file.

    The number of pixels is read from the picture's head, before anything is decoded.

    Args:
        url: of the form `data:image/png;base64,…`.
        path: where to.
        max_pixels: largest picture [px].
        param: where in the request it stood.

    Raises:
        Refused: another address (none is ever fetched), broken base64, no whole picture of a
            format in `FORMATS`, or a larger one.
    """
    content = _decoded(url, param)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
        if width * height > max_pixels:
            raise Refused(
                400,
                f"the picture has {width} x {height} pixels; at most {max_pixels} are taken here",
                param=param,
                code="image_too_large",
            )
    except (*UNREADABLE, Image.DecompressionBombWarning) as error:
        raise _unreadable(param) from error
    path.write_bytes(content)  # a full disk is no fault of the client's
    try:
        read_image(path)
    except (*UNREADABLE, Image.DecompressionBombWarning) as error:
        raise _unreadable(param) from error


def _unreadable(param: str) -> Refused:
    return Refused(
        400,
        "the picture cannot be read; expected a whole file of JPEG, PNG or WebP",
        param=param,
        code="invalid_image",
    )


def _decoded(url: str, param: str) -> bytes:
    head, comma, data = url.partition(",")
    if not comma or not _HEAD.fullmatch(head):
        raise Refused(
            400,
            "expected the picture itself as data:image/…;base64,…: this server fetches no address "
            "and opens no file for a client",
            param=param,
            code="invalid_image_url",
        )
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(
            400,
            f"the picture's base64 is broken ({error})",
            param=param,
            code="invalid_base64",
        ) from error
