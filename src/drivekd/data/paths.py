"""From the image path that a data file writes to a file below the data's own folder."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from drivekd.data.sample import CAMERAS

#: What nuScenes-type files agree on, whatever stands before it: samples/CAM_FRONT/….
_NUSCENES = re.compile(r"(?:^|/)(samples/CAM_[A-Z_]+/.+)$")
_CAMERA = re.compile(
    r"(?<![A-Z])(" + "|".join(sorted(CAMERAS, key=len, reverse=True)) + r")(?![A-Z]|_[A-Z])"
)


def resolve(text: str, folder: Path, where: str) -> Path:
    """The file that an image path means; it need not exist yet.

    A path with `samples/CAM_…/` in it is looked for from there on, below `folder/nuscenes` and
    then below `folder`; any other path is relative to `folder` (a leading `.../`, the public
    samples' way of leaving out a prefix, is dropped).

    Raises:
        ValueError: the path is a URL or leaves the folder.
    """
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:", text):
        raise ValueError(f"{where}: image {text!r} is a URL: download it below {folder} first")
    nuscenes = _NUSCENES.search(text)
    relative = nuscenes[1] if nuscenes else re.sub(r"^\.\.\./", "", text)
    if not text.strip() or "\0" in text or not _stays(relative, folder):
        raise ValueError(
            f"{where}: image {text!r} leaves the data's folder {folder}: put the images below it "
            "and write paths relative to it, or name a folder above both as data.root"
        )
    if nuscenes:
        candidates = (folder / text.removeprefix("/"), folder / "nuscenes" / relative)
        for candidate in candidates if _stays(text, folder) else candidates[1:]:
            if candidate.is_file():
                return candidate
    return folder / relative


def _stays(text: str, folder: Path) -> bool:
    """Whether a path names something below the folder, judged by its text alone."""
    if ".." in PurePosixPath(text).parts:
        return False
    return Path(os.path.normpath(folder / text)).is_relative_to(os.path.normpath(folder))


def camera_of(text: str) -> str | None:
    """The nuScenes camera that a path names by its folder or its file, None where it names none.

    `samples/CAM_BACK/n008__CAM_BACK__153.jpg` → `CAM_BACK`.
    """
    found = set(_CAMERA.findall(text))
    return found.pop() if len(found) == 1 else None
