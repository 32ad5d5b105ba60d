"""Identities of files: a hash of their bytes, read once while a file stays as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

Stamp = tuple[int, int, int, int]
"""Size, place on the disk, and the times of the last change of bytes and of anything [ns]."""


def stamp(path: Path) -> Stamp:
    """Tell without reading whether a file is still the one that was read.

    Raises:
        OSError: there is no such file.
    """
    about = path.stat()
    return about.st_size, about.st_ino, about.st_mtime_ns, about.st_ctime_ns


def identity(path: Path) -> str:
    """Hash the bytes of a file: neither its name nor its folder nor its time of writing counts.

    What is no file to read is `missing`; whoever opens it says so.
    """
    try:
        return _hash(path, stamp(path))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError):
        return "missing"


def identities(paths: Iterable[Path]) -> dict[Path, str]:
    """Hash files, each once."""
    return {path: identity(path) for path in dict.fromkeys(paths)}


@lru_cache(maxsize=1 << 20)
def _hash(path: Path, unchanged: Stamp) -> str:
    del unchanged  # part of the key only: a file written anew is read anew
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]
