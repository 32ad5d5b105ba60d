"""A key frame of the world: where everything is, before anything is drawn or asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["car", "truck", "bus", "cyclist", "pedestrian", "cone", "light"]
Colour = Literal["red", "blue", "green", "yellow", "white", "black", "orange"]
Town = Literal["amber", "birch", "cobalt"]
Weather = Literal["day", "dusk", "night", "rain", "fog"]
Turn = Literal["left", "right"]
Light = Literal["red", "green"]
KINDS: tuple[Kind, ...] = get_args(Kind)
COLOURS: tuple[Colour, ...] = get_args(Colour)
TOWNS: tuple[Town, ...] = get_args(Town)


@dataclass(frozen=True, slots=True)
class Thing:
    """One object on or beside the road, an upright box in the world's axes.

    x and y are in the world's plane [m] with y growing to the LEFT of x (right-handed, z up),
    heading is counter-clockwise from +x [rad]; (x, y) is the centre of the footprint.
    """

    id: int  # 1 … 250, unique in a frame; 0 means background in id maps
    kind: Kind
    colour: Colour
    x: float
    y: float
    heading: float
    length: float
    width: float
    height: float
    speed: float = 0.0  # [m/s] along heading
    braking: bool = False  # brake lamps lit (vehicles)
    turn: Turn | None = None  # blinking indicator (vehicles)
    light: Light | None = None  # state of a traffic light (kind "light"), facing -heading


@dataclass(frozen=True, slots=True)
class Pose:
    """Where the ego vehicle is [m], [rad], and how fast [m/s]."""

    x: float
    y: float
    heading: float
    speed: float


@dataclass(frozen=True, slots=True)
class Strip:
    """A piece of road: a centre line as points [m], its width [m], and how its borders look."""

    points: tuple[tuple[float, float], ...]
    width: float
    left: Literal["none", "dashed", "solid"] = "none"
    right: Literal["none", "dashed", "solid"] = "none"


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything that a camera could see at one instant."""

    seed: int
    town: Town
    weather: Weather
    ego: Pose
    things: tuple[Thing, ...]
    roads: tuple[Strip, ...]
