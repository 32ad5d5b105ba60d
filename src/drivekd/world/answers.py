"""Answers to each kind of question, read from a scene's ground truth.

A finder gets a scene, what the cameras show of it, and a random generator that chooses where a
scene offers several questions of a kind. It returns the answer and the things that the question
names, or None where the scene offers no such question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from drivekd.world.scene import Scene, distance
from drivekd.world.sight import Sighting, rear_visible, status
from drivekd.world.traffic import Action

Answered = tuple[str, tuple[Sighting, ...]] | None
Share = Mapping[str, float]
Finder = Callable[[Scene, Sequence[Sighting], np.random.Generator], Answered]

_DRIVERS = ("car", "truck", "bus", "cyclist")
_ROAD_USERS = (*_DRIVERS, "pedestrian")


def _draw(
    groups: dict[str, list[Sighting]], rng: np.random.Generator, share: Share | None = None
) -> Answered:
    """Draw an answer first and then a thing with that answer, so that answers stay balanced.

    `groups` are things by the answer to the question about them; `share` thins frequent answers.
    """
    if not groups:
        return None
    answer = sorted(groups)[int(rng.integers(len(groups)))]
    thing = groups[answer][int(rng.integers(len(groups[answer])))]
    return None if _thin(answer, share or {}, rng) is None else (answer, (thing,))


def _grouped(
    seen: Sequence[Sighting], answer: Callable[[Sighting], str | None]
) -> dict[str, list[Sighting]]:
    """Group things by what is said of them; None leaves a thing out."""
    groups: dict[str, list[Sighting]] = {}
    for s in seen:
        said = answer(s)
        if said is not None:
            groups.setdefault(said, []).append(s)
    return groups


def _drivers_from_behind(scene: Scene, seen: Sequence[Sighting]) -> list[Sighting]:
    """Drivers whose lamps can be seen and whose future is known."""
    return [
        s
        for s in seen
        if s.thing.kind in _DRIVERS
        and s.thing.id in scene.futures
        and rear_visible(scene.frame, s.thing)
    ]


def _thin(answer: str, share: Share, rng: np.random.Generator) -> Answered:
    """Ask less often where the answer is a frequent one, so that guessing it does not pay."""
    return (answer, ()) if rng.random() < share.get(answer, 1.0) else None


def colour(scene: Scene, seen: Sequence[Sighting], rng: np.random.Generator) -> Answered:
    return _draw(
        _grouped(seen, lambda s: s.thing.colour if s.thing.kind in _ROAD_USERS else None), rng
    )


def kind(scene: Scene, seen: Sequence[Sighting], rng: np.random.Generator) -> Answered:
    return _draw(_grouped(seen, lambda s: s.thing.kind), rng)


def status_of(scene: Scene, seen: Sequence[Sighting], rng: np.random.Generator) -> Answered:
    groups = _grouped(_drivers_from_behind(scene, seen), lambda s: status(s.thing))
    return _draw(groups, rng, {"going ahead": 0.5})


def weather(scene: Scene, seen: Sequence[Sighting], rng: np.random.Generator) -> Answered:
    return scene.frame.weather, ()


def road(scene: Scene, seen: Sequence[Sighting], rng: np.random.Generator) -> Answered:
    return scene.road_type, ()


def light(scene: Scene, seen: Sequence[Sighting], rng: np.random.Generator) -> Answered:
    lights = [s for s in seen if s.thing.kind == "light"]
    if lights:
        return lights[0].thing.light or "none", ()
    return _thin("none", {"none": 0.12}, rng)


def lead_colour(scene: Scene, seen: Sequence[Sighting], rng: np.random.Generator) -> Answered:
    """The colour of the vehicle in front, in the ego's own lane."""
    ego = scene.frame.ego
    ahead = [
        s
        for s in _drivers_from_behind(scene, seen)
        if s.thing.x > ego.x and abs(s.thing.y - ego.y) < 1.2 and s.camera == "CAM_FRONT"
    ]
    nearest = min(ahead, key=lambda s: s.thing.x, default=None)
    return None if nearest is None else (nearest.thing.colour, ())


def future(scene: Scene, thing_id: int) -> str | None:
    """What a road user does within the horizon while the ego keeps its speed; None if unclear."""
    after = scene.futures[thing_id]
    if abs(after.sideways) > 2.0:
        return "move left" if after.sideways > 0 else "move right"
    if after.speed_change < -2.5:
        return "slow down"
    return "keep going" if after.speed_change > -1.0 and abs(after.sideways) < 0.8 else None


def future_of(scene: Scene, seen: Sequence[Sighting], rng: np.random.Generator) -> Answered:
    drivers = _drivers_from_behind(scene, seen)
    groups = _grouped(drivers, lambda s: future(scene, s.thing.id))
    return _draw(groups, rng, {"keep going": 0.5})


def nearer(scene: Scene, seen: Sequence[Sighting], rng: np.random.Generator) -> Answered:
    """The colour of the nearer one of two things, named in random order.

    Both are at the same height of their pictures, so that the height does not tell, and differ in
    colour. Answering `c1` or `c2` instead was tried: tiny models do not learn to bind the name to
    the thing [ours].
    """
    users = [s for s in seen if s.thing.kind in _ROAD_USERS]
    pairs = [
        (near, far)
        for near in users
        for far in users
        if 1.35 * distance(scene.frame, near.thing) < distance(scene.frame, far.thing)
        and abs(near.v - far.v) < 0.08
        and near.thing.colour != far.thing.colour
    ]
    if not pairs:
        return None
    near, far = pairs[int(rng.integers(len(pairs)))]
    return near.thing.colour, (near, far) if rng.random() < 0.5 else (far, near)


def cause(scene: Scene, seen: Sequence[Sighting], rng: np.random.Generator) -> Answered:
    shown = {s.thing.id for s in seen}
    if scene.cause_id and scene.cause_id not in shown:
        return None  # the pictures do not show the reason
    return _thin(scene.cause, {"nothing": 0.5}, rng)


def safe(scene: Scene, action: Action) -> bool | None:
    """Whether an action is safe; None where it is too close to call or the lane is not there."""
    outcome = scene.outcomes[action]
    if outcome.left_lane:
        return None
    if outcome.collision or outcome.ran_red or outcome.time_to_collision < 1.2:
        return False
    return True if outcome.time_to_collision > 2.0 and outcome.gap > 3.0 else None


def action(scene: Scene, seen: Sequence[Sighting], rng: np.random.Generator) -> Answered:
    return (scene.best, ()) if scene.margin > 0.02 else None


def safe_lane(scene: Scene, seen: Sequence[Sighting], rng: np.random.Generator) -> Answered:
    """Name the lanes beside the ego that are safe: left, right, both or none."""
    left, right = scene.outcomes["lane left"], scene.outcomes["lane right"]
    if (not left.left_lane and safe(scene, "lane left") is None) or (
        not right.left_lane and safe(scene, "lane right") is None
    ):
        return None
    names = {(True, True): "both", (True, False): "left", (False, True): "right"}
    both = bool(safe(scene, "lane left")), bool(safe(scene, "lane right"))
    return _thin(names.get(both, "none"), {"none": 0.5}, rng)


def may(action: Action, share_of_no: float) -> Finder:
    """A finder for whether an action is safe; `share_of_no` of the scenes where it is not."""

    def find(scene: Scene, seen: Sequence[Sighting], rng: np.random.Generator) -> Answered:
        answer = {True: "yes", False: "no", None: ""}[safe(scene, action)]
        return _thin(answer, {"no": share_of_no}, rng) if answer else None

    return find
