"""The rig of six cameras: where they look, and the badge that tells their pictures apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

HEIGHT = 1.6  # of every camera above the road [m]
# A wide picture squeezed into the tile, as InternVL squeezes nuScenes' 1600 x 900: things look
# taller, which gives lamps and pedestrians more pixels than a square field of view would.
LENS_ASPECT = 16 / 9


@dataclass(frozen=True, slots=True)
class Mount:
    """Direction of one camera against the ego's heading, counter-clockwise, and its width [deg]."""

    yaw: float
    hfov: float

    @property
    def vfov(self) -> float:
        """Vertical field of view [deg] of a 16:9 picture."""
        half = math.tan(math.radians(self.hfov) / 2) / LENS_ASPECT
        return math.degrees(2 * math.atan(half))


RIG: dict[str, Mount] = {
    "CAM_FRONT": Mount(0, 70),
    "CAM_FRONT_LEFT": Mount(55, 70),
    "CAM_FRONT_RIGHT": Mount(-55, 70),
    "CAM_BACK": Mount(180, 110),
    "CAM_BACK_LEFT": Mount(110, 70),
    "CAM_BACK_RIGHT": Mount(-110, 70),
}


def refuse_size(size: int) -> None:
    """Refuse a side of a picture below 16 px or above 2048 px by a ValueError."""
    if not 16 <= size <= 2048:
        raise ValueError(f"picture size: expected a side of 16 to 2048 px, got {size!r}")


# One badge per camera: an arrow the way it looks, in a colour of its own, on black.
_ARROWS: dict[str, tuple[str, tuple[int, int, int]]] = {
    "CAM_FRONT": ("..#.. .###. ##### ..#.. ..#..", (255, 255, 255)),
    "CAM_FRONT_LEFT": ("####. ###.. ####. #.### ...##", (0, 240, 255)),
    "CAM_FRONT_RIGHT": (".#### ..### .#### ###.# ##...", (255, 60, 255)),
    "CAM_BACK": ("..#.. ..#.. ##### .###. ..#..", (255, 255, 0)),
    "CAM_BACK_LEFT": ("...## #.### ####. ###.. ####.", (70, 255, 70)),
    "CAM_BACK_RIGHT": ("##... ###.# .#### ..### .####", (255, 130, 30)),
}


@lru_cache(maxsize=64)
def badge(camera: str, size: int) -> Pixels:
    """Draw the mark of one camera, 10 x 10 px in a 96 px tile: uint8 [rows, columns, 3]."""
    rows, colour = _ARROWS[camera]
    cells = np.zeros((6, 6, 3), np.uint8)
    for row, line in enumerate(rows.split()):
        for column, mark in enumerate(line):
            if mark == "#":
                cells[row, column] = colour
    side = max(6, round(size * 10 / 96))
    # The border of black at the right and below is half a cell wide.
    place = (np.arange(side) * 5.5 / side).astype(int)
    picture: Pixels = cells[place][:, place]
    picture.flags.writeable = False
    return picture


def stamp(rgb: Pixels, camera: str) -> None:
    """Draw the camera's badge into the top left corner of a picture [H, W, 3], in place.

    The six tiles go through one vision tower, which has no other way to know their camera; a
    mirrored tile needs the badge of its new camera stamped over the one at the left.
    """
    mark = badge(camera, len(rgb))
    rgb[: len(mark), : len(mark)] = mark
