"""Scenery that no question names: sky, ground, roads, markings, buildings.

Built anew for every frame as a few large arrays: cheaper than keeping nodes, and haze can be mixed
into the colours by distance. Everything hangs on the world's plane, not on the ego, so that a
sequence of frames shows a town that does not move.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from drivekd.world.drawing import weather
from drivekd.world.drawing.mesh import Part, build, quads
from drivekd.world.frame import Frame, Strip

Array = NDArray[np.float32]
REACH = 110.0  # how far from the ego anything is drawn [m]
TILE = 18.0  # side of a piece of ground [m]: beyond about 20 m the renderer drops pieces
STEP = 3.0  # spacing of points along a road [m]; also the length of a dash
MOST = 65_532  # corners in one piece: a multiple of 4 that 16 bits can count
LINE = 0.34  # width of a painted line [m], twice a real one


@dataclass(frozen=True, slots=True)
class Layer:
    """Quads to draw: points [4 * q, 3] in metres, colours [4 * q, 3] from 0 to 255."""

    points: Array
    colours: Array


@dataclass(frozen=True, slots=True)
class Scenery:
    """`flat` is drawn first and without depth, back to front; `solid` hides what is behind it."""

    flat: Layer
    solid: Layer


@dataclass(frozen=True, slots=True)
class Line:
    """A strip of road resampled every STEP metres: points [n, 2], normals to the left [n, 2]."""

    points: Array
    left: Array
    strip: Strip


def scenery(frame: Frame) -> Scenery:
    """Build all surroundings of one frame, hazed and lit."""
    lines = [_line(strip) for strip in frame.roads]
    flat = [_ground(frame), _roads(frame, lines), _markings(frame, lines), _shadows(frame)]
    solid = _buildings(frame, lines)
    return Scenery(_join([_sky(frame), *(_air(frame, layer) for layer in flat)]),
                   _air(frame, solid))  # fmt: skip


def _join(layers: list[Layer]) -> Layer:
    return Layer(
        np.concatenate([layer.points for layer in layers]),
        np.concatenate([layer.colours for layer in layers]),
    )


def _air(frame: Frame, layer: Layer) -> Layer:
    """Light and haze on a layer."""
    away = np.hypot(layer.points[:, 0] - frame.ego.x, layer.points[:, 1] - frame.ego.y)
    lit = layer.colours * np.array(weather.AIRS[frame.weather].scenery, np.float32)
    # Lit windows are marked by colours above 255: they keep their brightness at night.
    glow = layer.colours.max(1, initial=0, keepdims=True) > 255
    lit = np.where(glow, np.minimum(layer.colours, 255), lit).astype(np.float32)
    return Layer(layer.points, weather.haze(frame, lit, away.astype(np.float32)))


def _sky(frame: Frame) -> Layer:
    """Build a ring of panels around the ego from the horizon up, shaded to the zenith."""
    dome = _dome()
    low, high = np.array(weather.horizon(frame)), np.array(weather.sky(frame))
    colours = low + (high - low) * dome[:, 3:]
    points = dome[:, :3] + np.array((frame.ego.x, frame.ego.y, 0))
    return Layer(points.astype(np.float32), colours.astype(np.float32))


@lru_cache(maxsize=1)
def _dome() -> Array:
    """Corners of the sky's panels [4 * q, 4]: x, y, z [m], and the share of the zenith's colour."""
    turn = np.linspace(0, 2 * np.pi, 25)
    ring = np.stack([np.cos(turn), np.sin(turn)], 1) * 160
    levels = ((-8.0, 0.0), (1.6, 0.0), (22.0, 0.45), (60.0, 0.85), (190.0, 1.0))
    corners = [
        (*ring[at], *levels[up])
        for level in range(4)
        for side in range(24)
        for at, up in (
            (side + 1, level), (side, level), (side, level + 1), (side + 1, level + 1)
        )
    ]  # fmt: skip
    return np.array(corners, np.float32)


def _ground(frame: Frame) -> Layer:
    """Lay tiles around the ego, each a little darker or lighter by its place in the world."""
    reach = math.ceil(REACH / TILE)
    across = np.arange(-reach, reach)
    columns, rows = np.meshgrid(
        across + math.floor(frame.ego.x / TILE), across + math.floor(frame.ego.y / TILE)
    )
    column, row = columns.ravel(), rows.ravel()
    corner = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
    flat = (np.stack([column, row], 1)[:, None] + corner) * TILE
    points = np.concatenate([flat, np.zeros((*flat.shape[:2], 1))], 2).reshape(-1, 3)
    tone = 0.94 + 0.12 * hashed(column, row, frame.seed & 0xFF)
    colours = np.repeat(tone, 4)[:, None] * np.array(weather.PALETTES[frame.town].ground)
    return Layer(points.astype(np.float32), np.minimum(colours, 255).astype(np.float32))


def hashed(column: NDArray[np.int64], row: NDArray[np.int64], salt: int) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each cell of the world's plane, always the same."""
    mixed = (column * 374761393 + row * 668265263 + salt * 974711) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 13)) * 1274126177) & 0xFFFFFFFF
    return np.asarray((mixed ^ (mixed >> 16)) % 4096 / 4096.0)


def _line(strip: Strip) -> Line:
    knots = np.array(strip.points, np.float64)
    span = np.hypot(*np.diff(knots, axis=0).T)
    along = np.concatenate([[0], np.cumsum(span)])
    count = max(2, round(along[-1] / STEP) + 1)
    at = np.linspace(0, along[-1], count)
    points = np.stack([np.interp(at, along, knots[:, 0]), np.interp(at, along, knots[:, 1])], 1)
    ahead = np.gradient(points, axis=0)
    ahead /= np.maximum(np.hypot(ahead[:, 0], ahead[:, 1]), 1e-9)[:, None]
    left = np.stack([-ahead[:, 1], ahead[:, 0]], 1)
    return Line(points.astype(np.float32), left.astype(np.float32), strip)


def _ribbon(frame: Frame, line: Line, right: float, left: float, every: int = 1) -> Array:
    """Cut quads [q, 4, 3] between two distances to the left of a line; every n-th piece only."""
    near = np.hypot(*(line.points - (frame.ego.x, frame.ego.y)).T) < REACH
    first = np.flatnonzero(near[:-1] & near[1:])
    if every > 1:
        first = first[first % every == 0]
    low, high = line.points + line.left * right, line.points + line.left * left
    flat = np.stack([low[first], low[first + 1], high[first + 1], high[first]], 1)
    points = np.concatenate([flat, np.zeros((*flat.shape[:2], 1), np.float32)], 2)
    return points.astype(np.float32)


def _painted(pieces: list[Array], colour: tuple[float, float, float]) -> Layer:
    points = np.concatenate([np.zeros((0, 4, 3), np.float32), *pieces]).reshape(-1, 3)
    return Layer(points, np.tile(np.array(colour, np.float32), (len(points), 1)))


def _roads(frame: Frame, lines: list[Line]) -> Layer:
    kerb = [_ribbon(frame, line, -line.strip.width / 2 - 1.6, line.strip.width / 2 + 1.6)
            for line in lines]  # fmt: skip
    road = [_ribbon(frame, line, -line.strip.width / 2 - 0.3, line.strip.width / 2 + 0.3)
            for line in lines]  # fmt: skip
    palette = weather.PALETTES[frame.town]
    pavement = tuple(value * 0.55 + 84 for value in palette.ground)
    return _join([_painted(kerb, (pavement[0], pavement[1], pavement[2])),
                  _painted(road, palette.road)])  # fmt: skip


def _markings(frame: Frame, lines: list[Line]) -> Layer:
    pieces = []
    for line in lines:
        edge = line.strip.width / 2
        if line.strip.left != "none":
            every = 3 if line.strip.left == "dashed" else 1
            pieces.append(_ribbon(frame, line, edge - LINE, edge, every))
        if line.strip.right != "none":
            every = 3 if line.strip.right == "dashed" else 1
            pieces.append(_ribbon(frame, line, -edge, LINE - edge, every))
    return _painted(pieces, weather.PALETTES[frame.town].paint)


def _shadows(frame: Frame) -> Layer:
    """Put a dark patch below every thing, so that it seems to touch the road."""
    road = weather.PALETTES[frame.town].road
    pieces = [np.zeros((0, 4, 3), np.float32)]
    for thing in frame.things:
        ahead = np.array((math.cos(thing.heading), math.sin(thing.heading), 0))
        left = np.array((-ahead[1], ahead[0], 0))
        along, aside = ahead * (thing.length / 2 + 0.15), left * (thing.width / 2 + 0.2)
        centre = np.array((thing.x, thing.y, 0))
        corners = [centre - along - aside, centre + along - aside,
                   centre + along + aside, centre - along + aside]  # fmt: skip
        pieces.append(np.array([corners], np.float32))
    return _painted(pieces, (road[0] * 0.45, road[1] * 0.45, road[2] * 0.45))


def _sites(frame: Frame, lines: list[Line]) -> NDArray[np.float64]:
    """Choose places of buildings: [n, 5] x, y, heading, and two numbers in [0, 1) for the looks."""
    if not lines:
        return np.zeros((0, 5))
    road = np.concatenate([line.points[::2] for line in lines])
    normal = np.concatenate([line.left[::2] for line in lines])
    half = np.concatenate([np.full(len(line.points[::2]), line.strip.width / 2) for line in lines])
    setback = (half + 15.0).astype(np.float32)[:, None]
    spots = np.concatenate([road + normal * setback, road - normal * setback])
    heading = np.tile(np.arctan2(-normal[:, 0], normal[:, 1]), 2)
    near = np.hypot(*(spots - (frame.ego.x, frame.ego.y)).T) < REACH - 10
    spots, heading = _thinned(spots[near], heading[near], 5)
    near = np.hypot(*(road - (frame.ego.x, frame.ego.y)).T) < REACH + 20
    gap = np.hypot(*np.moveaxis(spots[:, None] - road[None, near], 2, 0)) - half[near]
    free = gap.min(1, initial=np.inf) > 14.0
    # One building for each cell of a lattice, so that parallel lanes do not pile them up.
    spots, heading = _thinned(spots[free], heading[free], 17)
    kept: list[int] = []
    for place, spot in enumerate(spots):
        if not kept or np.hypot(*(spots[kept] - spot).T).min() > 15.0:
            kept.append(place)
    spots, heading = spots[kept], heading[kept]
    column, row = np.floor(spots / 17).astype(np.int64).T
    looks = [hashed(column, row, salt + (frame.seed & 0xFFFF)) for salt in (1, 2)]
    return np.column_stack([spots, heading, *looks])


def _thinned(spots: Array, heading: Array, cell: float) -> tuple[Array, Array]:
    """Keep the first of the spots [n, 2] in each square cell [m] of the world's plane."""
    _, first = np.unique(np.floor(spots / cell), axis=0, return_index=True)
    return spots[first], heading[first]


def _buildings(frame: Frame, lines: list[Line]) -> Layer:
    """Build houses along the roads in the town's style."""
    layers = [_painted([], (0, 0, 0))]
    shapes = {}
    for x, y, heading, look, tall in _sites(frame, lines):
        key = (int(look * 3), bool(tall < weather.AIRS[frame.weather].lit_windows))
        if key not in shapes:
            shapes[key] = build(_STYLES[frame.town](frame, *key))
        shape = shapes[key]
        size = np.array(_SIZES[frame.town]) * (1, 1, 0.7 + 0.6 * tall)
        points = shape.points * size.astype(np.float32)
        cos, sin = math.cos(heading), math.sin(heading)
        turned = points @ np.array([(cos, sin, 0), (-sin, cos, 0), (0, 0, 1)], np.float32)
        layers.append(Layer(turned + np.array((x, y, 0), np.float32), shape.colours))
    return _join(layers)


def _storeys(frame: Frame, wall: int, lit: bool, floors: int) -> list[Part]:
    palette = weather.PALETTES[frame.town]
    window = (300, 236, 140) if lit else palette.window
    parts = []
    for floor in range(floors):
        low, high = floor / floors, (floor + 1) / floors
        glass = low + 0.4 * (high - low)
        box = (-0.5, 0.5, -0.5, 0.5)
        parts.append(Part(box, low, glass, palette.walls[wall]))
        sides = tuple((side, palette.walls[wall]) for side in (0, 1)) if floors < 3 else ()
        parts.append(Part(box, glass, high - 0.06, window, glow=lit, faces=sides))
        parts.append(Part(box, high - 0.06, high, palette.walls[wall]))
    return parts


def _flat_house(frame: Frame, wall: int, lit: bool) -> list[Part]:
    roof = weather.PALETTES[frame.town].roof
    top = Part((-0.505, 0.505, -0.505, 0.505), 0.95, 1.06, roof)
    return [*_storeys(frame, wall, lit, 2), top]


def _gabled_house(frame: Frame, wall: int, lit: bool) -> list[Part]:
    palette = weather.PALETTES[frame.town]
    roof = Part((-0.505, 0.505, -0.505, 0.505), 0.98, 1.7, palette.roof, (-0.5, 0.5, -0.02, 0.02))
    tree = [
        Part((0.78, 0.84, 0.1, 0.2), 0, 0.5, (110, 84, 64)),
        Part((0.58, 1.04, -0.25, 0.55), 0.4, 1.9, (74, 112, 66), (0.78, 0.84, 0.1, 0.2)),
    ]
    return [*_storeys(frame, wall, lit, 1), roof, *tree]


def _tower(frame: Frame, wall: int, lit: bool) -> list[Part]:
    return _storeys(frame, wall, lit, 4 + wall)


_STYLES = {"amber": _flat_house, "birch": _gabled_house, "cobalt": _tower}
_SIZES = {"amber": (14, 13, 7.5), "birch": (11, 10, 4.5), "cobalt": (13, 13, 26)}


def pieces(layer: Layer) -> Iterator[tuple[Array, Array, NDArray[np.uint16]]]:
    """Split a layer into points, colours and triangles that 16-bit corners can count."""
    for start in range(0, len(layer.points), MOST):
        points = layer.points[start : start + MOST]
        yield points, layer.colours[start : start + MOST], quads(len(points) // 4)
