"""Who moves on the embedded world's roads, and what happens next.

The driver models are highway-env's: IDM for following (Treiber, Hennecke and Helbing 2000), its
steering control for lane changes, and the kinematic bicycle model (Polack et al. 2017). Who changes
lane is decided when a scene is drawn, so that the indicators show it: highway-env's own choice of
lane (MOBIL; Kesting, Treiber and Helbing 2007) is switched off. This module adds road users that
highway-env lacks (pedestrians, cones, traffic off the ego's road) and the six-way look ahead from
which every answer about planning is taken. highway-env's y axis points to the right; `Frame`'s
points to the left.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from highway_env.road.road import Road
from highway_env.vehicle.behavior import IDMVehicle
from highway_env.vehicle.controller import ControlledVehicle
from highway_env.vehicle.kinematics import Vehicle
from numpy.typing import NDArray

from drivekd.world.frame import Colour, Kind, Turn

Action = Literal["keep speed", "accelerate", "slow down", "stop", "lane left", "lane right"]
ACTIONS: tuple[Action, ...] = get_args(Action)
Intent = Literal["keep", "brake", "left", "right"]
STEP = 0.25  # [s]
HORIZON = 4.0  # [s]
SPEED_CHANGE = 4.0  # [m/s] what "accelerate" and "slow down" aim for
#: length, width, height [m]
SIZES: dict[Kind, tuple[float, float, float]] = {
    "car": (4.4, 1.9, 1.6),
    "truck": (8.0, 2.4, 3.2),
    "bus": (9.5, 2.5, 3.0),
    "cyclist": (1.8, 0.8, 1.8),
    "pedestrian": (0.7, 0.8, 1.8),
    "cone": (1.0, 1.0, 1.5),
    "light": (0.6, 1.6, 4.6),
}


class Driver(IDMVehicle):
    """A vehicle or cyclist that follows its lane by IDM and may brake or change lane on purpose."""

    number: int = 0  # the thing's id
    kind: Kind = "car"
    colour: Colour = "white"
    intent: Intent = "keep"
    speed: float

    def set_up(self, kind: Kind, colour: Colour, intent: Intent) -> Driver:
        """Give the driver a body and a plan; the plan is what the lamps show."""
        self.kind, self.colour, self.intent = kind, colour, intent
        self.LENGTH, self.WIDTH = SIZES[kind][:2]
        self.diagonal = float(np.hypot(self.LENGTH, self.WIDTH))
        self.enable_lane_change = False
        if intent == "brake":
            self.target_speed = 0.15 * self.speed
        if intent in ("left", "right"):
            start, end, lane = self.lane_index
            side = -1 if intent == "left" else 1
            self.target_lane_index = (start, end, lane + side)
        return self

    def step(self, dt: float) -> None:
        """Go on for `dt` [s]; IDM would back away from what is too near, drivers do not."""
        super().step(dt)
        self.speed = max(self.speed, 0.0)

    @property
    def braking(self) -> bool:
        return self.intent == "brake" or self.speed < 0.5

    @property
    def turn(self) -> Turn | None:
        return self.intent if self.intent in ("left", "right") else None

    def acceleration(
        self, ego_vehicle: Any, front_vehicle: Any = None, rear_vehicle: Any = None
    ) -> float:
        """IDM, with a comfortable constant brake for drivers that slow on purpose [m/s²]."""
        following = super().acceleration(ego_vehicle, front_vehicle, rear_vehicle)
        if ego_vehicle is self and self.intent == "brake":
            return min(float(following), -4.0 if self.speed > self.target_speed else 0.0)
        return float(following)


class Mover(Vehicle):
    """Whoever keeps to a course of its own: walkers, crossing and oncoming traffic, cones."""

    number: int = 0  # the thing's id
    kind: Kind = "pedestrian"
    colour: Colour = "red"
    yaw_rate: float = 0.0  # [rad/s]
    position: NDArray[np.float64]
    velocity: NDArray[np.float64]

    def set_up(self, kind: Kind, colour: Colour, yaw_rate: float = 0.0) -> Mover:
        """Give the mover a body and, on a roundabout, a turning rate [rad/s]."""
        self.kind, self.colour, self.yaw_rate = kind, colour, yaw_rate
        self.LENGTH, self.WIDTH = SIZES[kind][:2]
        self.diagonal = float(np.hypot(self.LENGTH, self.WIDTH))
        self.check_collisions = False  # among themselves: nothing stops them anyway
        return self

    def act(self, action: Any = None) -> None:
        """Decide nothing."""

    def step(self, dt: float) -> None:
        self.position = self.position + self.velocity * dt
        self.heading += self.yaw_rate * dt


class Ego(ControlledVehicle):
    """The vehicle that carries the cameras, driven by one of the six actions."""

    LENGTH = 4.4
    WIDTH = 1.9
    number: int = 0
    lanes: int = 1  # how many lanes, from the left, are its to use

    def take(self, action: Action) -> None:
        """Aim for what the action names; an absent lane leaves the vehicle in its own."""
        start, end, lane = self.lane_index
        if action == "accelerate":
            self.target_speed = self.speed + SPEED_CHANGE
        elif action == "slow down":
            self.target_speed = max(self.speed - SPEED_CHANGE, 1.0)
        elif action == "stop":
            self.target_speed = 0.0
        elif action == "lane left":
            self.target_lane_index = (start, end, max(lane - 1, 0))
        elif action == "lane right":
            self.target_lane_index = (start, end, min(lane + 1, self.lanes - 1))

    def speed_control(self, target_speed: float) -> float:
        """Proportional control, bounded to what a calm driver does [m/s²]."""
        return float(np.clip(super().speed_control(target_speed), -6.0, 2.5))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one action leads to within the horizon."""

    #: the id of what the ego vehicle collides with, 0 for nothing; whoever runs into its back is at
    #: fault for that and does not count
    collision: int
    #: the smallest distance between the ego's bumper and anything ahead in its path [m], infinite
    #: where nothing is
    gap: float
    time_to_collision: float  # the smallest one within the horizon, capped at 10 [s]
    ran_red: bool  # whether the ego crossed a stop line at red
    progress: float  # distance driven along the road [m]
    left_lane: bool  # whether the action asked for a lane that is not there


@dataclass(frozen=True, slots=True)
class Future:
    """How another road user moves within the horizon while the ego keeps its speed."""

    speed_change: float  # [m/s]
    sideways: float  # [m], positive to its own left
    in_ego_path: bool


def _ahead(ego: Ego, other: Vehicle) -> tuple[float, float]:
    """Bumper distance to `other` in the ego's path and the closing speed [m], [m/s]."""
    along = float((other.position - ego.position) @ ego.direction)
    normal = np.array([-ego.direction[1], ego.direction[0]])
    across = abs(float((other.position - ego.position) @ normal))
    facing = abs(float(other.direction @ ego.direction))
    half_length = other.LENGTH / 2 * facing + other.WIDTH / 2 * (1 - facing)
    half_width = other.WIDTH / 2 * facing + other.LENGTH / 2 * (1 - facing)
    if along <= 0 or across > ego.WIDTH / 2 + half_width + 0.2:
        return np.inf, 0.0
    closing = float((ego.velocity - other.velocity) @ ego.direction)
    return max(along - half_length - ego.LENGTH / 2, 0.0), closing


def _at_fault(ego: Ego, other: Vehicle) -> bool:
    """Whether a contact is the ego's: not when it is run into from behind in its own lane."""
    nose = max(float((corner - ego.position) @ ego.direction) for corner in other.polygon())
    changing = ego.target_lane_index != ego.lane_index or abs(ego.heading) > 0.03
    return bool(nose > -ego.LENGTH / 4 or changing)


def look_ahead(road: Road, action: Action, stop_line: float | None) -> tuple[Outcome, Road]:
    """Roll the world forward under one action on a copy; the road that is given does not change.

    Returns the outcome and the road at the end of the horizon. The ego is the road's first vehicle,
    the others are `Driver`s and `Mover`s; `stop_line` is the place of one at red [m].
    """
    fixed = (road.network, *road.network.lanes_list())  # the same in every future
    road = copy.deepcopy(road, {id(part): part for part in fixed})
    ego: Ego = road.vehicles[0]
    start = float(ego.position[0])
    wanted = {"lane left": -1, "lane right": 1}.get(action, 0) + ego.lane_index[2]
    ego.take(action)
    left_lane = action.startswith("lane") and ego.target_lane_index[2] != wanted
    gap, soonest, hit = np.inf, 10.0, 0
    for _ in range(round(HORIZON / STEP)):
        road.act()
        road.step(STEP)
        for other in road.vehicles[1:]:
            distance, closing = _ahead(ego, other)
            gap = min(gap, distance)
            if closing > 0.1 and distance < np.inf:
                soonest = min(soonest, distance / closing)
            # highway-env foresees a contact within the next step, then pushes the two apart and
            # calls them crashed: afterwards they need not overlap any more
            if not hit and any(ego._is_colliding(other, STEP)[:2]):
                hit = other.number if _at_fault(ego, other) else -1
        if ego.crashed:
            break
    progress = float(ego.position[0]) - start
    ran_red = stop_line is not None and float(ego.position[0]) + ego.LENGTH / 2 > stop_line
    collision = max(hit, 0) if ego.crashed else 0
    return Outcome(collision, float(gap), soonest, ran_red, progress, left_lane), road
