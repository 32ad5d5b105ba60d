"""Towns' palettes, and what weather does to colours and finished pictures.

Light is mixed into the colours of vertices, haze into scenery by its distance and into things by
their number in the id picture; rain is drawn over the finished picture. Nothing depends on more
than the frame itself, so the same frame gives the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drivekd.world.frame import Frame, Town, Weather

Rgb = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of a town, paler than any thing's paint so that things stand out."""

    ground: Rgb
    road: Rgb
    paint: Rgb
    walls: tuple[Rgb, ...]
    roof: Rgb
    window: Rgb
    sky: Rgb
    horizon: Rgb


@dataclass(frozen=True, slots=True)
class Air:
    """Factors on the light of scenery and things, own sky colours, and haze.

    `haze` is the colour at the horizon; `reach` and `thing_reach` [m] are the distances at which
    63 % of the colour is lost, `cap` the most that a thing can lose.
    """

    scenery: tuple[float, float, float]
    things: tuple[float, float, float]
    sky: Rgb | None
    haze: Rgb | None
    reach: float
    thing_reach: float
    cap: float
    lit_windows: float = 0.0


PALETTES: dict[Town, Palette] = {
    "amber": Palette(
        ground=(206, 178, 128), road=(112, 106, 102), paint=(244, 240, 226),
        walls=((222, 186, 140), (204, 158, 116), (232, 208, 170)), roof=(158, 96, 70),
        window=(104, 88, 84), sky=(128, 178, 226), horizon=(236, 224, 198),
    ),
    "birch": Palette(
        ground=(134, 160, 104), road=(92, 94, 98), paint=(240, 240, 240),
        walls=((226, 222, 212), (196, 190, 180), (176, 150, 130)), roof=(112, 92, 88),
        window=(86, 98, 110), sky=(140, 190, 220), horizon=(220, 230, 224),
    ),
    "cobalt": Palette(
        ground=(150, 154, 166), road=(70, 74, 86), paint=(238, 242, 250),
        walls=((136, 156, 188), (110, 130, 166), (170, 182, 200)), roof=(92, 102, 126),
        window=(78, 100, 142), sky=(110, 150, 216), horizon=(200, 212, 232),
    ),
}  # fmt: skip

AIRS: dict[Weather, Air] = {
    "day": Air((1, 1, 1), (1, 1, 1), None, None, 600, 1200, 0.1),
    "dusk": Air((0.86, 0.68, 0.66), (1, 0.92, 0.90), (92, 80, 140), (250, 164, 112), 260, 900, 0.15,
                0.5),
    "night": Air((0.42, 0.44, 0.58), (0.93, 0.93, 0.97), (12, 14, 40), (40, 44, 74), 140, 900, 0.15,
                 0.6),
    "rain": Air((0.66, 0.69, 0.74), (0.90, 0.91, 0.94), (112, 120, 132), (158, 164, 172), 130, 420,
                0.3),
    "fog": Air((0.92, 0.93, 0.95), (1, 1, 1), (206, 209, 213), (206, 209, 213), 34, 80, 0.62),
}  # fmt: skip


def horizon(frame: Frame) -> tuple[float, float, float]:
    """Return the colour of the haze at the horizon, from 0 to 255."""
    return AIRS[frame.weather].haze or PALETTES[frame.town].horizon


def sky(frame: Frame) -> tuple[float, float, float]:
    """Return the colour of the sky overhead, from 0 to 255."""
    return AIRS[frame.weather].sky or PALETTES[frame.town].sky


def light(
    colours: NDArray[np.float32], glow: NDArray[np.bool_], weather: Weather
) -> NDArray[np.float32]:
    """Light the colours [n, 3] of things under this weather; glowing ones keep theirs."""
    factor = np.where(glow[:, None], 1.0, np.array(AIRS[weather].things))
    lit: NDArray[np.float32] = (colours * factor).astype(np.float32)
    return lit


def haze(
    frame: Frame, colours: NDArray[np.float32], distance: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Fade scenery colours [n, 3] into the horizon by their distance [n] in metres."""
    lost = 1 - np.exp(-distance / AIRS[frame.weather].reach)[:, None]
    target = np.array(horizon(frame), np.float32)
    mixed: NDArray[np.float32] = (colours + (target - colours) * lost).astype(np.float32)
    return mixed


def veil(frame: Frame, tiles: NDArray[np.uint8], ids: NDArray[np.uint8]) -> None:
    """Haze things in pictures [cameras, H, W, 3] by their distance, in place; ids as in `View`."""
    air = AIRS[frame.weather]
    lost = np.zeros(256, np.float32)
    for thing in frame.things:
        away = math.hypot(thing.x - frame.ego.x, thing.y - frame.ego.y)
        lost[thing.id] = min(air.cap, 1 - math.exp(-away / air.thing_reach))
    where = np.flatnonzero(ids.ravel())
    pixels = tiles.reshape(-1, 3)
    share = lost[ids.ravel()[where]][:, None]
    pixels[where] = pixels[where] * (1 - share) + np.array(horizon(frame), np.float32) * share


def draw_rain(frame: Frame, tiles: NDArray[np.uint8]) -> None:
    """Draw bright slanted streaks over pictures [cameras, H, W, 3], in place, from the seed."""
    count, height, width = tiles.shape[:3]
    generator = np.random.default_rng((frame.seed & 0xFFFFFFFF, 0x7A1))
    drops = 26 * count
    tile = np.repeat(np.arange(count), 26)[:, None]
    top = generator.integers(-height // 12, height, drops)[:, None]
    left = generator.integers(0, width, drops)[:, None]
    length = max(4, height // 12)
    thick = max(1, height // 160)
    step = np.arange(length)
    row, column = top + step, left + step // 4
    inside = (row >= 0) & (row < height)
    for extra in range(thick):
        seen = inside & (column + extra < width)
        where = np.broadcast_to(tile, row.shape)[seen], row[seen], (column + extra)[seen]
        tiles[where] = (tiles[where] * 0.62 + np.array((78, 82, 88))).astype(np.uint8)
