"""What the cameras see: visible pixels, tags and contents of image cells, from id maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drivekd.data.sample import CAMERAS
from drivekd.world.frame import COLOURS, KINDS, Frame, Thing
from drivekd.world.scene import distance

GRID = 4  # cells a camera's side: what one region token of the tiny models stands for
MIN_SHARE = 0.0035  # of a camera's pixels: smaller things are not asked about
CELL_SHARE = 0.07  # of a cell's pixels: a thing with fewer is not what fills the cell
#: a traffic light's box is small and its state matters: a lower share, and its pixels count thrice
LIGHT_CELL_SHARE, LIGHT_WEIGHT = 0.025, 3
STATUSES = ("going ahead", "braking", "turning left", "turning right")
DISTANCES = ("near", "middle", "far")
_DISTANCE_EDGES = (8.0, 16.0)  # [m]


@dataclass(frozen=True, slots=True)
class Sighting:
    """A thing in the camera that shows most of it."""

    thing: Thing  # what is seen
    camera: str  # the camera
    u: float  # column of a pixel on the thing, near the middle of what is visible, from 0 to 1
    v: float  # its row, from 0 (top) to 1
    pixels: int  # how many show the thing
    #: left, top, right and bottom border of these pixels, from 0 to 1
    box: tuple[float, float, float, float]

    @property
    def region(self) -> int:
        """Index of the image cell of (u, v), counted over all cameras."""
        row, column = min(int(self.v * GRID), GRID - 1), min(int(self.u * GRID), GRID - 1)
        return CAMERAS.index(self.camera) * GRID * GRID + row * GRID + column

    def tag(self, number: int) -> str:
        """`<c1,CAM_FRONT,0.47,0.68><r9>`: DriveBench's object tag and the region token."""
        return f"<c{number},{self.camera},{self.u:.2f},{self.v:.2f}><r{self.region}>"


def sightings(frame: Frame, ids: Mapping[str, NDArray[np.uint8]]) -> tuple[Sighting, ...]:
    """Return every thing that is large enough in some camera, in the frame's order.

    `ids` holds per camera the id of the thing at each pixel [H, W].
    """
    best: dict[int, Sighting] = {}
    by_id = {t.id: t for t in frame.things}
    for camera, picture in ids.items():
        for number in np.unique(picture):
            if number == 0:
                continue
            seen = _sight(by_id[int(number)], camera, picture == number)
            kept = best.get(int(number))
            if seen is not None and (kept is None or seen.pixels > kept.pixels):
                best[int(number)] = seen
    return tuple(best[t.id] for t in frame.things if t.id in best)


def _sight(thing: Thing, camera: str, visible: NDArray[np.bool_]) -> Sighting | None:
    rows, columns = np.nonzero(visible)
    if len(rows) < MIN_SHARE * visible.size:
        return None
    height, width = visible.shape
    # the tag must lie on the thing: the visible pixel nearest to the centroid
    nearest = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
    return Sighting(
        thing=thing,
        camera=camera,
        u=(float(columns[nearest]) + 0.5) / width,
        v=(float(rows[nearest]) + 0.5) / height,
        pixels=len(rows),
        box=(
            float(columns.min()) / width,
            float(rows.min()) / height,
            float(columns.max() + 1) / width,
            float(rows.max() + 1) / height,
        ),
    )


def rear_visible(frame: Frame, thing: Thing) -> bool:
    """Whether the ego sees the thing's rear, where brake lamps and indicators are."""
    toward = np.array([thing.x - frame.ego.x, thing.y - frame.ego.y])
    facing = np.array([np.cos(thing.heading), np.sin(thing.heading)])
    return float(toward @ facing) > 0.5 * float(np.linalg.norm(toward))


def status(thing: Thing) -> str:
    if thing.braking:
        return "braking"
    return f"turning {thing.turn}" if thing.turn else "going ahead"


def distance_band(frame: Frame, thing: Thing) -> str:
    """Return near, middle or far."""
    return DISTANCES[int(np.searchsorted(_DISTANCE_EDGES, distance(frame, thing)))]


#: dense labels of a cell, in the order of the last axis of `cells`; 0 always means "nothing to say"
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "colour": COLOURS,
    "status": STATUSES,
    "distance": DISTANCES,
    "light": ("red", "green"),
}


def cells(frame: Frame, ids: Sequence[NDArray[np.uint8]]) -> NDArray[np.int8]:
    """Label what fills each cell of each camera: 1-based indices into `ATTRIBUTES`, 0 for nothing.

    Labels [cameras, GRID, GRID, attributes] are of the thing with most pixels in each cell, where
    it covers at least 7 % of the cell; a traffic light's pixels count thrice, and 2.5 % are enough
    for it. `ids` are id maps [H, W] in the order of `CAMERAS`.
    """
    labels = np.zeros((len(ids), GRID, GRID, len(ATTRIBUTES)), dtype=np.int8)
    by_id = {t.id: t for t in frame.things}
    lights = [t.id for t in frame.things if t.kind == "light"]
    for c, picture in enumerate(ids):
        size = picture.shape[0] // GRID, picture.shape[1] // GRID
        for row in range(GRID):
            for column in range(GRID):
                cell = picture[
                    row * size[0] : (row + 1) * size[0], column * size[1] : (column + 1) * size[1]
                ]
                top = _fills(cell, lights)
                if top:
                    labels[c, row, column] = _labels(frame, by_id[top])
    return labels


def _fills(cell: NDArray[np.uint8], lights: Sequence[int]) -> int:
    """The id of what fills a cell of an id map, 0 where nothing does."""
    counts = np.bincount(cell.ravel(), minlength=256)
    counts[0] = 0
    weighted = counts.copy()
    weighted[lights] *= LIGHT_WEIGHT
    top = int(weighted.argmax())
    share = LIGHT_CELL_SHARE if top in lights else CELL_SHARE
    return top if counts[top] >= share * cell.size else 0


def _labels(frame: Frame, thing: Thing) -> list[int]:
    lamps = thing.kind in ("car", "truck", "bus", "cyclist") and rear_visible(frame, thing)
    said = {
        "kind": thing.kind,
        "colour": None if thing.kind in ("light", "cone") else thing.colour,
        "status": status(thing) if lamps else None,
        "distance": distance_band(frame, thing),
        "light": thing.light,
    }
    return [
        0 if said[name] is None else values.index(said[name]) + 1
        for name, values in ATTRIBUTES.items()
    ]
