"""Small copies of the pictures of an evaluation, beside its page."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from drivekd.data.pictures import UNREADABLE, image_or_none
from drivekd.files.progress import track
from drivekd.files.writing import atomic_file

#: of a copy at most [px]
WIDTH = 480
_QUALITY = 82


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A copy: its file below the folder of the page, and its size [px]."""

    name: str
    width: int
    height: int


def thumbnails(paths: Iterable[Path], folder: Path) -> dict[Path, Thumbnail | None]:
    """Copy pictures into `folder/pictures`, JPEG, at most `WIDTH` wide; None for unreadable ones.

    A copy is named by a hash of its picture's path, size and time of writing: one that is there
    already is not made again, and a picture that was changed gets a new one.
    """
    out = folder / "pictures"
    if out.resolve() != folder.resolve() / "pictures":
        raise ValueError(f"{out} leads to {out.resolve()}: expected a folder, remove the link")
    distinct = list(dict.fromkeys(paths))
    return {path: _thumbnail(path, out) for path in track(distinct, label="copying pictures")}


def _thumbnail(path: Path, out: Path) -> Thumbnail | None:
    try:
        about = path.stat()
    except (OSError, ValueError):  # a null byte in its name
        return None
    text = f"{path.absolute()} {about.st_size} {about.st_mtime_ns}"
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
    copy = out / f"{digest}.jpg"
    if (size := _size(copy)) is None:
        if (image := image_or_none(path, WIDTH)) is None:
            return None
        image.thumbnail((WIDTH, 4 * WIDTH))
        with atomic_file(copy) as draft:
            image.save(draft, format="JPEG", quality=_QUALITY)
        size = image.size
    return Thumbnail(f"{out.name}/{copy.name}", *size)


def _size(copy: Path) -> tuple[int, int] | None:
    """Return the size of an earlier copy [px], None where there is no readable one."""
    try:
        with Image.open(copy) as image:
            return image.size
    except UNREADABLE:
        return None
