"""Scenes: determinism, splits, what events lead to, mirrors."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any, get_args

import numpy as np
import pytest

from drivekd.world import answers, plan
from drivekd.world.drawing.camera import Renderer, render
from drivekd.world.drawing.rig import badge
from drivekd.world.frame import TOWNS, Frame, Light, Thing, Turn, Weather
from drivekd.world.questions import ask
from drivekd.world.scene import (
    HELD_OUT_TOWN,
    HELD_OUT_WEATHER,
    SPLIT_SIZE,
    SPLITS,
    Scene,
    distance,
    make_scene,
    split_of,
)
from drivekd.world.sight import sightings, status
from drivekd.world.traffic import ACTIONS

OTHER = {"left": "right", "right": "left"}


def mirror(frame: Frame) -> Frame:
    """The same frame seen in a mirror: left and right change places."""
    flip: dict[Turn | None, Turn | None] = {"left": "right", "right": "left", None: None}
    return replace(
        frame,
        ego=replace(frame.ego, y=-frame.ego.y, heading=-frame.ego.heading),
        things=tuple(
            replace(t, y=-t.y, heading=-t.heading, turn=flip[t.turn]) for t in frame.things
        ),
        roads=tuple(
            replace(s, points=tuple((x, -y) for x, y in s.points), left=s.right, right=s.left)
            for s in frame.roads
        ),
    )


def swapped(text: str) -> str:
    """Left for right and right for left, in any spelling."""
    words = text.replace("_", " _ ").split(" ")
    low = {**OTHER, "LEFT": "RIGHT", "RIGHT": "LEFT"}
    return " ".join(low.get(word, word) for word in words).replace(" _ ", "_")


# --- determinism and splits ---------------------------------------------------------------------


def test_the_same_seed_gives_the_same_scene() -> None:
    first = [make_scene(seed) for seed in (5, 6, 4_000_001)]
    again = [make_scene(seed) for seed in (4_000_001, 6, 5)][::-1]
    assert first == again
    assert first[0] != first[1]


def test_seeds_of_splits_never_meet() -> None:
    ranges = sorted((first, first + SPLIT_SIZE) for first in SPLITS.values())
    for (_, end), (first, _) in pairwise(ranges):
        assert end <= first
    for name, first in SPLITS.items():
        assert split_of(first) == split_of(first + SPLIT_SIZE - 1) == name
    for outside in (-1, max(SPLITS.values()) + SPLIT_SIZE):
        with pytest.raises(ValueError, match=f"world seed {outside} belongs to no split"):
            make_scene(outside)


@pytest.mark.parametrize("split", ["student", "val", "demo", "test"])
def test_only_transfer_shows_the_unseen_town_and_weather(split: str) -> None:
    for seed in range(SPLITS[split], SPLITS[split] + 2):
        frame = make_scene(seed).frame
        assert frame.town != HELD_OUT_TOWN
        assert frame.weather != HELD_OUT_WEATHER


def test_train_covers_everything_but_the_held_out(truths: list[dict[str, Any]]) -> None:
    assert {t["frame"]["town"] for t in truths} == set(TOWNS) - {HELD_OUT_TOWN}
    assert {t["frame"]["weather"] for t in truths} == set(get_args(Weather)) - {HELD_OUT_WEATHER}
    assert {t["event"] for t in truths} == set(get_args(plan.Event))
    assert {t["road_type"] for t in truths} == set(get_args(plan.RoadType))


def test_transfer_changes_one_thing_at_a_time() -> None:
    for seed in range(SPLITS["transfer"], SPLITS["transfer"] + 4):
        frame = make_scene(seed).frame
        unseen = frame.town == HELD_OUT_TOWN, frame.weather == HELD_OUT_WEATHER
        assert unseen == ((True, False) if seed % 2 == 0 else (False, True))


# --- what a scene is ----------------------------------------------------------------------------


def test_best_actions_are_roughly_even(truths: list[dict[str, Any]]) -> None:
    counts = Counter(t["best"] for t in truths)
    assert set(counts) == set(ACTIONS)
    assert max(counts.values()) < 0.35 * len(truths)
    assert min(counts.values()) > 0.06 * len(truths)


def test_lights(truths: list[dict[str, Any]]) -> None:
    seen: Counter[Light] = Counter()
    for truth in truths:
        runs = {action: o["ran_red"] for action, o in truth["outcomes"].items()}
        if truth["event"] == "red_light":
            seen["red"] += 1
            assert runs["keep speed"]
            assert runs["accelerate"]
            assert not runs["stop"]
        else:
            seen["green"] += truth["event"] == "green_light"
            assert not any(runs.values())
        lights = [t["light"] for t in truth["frame"]["things"] if t["kind"] == "light"]
        wanted = [truth["event"].removesuffix("_light")] if "_light" in truth["event"] else []
        assert lights == wanted
        headings = [t["heading"] for t in truth["frame"]["things"] if t["kind"] == "light"]
        assert headings == [0] * len(lights)  # lamps are at the rear, which faces the ego
    assert min(seen["red"], seen["green"]) > 2


def test_events_have_their_actor(truths: list[dict[str, Any]]) -> None:
    kinds = {"pedestrian": {"pedestrian"}, "cones": {"cone"}, "red light": {"light"},
             "cyclist": {"cyclist"}}  # fmt: skip
    for truth in truths:
        things = {t["id"]: t for t in truth["frame"]["things"]}
        assert (truth["cause"] == "nothing") >= (truth["cause_id"] == 0)
        if truth["cause"] == "nothing":
            continue
        actor = things[truth["cause_id"]]
        assert actor["kind"] in kinds.get(truth["cause"], {"car", "truck", "bus"})
        if truth["cause"] == "braking vehicle":
            assert actor["braking"]
        if truth["cause"] == "merging vehicle":
            assert actor["turn"] in ("left", "right")
            assert truth["futures"][str(truth["cause_id"])]["in_ego_path"]


def test_numbers_are_in_bounds(truths: list[dict[str, Any]]) -> None:
    for truth in truths:
        things = truth["frame"]["things"]
        assert sorted(t["id"] for t in things) == list(range(1, len(things) + 1))
        for t in things:
            assert t["colour"] != "orange" or t["kind"] == "cone"
            assert 0 <= t["speed"] < 25
        assert truth["frame"]["ego"]["speed"] > 5
        assert set(truth["outcomes"]) == set(ACTIONS)
        for outcome in truth["outcomes"].values():
            assert outcome["gap"] is None or outcome["gap"] >= 0
            assert 0 <= outcome["time_to_collision"] <= 10
            assert -1 < outcome["progress"] < 100
            assert outcome["collision"] == 0 or outcome["collision"] <= len(things)


def corners(x: float, y: float, heading: float, length: float, width: float) -> np.ndarray:
    signs = np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)]) * (length / 2, width / 2)
    turn = np.array(
        [(math.cos(heading), math.sin(heading)), (-math.sin(heading), math.cos(heading))]
    )
    return np.array((x, y)) + signs @ turn


def apart(one: np.ndarray, two: np.ndarray) -> bool:
    """Whether some side of one of two boxes has all of the other box beyond it."""
    for box in (one, two):
        for side in np.diff(box[[0, 1, 2]], axis=0):
            along = side / np.linalg.norm(side)
            if max((one @ along).min(), (two @ along).min()) >= min(
                (one @ along).max(), (two @ along).max()
            ):
                return True
    return False


def test_nobody_stands_in_somebody_else(truths: list[dict[str, Any]]) -> None:
    assert not apart(corners(0, 0, 0, 4, 2), corners(3, 1, 1, 4, 2))
    assert apart(corners(0, 0, 0, 4, 2), corners(3.5, 2.5, math.pi / 4, 4, 2))
    for truth in truths:
        ego = truth["frame"]["ego"]
        boxes = [corners(ego["x"], ego["y"], ego["heading"], 4.4, 1.9)]
        things = truth["frame"]["things"]
        boxes += [corners(t["x"], t["y"], t["heading"], t["length"], t["width"]) for t in things]
        assert all(apart(a, b) for a, b in combinations(boxes, 2)), truth["frame"]["seed"]


def test_vehicles_of_the_ego_s_road_drive_on_asphalt(truths: list[dict[str, Any]]) -> None:
    """Also those that come from the ramp of a merge."""
    ramps = 0
    for truth in truths:
        strips = truth["frame"]["roads"]
        for thing in truth["frame"]["things"]:
            if str(thing["id"]) not in truth["futures"] or thing["kind"] == "pedestrian":
                continue
            at = np.array((thing["x"], thing["y"]))
            inside = [away(at, np.array(s["points"])) < s["width"] / 2 for s in strips]
            assert any(inside), (truth["frame"]["seed"], thing)
            ramps += truth["road_type"] == "merge" and inside[0]
    assert ramps


def away(at: np.ndarray, points: np.ndarray) -> float:
    """From a point to the nearest one of a line through points [n, 2] (m)."""
    ends, steps = points[:-1], np.diff(points, axis=0)
    share = (((at - ends) * steps).sum(1) / (steps**2).sum(1)).clip(0, 1)
    return float(np.linalg.norm(ends + share[:, None] * steps - at, axis=1).min())


def test_distance_is_taken_from_the_ego() -> None:
    frame = make_scene(1).frame
    thing = frame.things[0]
    moved = replace(frame, ego=replace(frame.ego, x=thing.x - 3, y=thing.y + 4))
    assert distance(moved, thing) == pytest.approx(5)


# --- a mirrored world gives mirrored answers ----------------------------------------------------


def test_a_mirror_undoes_itself() -> None:
    frame = make_scene(3).frame
    twice = mirror(mirror(frame))
    assert twice == frame
    assert mirror(frame) != frame
    assert [t.y for t in mirror(frame).things] == [-t.y for t in frame.things]


def mirrored(scene: Scene) -> Scene:
    """The whole scene in a mirror, ground truth included."""
    return replace(
        scene,
        frame=mirror(scene.frame),
        best=swapped(scene.best),
        outcomes={swapped(a): o for a, o in scene.outcomes.items()},
        futures={i: replace(f, sideways=-f.sideways) for i, f in scene.futures.items()},
    )


def counted(frame: Frame, renderer: Renderer) -> dict[tuple[int, str], np.ndarray]:
    """Where each camera shows each thing; the badge's corner and its mirror image are left out."""
    found = {}
    mark = len(badge("CAM_FRONT", 96))
    for view in render(renderer, frame):
        ids = view.ids.copy()
        ids[:mark, :mark] = ids[:mark, -mark:] = 0
        for number in np.unique(ids[ids > 0]):
            found[int(number), view.camera] = ids == number
    return found


def test_a_mirrored_frame_gives_mirrored_sightings(
    drawn: list[tuple[Scene, dict[str, np.ndarray]]], renderer: Renderer
) -> None:
    compared = 0
    for scene, _ in drawn[:8]:
        one, two = counted(scene.frame, renderer), counted(mirror(scene.frame), renderer)
        for (number, camera), pixels in one.items():
            if pixels.sum() < 60:
                continue
            twin = two[number, swapped(camera)][:, ::-1]
            compared += 1
            assert twin.sum() == pytest.approx(pixels.sum(), rel=0.15, abs=20)
            for a, b in zip(np.nonzero(pixels), np.nonzero(twin), strict=True):
                assert a.mean() == pytest.approx(b.mean(), abs=2)
    assert compared > 30


def test_a_mirrored_world_gives_mirrored_answers(
    drawn: list[tuple[Scene, dict[str, np.ndarray]]], renderer: Renderer
) -> None:
    names = ("weather", "road", "light", "lead_colour", "cause", "action")
    names += ("safe_lane", "safe_keep")
    turns, texts = 0, Counter()
    for scene, ids in drawn:
        twin = mirrored(scene)
        seen = sightings(scene.frame, ids)
        twins = sightings(twin.frame, {v.camera: v.ids for v in render(renderer, twin.frame)})
        by_id = {s.thing.id: s for s in twins}
        for s in seen:
            turns += s.thing.turn is not None
            if s.thing.id in by_id:  # a thing of threshold size may be seen on one side only
                assert status(by_id[s.thing.id].thing) == swapped(status(s.thing))
            if s.thing.id in scene.futures:
                future = answers.future(scene, s.thing.id)
                assert answers.future(twin, s.thing.id) == (future and swapped(future))
        if {s.thing.id for s in seen} != set(by_id):
            continue
        asked = [
            {q.template: q.answer for q in ask(w, k, 5) if q.template in names}
            for w, k in ((scene, seen), (twin, twins))
        ]
        assert {name: swapped(answer) for name, answer in asked[0].items()} == asked[1]
        texts.update(asked[0].keys())
    assert turns > 3
    assert all(texts[name] for name in names)


def test_left_in_the_frame_is_left_of_the_thing(truths: list[dict[str, Any]]) -> None:
    """Who signals left ends up left of where it was heading."""
    moved = 0
    for truth in truths:
        for thing in truth["frame"]["things"]:
            future = truth["futures"].get(str(thing["id"]))
            if thing["turn"] is not None and abs(future["sideways"]) > 1:
                moved += 1
                assert (future["sideways"] > 0) == (thing["turn"] == "left")
                assert math.cos(thing["heading"]) > 0.9
    assert moved > 3


def test_a_thing_is_drawn_where_it_is_said_to_be(
    drawn: list[tuple[Scene, dict[str, np.ndarray]]],
) -> None:
    def in_front(scene: Scene, thing: Thing) -> bool:
        return 5 < thing.x - scene.frame.ego.x < 25 and abs(thing.y - scene.frame.ego.y) < 1

    found = 0
    for scene, ids in drawn:
        near = min(
            (t for t in scene.frame.things if in_front(scene, t)), key=lambda t: t.x, default=None
        )
        if near is not None:
            found += 1
            columns = np.nonzero(ids["CAM_FRONT"] == near.id)[1]
            assert 20 < columns.mean() < 76
    assert found > 3
