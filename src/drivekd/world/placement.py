"""Road users as a scene begins: an event that calls for a wanted action, then bystanders."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from highway_env.road.road import Road
from highway_env.utils import are_polygons_intersecting
from numpy.typing import NDArray

from drivekd.world.frame import COLOURS, Colour, Kind, Light, Strip, Thing
from drivekd.world.plan import Event, Plan, RoadType
from drivekd.world.traffic import SIZES, Driver, Ego, Intent, Mover

_VEHICLES: tuple[Kind, ...] = ("car", "car", "truck", "bus")
_BESIDE: tuple[Kind, ...] = ("pedestrian", "pedestrian", "cyclist", "car")
_PAINTS: tuple[Colour, ...] = tuple(c for c in COLOURS if c != "orange")
T = TypeVar("T")
_APART = 0.3  # between any two footprints, at least [m]


@dataclass
class Traffic:
    """What was placed besides the vehicles on the road."""

    beside: tuple[Thing, ...] = ()
    roads: tuple[Strip, ...] = ()
    stop_line: float | None = None
    cause: str = "nothing"
    cause_id: int = 0
    taken: list[tuple[int, float]] = field(default_factory=list)  # (lane, x) of placed vehicles
    reserved: list[tuple[int, float, float]] = field(default_factory=list)  # (lane, from, to)


@dataclass
class _Placer:
    """Places road users one by one and numbers them."""

    road: Road
    plan: Plan
    rng: np.random.Generator
    traffic: Traffic = field(default_factory=Traffic)
    count: int = 0
    footprints: list[NDArray[np.float64]] = field(default_factory=list)

    def number(self) -> int:
        self.count += 1
        return self.count

    def paint(self) -> Colour:
        return _pick(self.rng, _PAINTS)

    def vehicle_kind(self) -> Kind:
        return _pick(self.rng, _VEHICLES)

    def driver(self, lane: int, x: float, speed: float, intent: Intent, kind: Kind) -> Driver:
        y = self.road.network.get_lane(("a", "b", lane)).position(0, 0)[1]
        y += float(self.rng.uniform(-0.15, 0.15))
        vehicle = Driver(self.road, [x, y], 0.0, speed, target_speed=max(speed, 0.1))
        vehicle.set_up(kind, self.paint(), intent)
        vehicle.number = self.number()
        self.road.vehicles.append(vehicle)
        self.footprints.append(_footprint(kind, x, y, 0.0))
        self.traffic.taken.append((lane, x))
        return vehicle

    def mover(
        self, x: float, y: float, heading: float, speed: float, kind: Kind, yaw_rate: float = 0.0
    ) -> Mover:
        mover = Mover(self.road, [x, y], heading, speed)
        mover.set_up(kind, "orange" if kind == "cone" else self.paint(), yaw_rate)
        mover.number = self.number()
        self.road.vehicles.append(mover)
        self.footprints.append(_footprint(kind, x, y, heading))
        return mover

    def beside(self, kind: Kind, x: float, y: float, light: Light | None = None) -> Thing:
        """Put a thing that never moves, facing along the road, beside it."""
        length, width, height = SIZES[kind]
        thing = Thing(
            id=self.number(),
            kind=kind,
            colour="black" if kind == "light" else self.paint(),
            x=x,
            y=-y,
            heading=-0.0,  # highway-env's 0, turned as every heading is
            length=length,
            width=width,
            height=height,
            light=light,
        )
        self.traffic.beside += (thing,)
        self.footprints.append(_footprint(kind, x, y, 0.0))
        return thing

    def because(self, cause: str, number: int) -> None:
        self.traffic.cause, self.traffic.cause_id = cause, number

    def reserve(self, lane: int, start: float, end: float) -> None:
        """Keep bystanders off a stretch of a lane [m]."""
        self.traffic.reserved.append((lane, start, end))

    def room(self, lane: int, x: float) -> bool:
        """Whether somebody could change into a lane here without touching anyone."""
        near_ego = lane == self.plan.ego_lane and abs(x) < 14.0
        near = any(on == lane and abs(at - x) <= 8.0 for on, at in self.traffic.taken)
        return not near_ego and not near

    def fits(self, kind: Kind, x: float, y: float, heading: float = 0.0) -> bool:
        """Whether something may be put here without touching what is there already."""
        wanted, still = _footprint(kind, x, y, heading, _APART), np.zeros(2)
        return not any(
            are_polygons_intersecting(wanted, taken, still, still)[0] for taken in self.footprints
        )

    def free(self, lane: int, x: float) -> bool:
        """Whether a bystander may be put here."""
        near = any(on == lane and abs(at - x) < 10.0 for on, at in self.traffic.taken)
        kept = any(on == lane and a <= x <= b for on, a, b in self.traffic.reserved)
        return not near and not kept


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _footprint(
    kind: Kind, x: float, y: float, heading: float, more: float = 0.0
) -> NDArray[np.float64]:
    """Corners [5, 2] of a thing's box in highway-env's axes, the first twice, `more` [m] wider."""
    length, width = SIZES[kind][0] / 2 + more, SIZES[kind][1] / 2 + more
    box = np.array([(-length, -width), (length, -width), (length, width), (-length, width)])
    ahead = np.array([math.cos(heading), math.sin(heading)])
    corners = box[:, :1] * ahead + box[:, 1:] * np.array([-ahead[1], ahead[0]]) + (x, y)
    return np.vstack([corners, corners[:1]])


def populate(road: Road, plan: Plan, rng: np.random.Generator) -> Traffic:
    """Place the ego, the event, what closes or opens the neighbouring lanes, and bystanders."""
    ego = Ego(road, [0.0, plan.ego_lane * plan.lane_width], 0.0, plan.speed)
    ego.lanes = plan.lanes
    road.vehicles.append(ego)
    placer = _Placer(road, plan, rng)
    placer.traffic.taken.append((plan.ego_lane, 0.0))
    placer.footprints.append(_footprint("car", 0.0, plan.ego_lane * plan.lane_width, 0.0))
    _EVENTS[plan.event](placer, plan.ego_lane * plan.lane_width)
    if plan.road_type in _JUNCTIONS:
        _JUNCTIONS[plan.road_type](placer)
    _sides(placer)
    for bystanders in (_passers, _oncoming, _roadside):
        bystanders(placer)
    return placer.traffic


def _middle(plan: Plan) -> float:
    """highway-env y of the middle of the whole road [m]."""
    return (plan.lanes - 1 - plan.oncoming) / 2 * plan.lane_width


def _crossroad(p: _Placer) -> None:
    """Lay a road across, with a vehicle on either side that waits unless the ego's light is red."""
    x = float(p.rng.uniform(22, 30))
    strip = Strip(((x, -60.0), (x, 60.0)), 2 * p.plan.lane_width, "solid", "solid")
    p.traffic.roads += (strip,)
    going = 7.0 if p.plan.event == "red_light" else 0.0
    for side in (-1, 1):
        y = _middle(p.plan) + side * float(p.rng.uniform(9, 18))
        at, kind = (x - side * p.plan.lane_width / 2, y, -side * math.pi / 2), p.vehicle_kind()
        if p.fits(kind, *at):
            p.mover(*at, going, kind)


def _ring(p: _Placer) -> None:
    """Lay a roundabout ahead with one vehicle on it."""
    x, radius, middle = float(p.rng.uniform(32, 38)), 13.0, _middle(p.plan)
    ring = tuple(
        (x + radius * math.cos(a), -middle + radius * math.sin(a))
        for a in np.linspace(0, 2 * math.pi, 25)
    )
    p.traffic.roads += (Strip(ring, p.plan.lane_width * 1.3, "solid", "solid"),)
    angle = float(p.rng.uniform(0.1, 1.2)) * (-1 if p.rng.random() < 0.5 else 1)
    # anticlockwise from above is clockwise in highway-env's axes: heading = angle - 90°
    at = x + radius * math.cos(angle), middle + radius * math.sin(angle), angle - math.pi / 2
    kind = p.vehicle_kind()
    if p.fits(kind, *at):
        p.mover(*at, 6.0, kind, yaw_rate=-6.0 / radius)


def _ramp(p: _Placer) -> None:
    """Lay a road that joins from the right, goes on as one more lane, and ends in the last one."""
    last = -(p.plan.lanes - 1) * p.plan.lane_width
    lane = last - p.plan.lane_width
    points = ((-70.0, lane - 14.0), (0.0, lane), (75.0, lane), (100.0, last))
    p.traffic.roads += (Strip(points, p.plan.lane_width, right="solid"),)


_JUNCTIONS: dict[RoadType, Callable[[_Placer], None]] = {
    "intersection": _crossroad,
    "roundabout": _ring,
    "merge": _ramp,
}


def _light(p: _Placer, y: float) -> None:
    state: Light = "red" if p.plan.event == "red_light" else "green"
    x = float(p.rng.uniform(13, 19))
    light = p.beside("light", x + 1.0, p.plan.right_edge + 1.2, state)
    p.traffic.stop_line = x
    p.because("red light" if state == "red" else "nothing", light.id)
    p.reserve(p.plan.ego_lane, 4.0, 60.0)


def _walker(p: _Placer, y: float) -> None:
    """Place a pedestrian: stepping in front of the ego from a side, or waiting at the right."""
    x, side = float(p.rng.uniform(10, 17)), -1 if p.rng.random() < 0.5 else 1
    if p.plan.event == "crossing":
        off, going = 1.5, 0.8
    else:
        side, off, going = 1, p.plan.right_edge - y + 1.0, 0.0
    walker = p.mover(x, y + side * off, -side * math.pi / 2, going, "pedestrian")
    p.because("pedestrian", walker.number)
    p.reserve(p.plan.ego_lane, 4.0, 40.0)


def _cones(p: _Placer, y: float) -> None:
    x = float(p.rng.uniform(12, 16)) * (1.25 if p.plan.speed > 10 else 1.0)
    for i in (-1, 0, 1):
        cone = p.mover(x + 0.8 * i, y + 1.0 * i, 0.0, 0.0, "cone")
    p.because("cones", cone.number)
    p.reserve(p.plan.ego_lane, 4.0, 50.0)


def _yield(p: _Placer, y: float) -> None:
    """Place a vehicle that crosses slowly in front of the ego."""
    x = float(p.rng.uniform(13, 17))
    car = p.mover(x, y - 2.0, math.pi / 2 * 0.9, 1.2, p.vehicle_kind())
    p.because("crossing vehicle", car.number)
    p.reserve(p.plan.ego_lane, 4.0, 50.0)


def _free(p: _Placer, y: float) -> None:
    p.reserve(p.plan.ego_lane, 3.0, 60.0)


def _follow(p: _Placer, y: float) -> None:
    """Place a leader that is a little faster than the ego."""
    x, kind = float(p.rng.uniform(12.5, 16)) * _farther(p.plan), p.vehicle_kind()
    _lead(p, x, p.plan.speed + 0.5, "keep", kind, "slow vehicle")


def _cut_in(p: _Placer, y: float) -> None:
    """Place a slower vehicle beside the ego's lane that is about to change into it."""
    plan, lane = p.plan, p.plan.ego_lane
    side = 1 if plan.ramp or lane == 0 else (-1 if lane == plan.lanes - 1 else 1)
    if not plan.ramp and 0 < lane < plan.lanes - 1 and p.rng.random() < 0.5:
        side = -1
    x, kind = float(p.rng.uniform(13, 18)), p.vehicle_kind()
    intent: Intent = "left" if side == 1 else "right"
    car = p.driver(lane + side, x + _longer(kind), plan.speed - 3.8, intent, kind)
    p.because("merging vehicle", car.number)
    p.reserve(lane, 3.0, 60.0)


def _slow_leader(p: _Placer, y: float) -> None:
    kind, slow = p.vehicle_kind(), max(p.plan.speed - 4.2, 2.0)
    x = float(p.rng.uniform(12, 16)) * _farther(p.plan)
    _lead(p, x, slow, "keep", kind, "slow vehicle")


def _hard_brake(p: _Placer, y: float) -> None:
    kind, speed = p.vehicle_kind(), max(p.plan.speed - 1.0, 2.0)
    x = float(p.rng.uniform(12, 16)) * _farther(p.plan) + 4.0
    _lead(p, x, speed, "brake", kind, "braking vehicle")


def _cyclist(p: _Placer, y: float) -> None:
    """Place a cyclist in the middle of the ego's lane."""
    x = float(p.rng.uniform(12, 16)) * _farther(p.plan)
    _lead(p, x, max(p.plan.speed - 4.2, 2.0), "keep", "cyclist", "cyclist")


def _lead(p: _Placer, x: float, speed: float, intent: Intent, kind: Kind, cause: str) -> None:
    """Put somebody in front of the ego; x [m] is where a car's centre would be."""
    leader = p.driver(p.plan.ego_lane, x + _longer(kind), speed, intent, kind)
    p.because(cause, leader.number)
    p.reserve(p.plan.ego_lane, 3.0, 60.0)


def _farther(plan: Plan) -> float:
    """Factor on distances ahead where everybody is fast."""
    return 1.3 if plan.speed > 10 else 1.0


def _longer(kind: Kind) -> float:
    """How much farther away a vehicle's centre is than a car's with the same rear bumper [m]."""
    return (SIZES[kind][0] - SIZES["car"][0]) / 2


#: each places what calls for the wanted action; y [m] is that of the ego's lane
_EVENTS: dict[Event, Callable[[_Placer, float], None]] = {
    "free": _free,
    "green_light": _light,
    "red_light": _light,
    "crossing": _walker,
    "waiting": _walker,
    "follow": _follow,
    "slow_leader": _slow_leader,
    "hard_brake": _hard_brake,
    "cyclist": _cyclist,
    "cones": _cones,
    "cut_in": _cut_in,
    "yield": _yield,
}


def _sides(p: _Placer) -> None:
    """Close or open the lanes beside the ego, as the wanted action needs."""
    plan, rng = p.plan, p.rng
    for side, action in ((-1, "lane left"), (1, "lane right")):
        lane = plan.ego_lane + side
        if not 0 <= lane < plan.lanes:
            continue
        must_close = plan.wanted in ("slow down", "stop", "lane left", "lane right")
        is_open = plan.wanted == action or (not must_close and rng.random() < 0.5)
        if is_open:
            p.reserve(lane, -16.0, 24.0)
        elif not any(on == lane and abs(at) < 13.0 for on, at in p.traffic.taken):
            x, speed = float(rng.uniform(-5.0, 4.5)), plan.speed + float(rng.uniform(-0.5, 0.5))
            p.driver(lane, x, speed, "keep", p.vehicle_kind())


def _passers(p: _Placer) -> None:
    """Fill the ego's side of the road, ahead and behind, where nothing is reserved."""
    for _ in range(int(p.rng.integers(5, 9))):
        lane = int(p.rng.integers(p.plan.lanes))
        ahead = bool(p.rng.random() < 0.7)
        x = float(p.rng.uniform(8, 24)) if ahead else -float(p.rng.uniform(9, 20))
        if p.free(lane, x):
            _passer(p, lane, x, ahead)


def _passer(p: _Placer, lane: int, x: float, ahead: bool) -> None:
    """Place one more vehicle on the ego's road, with an intent of its own."""
    plan, rng = p.plan, p.rng
    cyclist = plan.speed < 10 and rng.random() < 0.25
    kind: Kind = "cyclist" if cyclist else p.vehicle_kind()
    speed = plan.speed + float(rng.uniform(0.0, 1.5)) * (1 if ahead else -1)
    intents: list[Intent] = ["keep", "brake", "brake"]
    changes: tuple[tuple[int, Intent], ...] = ((-1, "left"), (1, "right"))
    for side, change in changes:
        if 0 <= lane + side < plan.lanes and p.room(lane + side, x):
            intents += [change, change]
    intent = _pick(rng, intents)
    if p.fits(kind, x, lane * plan.lane_width):
        p.driver(lane, x, 5.0 if cyclist and ahead else speed, intent, kind)


def _oncoming(p: _Placer) -> None:
    for i in range(1, p.plan.oncoming + 1):
        if p.rng.random() < 0.7:
            x, y, kind = float(p.rng.uniform(-18, 24)), -i * p.plan.lane_width, p.vehicle_kind()
            if p.fits(kind, x, y, math.pi):
                p.mover(x, y, math.pi, 8.0, kind)


def _roadside(p: _Placer) -> None:
    """Place people, cyclists and parked cars beside a road in town."""
    plan, rng = p.plan, p.rng
    if plan.road_type not in ("street", "intersection", "roundabout"):
        return
    for _ in range(int(rng.integers(1, 4))):
        side = -1 if rng.random() < 0.5 else 1
        edge = plan.right_edge if side == 1 else -(plan.oncoming + 0.5) * plan.lane_width
        kind = _pick(rng, _BESIDE)
        x, y = float(rng.uniform(-16, 18)), edge + side * float(rng.uniform(1.4, 2.6))
        if p.fits(kind, x, y):
            p.beside(kind, x, y)
