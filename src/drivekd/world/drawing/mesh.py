"""Shapes of the things on the road, as triangles in a unit box.

A shape fills x -0.5 (rear) to 0.5 (front), y -0.5 (right) to 0.5 (left) and z 0 to 1; the renderer
stretches it to the thing's length, width and height. Lamps are far larger than real ones: at 96 px
a real lamp is one pixel, and one frame shows braking and turning by lamps alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drivekd.world.frame import Colour, Thing

Rgb = tuple[int, int, int]
Rect = tuple[float, float, float, float]  # x from, x to, y from, y to

PAINT: dict[Colour, Rgb] = {
    "red": (190, 6, 16),
    "blue": (20, 70, 240),
    "green": (10, 160, 55),
    "yellow": (250, 220, 0),
    "white": (242, 242, 242),
    "black": (26, 26, 30),
    "orange": (255, 120, 0),
}
GLASS: Rgb = (54, 72, 96)
TYRE: Rgb = (14, 14, 16)
SKIN: Rgb = (228, 172, 132)
HUB: Rgb = (120, 122, 128)
DARK: Rgb = (34, 34, 38)
AMBER: Rgb = (255, 196, 30)
HEAD: Rgb = (255, 255, 236)
BRAKE: Rgb = (255, 14, 44)
BRAKE_CORE: Rgb = (255, 190, 176)
TAIL: Rgb = (64, 6, 14)
# How bright the sides of a box are: rear, front, right, left, top.
SHADE = (0.92, 0.92, 0.8, 0.8, 1.0)


@dataclass(frozen=True, slots=True)
class Mesh:
    """Triangles with one colour a corner.

    points float32 [n, 3]; colours float32 [n, 3] from 0 to 255; glow bool [n], true for lamps
    (night does not darken them); triangles uint16 [m, 3], counter-clockwise seen from outside.
    """

    points: NDArray[np.float32]
    colours: NDArray[np.float32]
    glow: NDArray[np.bool_]
    triangles: NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Part:
    """A box, or a box whose top is smaller than its foot; `faces` recolours single sides."""

    foot: Rect
    low: float
    high: float
    colour: Rgb
    top: Rect | None = None
    glow: bool = False
    faces: tuple[tuple[int, Rgb], ...] = ()  # (0 rear, 1 front, 2 right, 3 left, 4 top)


# The corners (below: 0 to 3, above: 4 to 7) of each side, counter-clockwise from outside.
_SIDES = np.array([(1, 0, 4, 5), (3, 2, 6, 7), (0, 3, 7, 4), (2, 1, 5, 6), (4, 7, 6, 5)])
_QUAD = np.array([(0, 1, 2), (0, 2, 3)])


def build(parts: Sequence[Part]) -> Mesh:
    """Join parts into one mesh; boxes have no underside."""
    corners = np.array([_corners(part) for part in parts], np.float32)  # [p, 8, 3]
    points = corners[:, _SIDES].reshape(-1, 3)
    colours = np.array([_side_colours(part) for part in parts], np.float32)  # [p, 5, 3]
    glow = np.repeat([part.glow for part in parts], 20)
    return Mesh(points, np.repeat(colours.reshape(-1, 3), 4, axis=0), glow, quads(len(points) // 4))


def quads(count: int) -> NDArray[np.uint16]:
    """Return triangles uint16 [2 * count, 3] of quads whose corners follow each other."""
    corners: NDArray[np.uint16] = np.arange(count * 4, dtype=np.uint16).reshape(count, 4)
    return corners[:, _QUAD].reshape(-1, 3)


def join(meshes: Sequence[Mesh]) -> Mesh:
    """Join several meshes into one."""
    starts = np.cumsum([0, *(len(mesh.points) for mesh in meshes)])
    return Mesh(
        np.concatenate([mesh.points for mesh in meshes]),
        np.concatenate([mesh.colours for mesh in meshes]),
        np.concatenate([mesh.glow for mesh in meshes]),
        np.concatenate(
            [mesh.triangles + np.uint16(at) for mesh, at in zip(meshes, starts, strict=False)]
        ),
    )


def _corners(part: Part) -> list[tuple[float, float, float]]:
    ring = []
    for (x0, x1, y0, y1), z in ((part.foot, part.low), (part.top or part.foot, part.high)):
        ring += [(x0, y0, z), (x0, y1, z), (x1, y1, z), (x1, y0, z)]
    return ring


def _side_colours(part: Part) -> list[tuple[float, ...]]:
    faces = dict(part.faces)
    shade = (1.0,) * 5 if part.glow else SHADE
    return [
        tuple(value * shade[side] for value in faces.get(side, part.colour)) for side in range(5)
    ]


def thing_mesh(thing: Thing) -> Mesh:
    """The shape of a thing in its unit box; equal for things that differ in place and size only."""
    if thing.kind in ("car", "truck", "bus"):
        body = build([*_VEHICLES[thing.kind](PAINT[thing.colour]), *_lamps(thing)])
        return join([body, _discs(*_WHEELS[thing.kind], aside=0.493)])
    if thing.kind == "cyclist":
        return join([build(_cyclist(PAINT[thing.colour])), _discs(*_WHEELS["cyclist"], aside=0.04)])
    if thing.kind == "light":
        return build(_light(thing))
    return build(_pedestrian(PAINT[thing.colour]) if thing.kind == "pedestrian" else _cone())


def _brake_band(low: float, high: float) -> list[Part]:
    """Light the whole width of the rear, with a hot core, framed: a red car must show it too."""
    middle, half = (low + high) / 2, (high - low) * 0.17
    core = (-0.5, -0.47, -0.47, 0.47)
    return [
        Part((-0.496, -0.47, -0.48, 0.48), low - 0.05, high + 0.05, DARK),
        Part((-0.498, -0.47, -0.47, 0.47), low, high, BRAKE, glow=True),
        Part(core, middle - half, middle + half, BRAKE_CORE, glow=True),
    ]


def _tail(low: float, high: float) -> list[Part]:
    """Paint unlit lamps: dark red at both corners, paint between them."""
    return [
        Part((-0.498, -0.47, y0, y1), low, high, TAIL) for y0, y1 in ((-0.48, -0.2), (0.2, 0.48))
    ]


# Middles along the length, half a length and the height of each kind's wheels.
_WHEELS: dict[str, tuple[tuple[float, ...], float, float]] = {
    "car": ((-0.3, 0.3), 0.08, 0.44),
    "truck": ((-0.36, -0.22, 0.36), 0.056, 0.27),
    "bus": ((-0.3, 0.32), 0.05, 0.29),
    "cyclist": ((-0.3, 0.3), 0.2, 0.4),
}


def _treads(kind: str) -> list[Part]:
    """Build wheels as seen from the front and the rear; `_discs` draws their sides."""
    places, size, tall = _WHEELS[kind]
    return [
        Part((x - size * 0.7, x + size * 0.7, y0, y1), 0, tall * 0.85, TYRE)
        for x in places
        for y0, y1 in ((-0.49, -0.34), (0.34, 0.49))
    ]


def _car(paint: Rgb) -> list[Part]:
    side = tuple(int(value * 0.9) for value in paint)
    cabin = (-0.40, 0.16, -0.44, 0.44)
    roof = (-0.30, 0.02, -0.38, 0.38)
    return [
        Part((-0.49, 0.49, -0.46, 0.46), 0.12, 0.66, paint),
        Part(cabin, 0.66, 0.96, GLASS, roof),
        Part((-0.31, 0.03, -0.39, 0.39), 0.94, 1.0, paint),
        # Pillars keep the paint in sight between the windows.
        Part((-0.16, -0.10, -0.45, 0.45), 0.66, 0.96, (side[0], side[1], side[2]),
             (-0.16, -0.10, -0.40, 0.40)),
        *(Part((-0.405, -0.3, y0, y1), 0.66, 0.96, paint, (-0.31, -0.28, y0 * 0.87, y1 * 0.87))
          for y0, y1 in ((-0.46, -0.30), (0.30, 0.46))),
        Part((0.485, 0.5, -0.24, 0.24), 0.34, 0.5, DARK),
        *_treads("car"),
    ]  # fmt: skip


def _truck(paint: Rgb) -> list[Part]:
    trim = (205, 205, 205) if sum(paint) < 600 else (120, 120, 126)
    return [
        Part((-0.5, 0.5, -0.4, 0.4), 0.1, 0.2, DARK),
        Part((-0.49, 0.2, -0.49, 0.49), 0.2, 0.98, paint),
        Part((-0.495, 0.205, -0.495, 0.495), 0.9, 1.0, trim),
        Part((-0.495, 0.205, -0.495, 0.495), 0.2, 0.25, trim),
        Part((-0.497, -0.48, -0.02, 0.02), 0.25, 0.9, trim),
        Part((0.25, 0.49, -0.46, 0.46), 0.12, 0.52, paint),
        Part((0.25, 0.485, -0.455, 0.455), 0.52, 0.74, GLASS, (0.25, 0.44, -0.44, 0.44)),
        Part((0.25, 0.44, -0.45, 0.45), 0.74, 0.8, paint),
        Part((0.485, 0.5, -0.26, 0.26), 0.2, 0.36, DARK),
        *_treads("truck"),
    ]


def _bus(paint: Rgb) -> list[Part]:
    posts = [
        Part((x - 0.012, x + 0.012, -0.492, 0.492), 0.48, 0.82, paint)
        for x in (-0.3, -0.12, 0.06, 0.24)
    ]
    return [
        Part((-0.49, 0.49, -0.485, 0.485), 0.1, 0.48, paint),
        Part((-0.485, 0.485, -0.48, 0.48), 0.48, 0.82, GLASS),
        Part((-0.49, 0.49, -0.485, 0.485), 0.82, 1.0, paint),
        Part((-0.49, -0.44, -0.485, 0.485), 0.48, 0.82, paint),
        Part((-0.495, -0.49, -0.34, 0.34), 0.6, 0.86, GLASS),
        Part((0.485, 0.497, -0.3, 0.3), 0.84, 0.96, (255, 226, 150), glow=True),
        *posts,
        *_treads("bus"),
    ]


_VEHICLES = {"car": _car, "truck": _truck, "bus": _bus}
# Height of the brake band, of the head lamps and of the blinkers for each vehicle.
_LAMPS = {
    "car": ((0.38, 0.70), (0.36, 0.60), (0.14, 0.80)),
    "truck": ((0.20, 0.46), (0.18, 0.34), (0.12, 0.66)),
    "bus": ((0.16, 0.46), (0.16, 0.34), (0.12, 0.70)),
}


def _lamps(thing: Thing) -> list[Part]:
    """Build tail or brake lamps, head lamps, and columns of amber at the turning side."""
    (band, tip), (head, brow), (foot, crown) = _LAMPS[thing.kind]
    parts = [
        Part((0.48, 0.5, y0, y1), head, brow, HEAD, glow=True, faces=((2, DARK), (3, DARK)))
        for y0, y1 in ((-0.46, -0.22), (0.22, 0.46))
    ]
    parts += _brake_band(band, tip) if thing.braking else _tail(band, tip)
    if thing.turn is not None:
        sign = 1 if thing.turn == "left" else -1
        for x0, x1 in ((-0.5, -0.43), (0.43, 0.5)):
            y0, y1 = sorted((sign * 0.26, sign * 0.5))
            parts.append(Part((x0, x1, y0, y1), foot, crown, AMBER, glow=True))
            # A dark edge, without which amber is lost on a yellow or orange vehicle.
            y0, y1 = sorted((sign * 0.17, sign * 0.495))
            parts.append(Part((x0 * 0.999, x1 * 0.999, y0, y1), foot, crown + 0.03, DARK))
    return parts


def _discs(places: Sequence[float], size: float, tall: float, aside: float) -> Mesh:
    """Build wheels as seen from both sides: eight corners around, lighter hubs, at ± aside."""
    turn = np.arange(8) * np.pi / 4
    rim = np.stack([np.cos(turn) * size, 0 * turn, np.sin(turn) * tall / 2 + tall / 2], 1)
    hub = (rim - (0, 0, tall / 2)) * 0.45 + (0, 0, tall / 2)
    fan = np.array([(0, i, i + 1) for i in range(1, 7)])  # counter-clockwise from the right
    points: list[NDArray[np.float64]] = []
    triangles: list[NDArray[np.int64]] = []
    for x in places:
        for y, flip in ((-aside, 1), (aside, -1)):
            for ring, out in ((rim, 0.0), (hub, 0.004)):
                triangles.append(fan[:, ::flip] + 8 * len(points))
                points.append(ring + np.array((x, y + math.copysign(out, y), 0)))
    colours = np.tile(np.repeat([TYRE, HUB], 8, axis=0), (len(points) // 2, 1)).astype(np.float32)
    return Mesh(
        np.concatenate(points).astype(np.float32),
        colours,
        np.zeros(len(colours), np.bool_),
        np.concatenate(triangles).astype(np.uint16),
    )


def _cyclist(paint: Rgb) -> list[Part]:
    return [
        Part((-0.3, 0.3, -0.06, 0.06), 0.2, 0.28, (150, 150, 156)),
        Part((-0.34, -0.26, -0.08, 0.08), 0.0, 0.36, TYRE),
        Part((0.26, 0.34, -0.08, 0.08), 0.0, 0.36, TYRE),
        Part((-0.16, 0.06, -0.3, 0.3), 0.22, 0.48, (44, 48, 66)),
        Part((-0.2, 0.02, -0.46, 0.46), 0.45, 0.84, paint, (-0.02, 0.16, -0.5, 0.5)),
        Part((0.04, 0.34, -0.48, -0.3), 0.58, 0.68, paint),
        Part((0.04, 0.34, 0.3, 0.48), 0.58, 0.68, paint),
        Part((0.28, 0.34, -0.5, 0.5), 0.56, 0.61, DARK),
        Part((0.0, 0.14, -0.2, 0.2), 0.84, 0.94, SKIN),
        Part((-0.03, 0.16, -0.23, 0.23), 0.92, 1.0, (236, 236, 236)),
    ]


def _pedestrian(paint: Rgb) -> list[Part]:
    return [
        Part((-0.16, 0.16, -0.3, -0.04), 0, 0.42, (52, 54, 70)),
        Part((-0.16, 0.16, 0.04, 0.3), 0, 0.42, (52, 54, 70)),
        Part((-0.24, 0.24, -0.34, 0.34), 0.38, 0.84, paint, (-0.26, 0.26, -0.4, 0.4)),
        Part((-0.2, 0.2, -0.5, -0.34), 0.44, 0.82, paint),
        Part((-0.2, 0.2, 0.34, 0.5), 0.44, 0.82, paint),
        Part((-0.22, 0.22, -0.2, 0.2), 0.85, 0.97, SKIN, faces=((0, (70, 44, 28)),)),
        Part((-0.23, 0.16, -0.22, 0.22), 0.95, 1.0, (70, 44, 28)),
    ]


def _cone() -> list[Part]:
    def rect(half: float) -> Rect:
        return (-half, half, -half, half)

    orange: Rgb = (255, 104, 0)
    return [
        Part(rect(0.5), 0, 0.07, (40, 34, 30)),
        Part(rect(0.40), 0.07, 0.42, orange, rect(0.27)),
        Part(rect(0.27), 0.42, 0.66, (250, 250, 250), rect(0.18)),
        Part(rect(0.18), 0.66, 1.0, orange, rect(0.05)),
    ]


def _light(thing: Thing) -> list[Part]:
    """Build a mast with a box whose lamps fill the side that faces the drivers (the rear)."""
    red = (255, 20, 20) if thing.light == "red" else (54, 16, 16)
    hood = ((2, DARK), (3, DARK), (4, DARK))
    green = (0, 255, 90) if thing.light == "green" else (12, 46, 24)
    return [
        Part((-0.12, 0.12, -0.08, 0.08), 0, 0.58, (96, 98, 104)),
        Part((-0.4, 0.5, -0.5, 0.5), 0.56, 1.0, (18, 18, 20)),
        Part((-0.5, -0.4, -0.45, 0.45), 0.79, 0.985, red, None, thing.light == "red", hood),
        Part((-0.5, -0.4, -0.45, 0.45), 0.575, 0.77, green, None, thing.light == "green", hood),
    ]
