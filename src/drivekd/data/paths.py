"""Image paths of a data file, resolved to files below the data's folder."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from drivekd.data.formats.rows import RowError, shown
from drivekd.data.sample import CAMERAS

#: images of one row; with more it is no question about a scene, and resolving paths takes long
MAX_IMAGES = 1000

#: the part that nuScenes-type files agree on, whatever precedes it: samples/CAM_FRONT/…
_NUSCENES = re.compile(r"(?:^|/)(samples/CAM_[A-Z_]+/.+)$")
#: a scheme alone is none: `seq1:0001/a.jpg` is a file
_URL = re.compile(r"[a-z][a-z0-9+.-]{0,30}://|data:|file:", re.IGNORECASE)
_CAMERA = re.compile(
    r"(?<![A-Z])(" + "|".join(sorted(CAMERAS, key=len, reverse=True)) + r")(?![A-Z]|_[A-Z])"
)


def resolve(text: str, folder: Path, where: str) -> Path:
    """Return the file that an image path means; it need not exist yet.

    A path with `samples/CAM_…/` in it is looked up as it is, then from there on below
    `folder/nuscenes` and below `folder`; any other path is relative to `folder` (a leading `.../`,
    the public samples' way of leaving out a prefix, is dropped). A RowError refuses a URL and a
    path that leaves the folder.
    """
    if _URL.match(text):
        raise RowError(
            f"{where}: image {shown(text)} is a URL: download it below {folder} first", "image_path"
        )
    nuscenes = _NUSCENES.search(text)
    relative = nuscenes[1] if nuscenes else text.removeprefix(".../")
    if not _is_name(text):
        raise RowError(
            f"{where}: image {shown(text)} is no file name: write a path below {folder}",
            "image_path",
        )
    if not _stays(relative, folder):
        raise RowError(
            f"{where}: image {shown(text)} leaves the data's folder {folder}: put the images below "
            "it and write paths relative to it, or name a folder above both as root (--root, "
            "data.root)",
            "image_path",
        )
    below = os.path.relpath(text, folder.absolute()) if text.startswith("/") else text
    if relative.startswith("/"):
        return folder / below
    if nuscenes:
        candidates = (folder / below, folder / "nuscenes" / relative)
        for candidate in candidates if _stays(text, folder) else candidates[1:]:
            if candidate.is_file():
                return candidate
    return folder / relative


def _is_name(text: str) -> bool:
    """Tell whether the system can open a path at all: its parts are at most 255 bytes long."""
    if not text.strip() or "\0" in text or len(text) > 1000:
        return False
    return all(len(part.encode()) <= 255 for part in text.split("/"))


def _stays(text: str, folder: Path) -> bool:
    """Tell from its text alone whether a path names something below the folder."""
    if ".." in PurePosixPath(text).parts:
        return False
    if not text.startswith("/"):
        return True
    return Path(os.path.normpath(text)).is_relative_to(os.path.normpath(folder.absolute()))


def refuse_too_many(count: int, where: str) -> None:
    if count > MAX_IMAGES:
        raise RowError(f"{where}: {count} images in one row, expected at most {MAX_IMAGES}")


def camera_of(text: str) -> str | None:
    """Return the nuScenes camera that a path names by folder or file, None where it names none.

    `samples/CAM_BACK/n008__CAM_BACK__153.jpg` → `CAM_BACK`.
    """
    cameras = set(_CAMERA.findall(text))
    return cameras.pop() if len(cameras) == 1 else None
