"""Where the six cameras look, and where a point of the world falls in their pictures.

Source: [ours].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from drivekd.world.frame import Pose

Pixels = NDArray[np.uint8]

CAMERAS: tuple[str, ...] = (
    "CAM_FRONT",
    "CAM_FRONT_LEFT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)
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


def size_of(size: int | tuple[int, int]) -> tuple[int, int]:
    """Width and height [px] of a picture.

    Raises:
        ValueError: a side is below 16 px or above 2048 px.
    """
    width, height = (size, size) if isinstance(size, int) else size
    if not (16 <= width <= 2048 and 16 <= height <= 2048):
        raise ValueError(
            f"picture size: expected sides of 16 to 2048 px, got {size!r}; "
            "give one number or (width, height)"
        )
    return width, height


def mount(camera: str) -> Mount:
    """The camera's place in the rig.

    Raises:
        ValueError: no camera has this name.
    """
    if camera not in RIG:
        raise ValueError(f"camera: expected one of {', '.join(CAMERAS)}, got {camera!r}")
    return RIG[camera]


def project(
    camera: str, pose: Pose, x: float, y: float, z: float, size: int | tuple[int, int]
) -> tuple[float, float, float]:
    """Pinhole projection of a world point, by formula and not by the renderer.

    Args:
        camera: one of CAMERAS.
        pose: of the ego vehicle; all cameras share its centre.
        x: of the point [m].
        y: of the point [m].
        z: of the point [m], 0 on the road.
        size: of the picture [px], one number or (width, height).

    Returns:
        Column u and row v [px] from the picture's top left corner (outside the picture they are
        below 0 or above its size) and the depth along the optical axis [m]; u and v are nan where
        the depth is not positive.
    """
    width, height = size_of(size)
    lens = mount(camera)
    angle = pose.heading + math.radians(lens.yaw)
    ahead, aside = math.cos(angle), math.sin(angle)
    dx, dy = x - pose.x, y - pose.y
    depth = dx * ahead + dy * aside
    if depth <= 0:
        return math.nan, math.nan, depth
    left = -dx * aside + dy * ahead
    u = width / 2 * (1 - left / depth / math.tan(math.radians(lens.hfov) / 2))
    v = height / 2 * (1 - (z - HEIGHT) / depth / math.tan(math.radians(lens.vfov) / 2))
    return u, v, depth


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
def badge(camera: str, width: int, height: int) -> Pixels:
    """The mark of one camera, 10 x 10 px in a 96 px tile: uint8 [rows, columns, 3]."""
    mount(camera)
    rows, colour = _ARROWS[camera]
    cells = np.zeros((6, 6, 3), np.uint8)
    for row, line in enumerate(rows.split()):
        for column, mark in enumerate(line):
            if mark == "#":
                cells[row, column] = colour
    tall, wide = max(6, round(height * 10 / 96)), max(6, round(width * 10 / 96))
    # The border of black at the right and below is half a cell wide.
    down = (np.arange(tall) * 5.5 / tall).astype(int)
    across = (np.arange(wide) * 5.5 / wide).astype(int)
    picture: Pixels = cells[down][:, across]
    picture.flags.writeable = False
    return picture


def stamp(rgb: Pixels, camera: str) -> None:
    """Draw the camera's badge into the top left corner of a picture [H, W, 3], in place.

    The six tiles go through one vision tower, which has no other way to know their camera; a
    mirrored tile needs the badge of its new camera stamped over the one at the left.
    """
    mark = badge(camera, rgb.shape[1], rgb.shape[0])
    rgb[: mark.shape[0], : mark.shape[1]] = mark
