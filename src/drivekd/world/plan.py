"""Plans of scenes before anybody is placed: road, event and the action it calls for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from drivekd.world.frame import Town
from drivekd.world.traffic import Action

RoadType = Literal["highway", "street", "intersection", "merge", "roundabout"]
Event = Literal[
    "free", "green_light", "red_light", "crossing", "waiting", "follow",
    "slow_leader", "hard_brake", "cyclist", "cones", "cut_in", "yield",
]  # fmt: skip

#: lane width per town [m]
LANE_WIDTH: dict[Town, float] = {"amber": 3.4, "birch": 3.7, "cobalt": 4.0}
#: ego speed and speed limit [m/s]
SPEEDS: dict[RoadType, tuple[float, float]] = {
    "highway": (14.0, 20.0),
    "merge": (13.0, 19.0),
    "street": (9.0, 14.0),
    "intersection": (9.0, 14.0),
    "roundabout": (8.0, 12.0),
}
_CITY: tuple[RoadType, ...] = ("street", "intersection")
_ALL: tuple[RoadType, ...] = get_args(RoadType)
_ROUND: tuple[RoadType, ...] = (*_CITY, "roundabout")
_PASS: tuple[tuple[Event, tuple[RoadType, ...]], ...] = (
    ("slow_leader", _ALL),
    ("cones", _ALL),
    ("hard_brake", _ALL),
    ("cyclist", _CITY),
)
#: which events make which action the best one, and where they happen; naming one twice makes it
#: twice as likely
_CALLS: dict[Action, tuple[tuple[Event, tuple[RoadType, ...]], ...]] = {
    "accelerate": (("free", _ALL), ("green_light", _CITY)),
    "keep speed": (("follow", _ALL), ("waiting", _ROUND), ("follow", _ALL)),
    "slow down": (
        ("slow_leader", _ALL),
        ("hard_brake", _ALL),
        ("cut_in", ("highway", "merge")),
        ("cyclist", _CITY),
    ),
    "stop": (
        ("red_light", _CITY),
        ("crossing", _ROUND),
        ("yield", ("roundabout",)),
        ("cones", _ROUND),
    ),
    "lane left": _PASS,
    "lane right": _PASS,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """Road, event and wanted action of a scene before anybody is placed."""

    road_type: RoadType
    event: Event
    wanted: Action
    lanes: int
    oncoming: int
    ramp: bool
    lane_width: float
    ego_lane: int
    speed: float
    limit: float
    caution: bool

    @classmethod
    def draw(cls, rng: np.random.Generator, wanted: Action, lane_width: float) -> Plan:
        """Draw an event that calls for the wanted action, and a road where it can happen."""
        calls = _CALLS[wanted]
        event, places = calls[int(rng.integers(len(calls)))]
        road_type = places[int(rng.integers(len(places)))]
        lanes = 3 if road_type == "highway" else 2
        ego_lane = int(rng.integers(lanes))
        if wanted == "lane left":
            ego_lane = max(ego_lane, 1)
        elif wanted == "lane right":
            ego_lane = min(ego_lane, lanes - 2)
        elif event == "cut_in" and road_type == "merge":
            ego_lane = lanes - 1
        speed, limit = SPEEDS[road_type]
        return cls(
            road_type=road_type,
            event=event,
            wanted=wanted,
            lanes=lanes,
            oncoming=0 if road_type in ("highway", "merge") else 1 + int(rng.integers(2)),
            ramp=road_type == "merge",
            lane_width=lane_width,
            ego_lane=ego_lane,
            speed=speed,
            limit=limit,
            caution=event in ("waiting", "crossing"),
        )

    @property
    def right_edge(self) -> float:
        """highway-env y of the right border of the road [m]."""
        return (self.lanes + self.ramp - 0.5) * self.lane_width
