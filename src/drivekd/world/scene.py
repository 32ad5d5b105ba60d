"""Scenes of the embedded world: a road, an event on it, and what each of six actions leads to.

Five road types, twelve events, three towns and five kinds of weather. A scene is drawn so that its
best action is spread evenly over the six: the action is drawn first, then an event that calls for
it, and a scene whose exact look ahead disagrees is drawn again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from highway_env.road.lane import LineType, StraightLane
from highway_env.road.road import Road, RoadNetwork

from drivekd.world.frame import TOWNS, Frame, Pose, Strip, Thing, Town, Weather
from drivekd.world.placement import Traffic, populate
from drivekd.world.plan import LANE_WIDTH, Plan
from drivekd.world.traffic import ACTIONS, SIZES, Action, Ego, Future, Mover, Outcome, look_ahead

Split = Literal["train", "val", "demo", "transfer", "test", "student"]
#: first seed of each split; a split never reaches the next one's
SPLITS: dict[Split, int] = {
    "train": 0,
    "student": 1_000_000,
    "val": 2_000_000,
    "demo": 3_000_000,
    "transfer": 4_000_000,
    "test": 5_000_000,
}
SPLIT_SIZE = 1_000_000
HELD_OUT_TOWN: Town = "cobalt"
HELD_OUT_WEATHER: Weather = "rain"
_SEEN_WEATHER: tuple[Weather, ...] = ("day", "dusk", "night", "fog")
_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Scene:
    """A frame together with everything that is known about it."""

    frame: Frame  # what can be seen
    road_type: str  # highway, street, intersection, merge or roundabout
    event: str  # what is special about it (`red_light`, `crossing`, …)
    outcomes: dict[Action, Outcome]  # exact look ahead for each action
    futures: dict[int, Future]  # per thing id, what it does while the ego keeps its speed
    best: Action  # the action of least cost, and by how much it beats the second
    margin: float
    cause: str  # the kind of thing that makes the ego act, or "nothing"
    cause_id: int  # the id of that thing, 0 for nothing


def cost(outcome: Outcome, action: Action, plan: Plan) -> float:
    """Cost of an action, least is best [ours]: safety first, then caution, progress, comfort."""
    if outcome.left_lane:
        return 50.0
    total = 100.0 * (outcome.collision != 0) + 60.0 * outcome.ran_red
    total += 6.0 * max(0.0, 2.5 - outcome.time_to_collision)
    total += 1.5 * max(0.0, 6.0 - outcome.gap)
    total -= outcome.progress / (plan.speed * 4.0)
    total += {"lane left": 0.12, "lane right": 0.17, "stop": 0.1, "accelerate": 0.08}.get(action, 0)
    if plan.caution and action in ("accelerate", "lane left", "lane right"):
        total += 1.0
    return total


def _network(lanes: int, width: float, limit: float) -> RoadNetwork:
    """Build a straight road of parallel lanes, lane 0 leftmost, at y = 0 [m]."""
    network = RoadNetwork()
    for i in range(lanes):
        lane = StraightLane(
            [-120, i * width],
            [240, i * width],
            width=width,
            line_types=(LineType.NONE, LineType.NONE),
            speed_limit=limit,
        )
        network.add_lane("a", "b", lane)
    return network


def _town_and_weather(split: Split, seed: int, rng: np.random.Generator) -> tuple[Town, Weather]:
    seen_towns = [t for t in TOWNS if t != HELD_OUT_TOWN]
    town: Town = seen_towns[int(rng.integers(len(seen_towns)))]
    weather: Weather = _SEEN_WEATHER[int(rng.integers(len(_SEEN_WEATHER)))]
    if split == "transfer":
        return (HELD_OUT_TOWN, weather) if seed % 2 == 0 else (town, HELD_OUT_WEATHER)
    return town, weather


def split_of(seed: int) -> Split:
    """Return the split of a seed; ValueError for a seed outside every split."""
    for name, first in SPLITS.items():
        if first <= seed < first + SPLIT_SIZE:
            return name
    top = max(SPLITS.values()) + SPLIT_SIZE - 1
    raise ValueError(f"world seed {seed} belongs to no split; seeds go from 0 to {top}")


def make_scene(seed: int) -> Scene:
    """Draw the scene of a seed; the same seed gives the same scene.

    Its best action is the one drawn for this seed; after a few attempts the last scene drawn counts
    (its `best` is right all the same). ValueError for a seed outside every split.
    """
    split = split_of(seed)
    rng = np.random.default_rng([seed, 17])
    town, weather = _town_and_weather(split, seed, rng)
    wanted = ACTIONS[int(rng.integers(len(ACTIONS)))]
    scene = None
    for _ in range(_ATTEMPTS):
        plan = Plan.draw(rng, wanted, LANE_WIDTH[town])
        network = _network(plan.lanes + plan.ramp, plan.lane_width, plan.limit)
        road = Road(network, np_random=np.random.RandomState(seed % 2**32))
        traffic = populate(road, plan, rng)
        scene = _assess(seed, town, weather, plan, road, traffic)
        if scene.best == wanted and scene.margin > 0.05:
            break
    assert scene is not None
    return scene


def _assess(
    seed: int, town: Town, weather: Weather, plan: Plan, road: Road, traffic: Traffic
) -> Scene:
    """Look ahead under all six actions and name the best."""
    stop_line = traffic.stop_line if plan.event == "red_light" else None
    outcomes: dict[Action, Outcome] = {}
    futures: dict[int, Future] = {}
    for action in ACTIONS:
        outcomes[action], end = look_ahead(road, action, stop_line)
        if action == "keep speed":
            futures = _futures(road, end, plan)
    costs = {a: cost(o, a, plan) for a, o in outcomes.items()}
    ranked = sorted(ACTIONS, key=lambda a: costs[a])
    frame = Frame(
        seed=seed,
        town=town,
        weather=weather,
        ego=_pose(road.vehicles[0]),
        things=_things(road, traffic),
        roads=_strips(plan, traffic),
    )
    acting = ranked[0] not in ("keep speed", "accelerate") or plan.caution
    return Scene(
        frame=frame,
        road_type=plan.road_type,
        event=plan.event,
        outcomes=outcomes,
        futures=futures,
        best=ranked[0],
        margin=costs[ranked[1]] - costs[ranked[0]],
        cause=traffic.cause if acting else "nothing",
        cause_id=traffic.cause_id if acting else 0,
    )


def _pose(ego: Ego) -> Pose:
    x, y = map(float, ego.position)
    return Pose(x, -y, -float(ego.heading), float(ego.speed))


def _futures(now: Road, end: Road, plan: Plan) -> dict[int, Future]:
    """Compare where everybody is now and at the end of the horizon."""
    ego_lane = float(now.vehicles[0].position[1])
    result = {}
    for before, after in zip(now.vehicles[1:], end.vehicles[1:], strict=True):
        moved = after.position - before.position
        left = np.array([before.direction[1], -before.direction[0]])  # highway-env's y is right
        in_path = abs(float(after.position[1]) - ego_lane) < plan.lane_width / 2
        result[before.number] = Future(
            speed_change=float(after.speed - before.speed),
            sideways=float(moved @ left),
            in_ego_path=in_path,
        )
    return result


def _things(road: Road, traffic: Traffic) -> tuple[Thing, ...]:
    """Return everything that is drawn: road users, then what is beside the road."""
    things = []
    for v in road.vehicles[1:]:
        length, width, height = SIZES[v.kind]
        still = isinstance(v, Mover)
        things.append(
            Thing(
                id=v.number,
                kind=v.kind,
                colour=v.colour,
                x=float(v.position[0]),
                y=-float(v.position[1]),
                heading=-float(v.heading),
                length=length,
                width=width,
                height=height,
                speed=float(v.speed),
                braking=False if still else v.braking,
                turn=None if still else v.turn,
            )
        )
    return tuple(things) + traffic.beside


def _strips(plan: Plan, traffic: Traffic) -> tuple[Strip, ...]:
    """Return the road surface in the frame's axes (y to the left)."""
    strips = list(traffic.roads)
    for i in range(-plan.oncoming, plan.lanes):
        first, last = i == -plan.oncoming, i == plan.lanes - 1
        strips.append(
            Strip(
                points=((-80.0, -i * plan.lane_width), (120.0, -i * plan.lane_width)),
                width=plan.lane_width,
                left="solid" if first or i == 0 else "dashed",
                right="solid" if (last and not plan.ramp) or i == -1 else "dashed",
            )
        )
    return tuple(strips)


def distance(frame: Frame, thing: Thing) -> float:
    """From the ego's centre to the thing's [m]."""
    return math.hypot(thing.x - frame.ego.x, thing.y - frame.ego.y)
