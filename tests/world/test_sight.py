"""What cameras see: sightings, tags and cells, counted anew from the id maps."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from drivekd.data.sample import CAMERAS
from drivekd.world.frame import Frame, Pose, Thing
from drivekd.world.questions import NOTHING, ask_about_cells
from drivekd.world.scene import Scene
from drivekd.world.sight import (
    ATTRIBUTES,
    GRID,
    MIN_SHARE,
    cells,
    distance_band,
    rear_visible,
    sightings,
    status,
)

Drawn = list[tuple[Scene, dict[str, np.ndarray]]]
CAR = Thing(1, "car", "red", 10.0, 0.0, 0.0, 4.4, 1.9, 1.6)
FRAME = Frame(0, "amber", "day", Pose(0, 0, 0, 9), (CAR,), ())


def test_sightings_are_what_the_id_maps_count(drawn: Drawn) -> None:
    for scene, ids in drawn:
        seen = sightings(scene.frame, ids)
        order = [t.id for t in scene.frame.things]
        assert [s.thing.id for s in seen] == sorted((s.thing.id for s in seen), key=order.index)
        named = {s.thing.id for s in seen}
        for thing in scene.frame.things:
            counts = {camera: int((picture == thing.id).sum()) for camera, picture in ids.items()}
            assert (thing.id in named) == (max(counts.values()) >= MIN_SHARE * 96 * 96)
        for s in seen:
            assert s.pixels == max(int((picture == s.thing.id).sum()) for picture in ids.values())
            rows, columns = np.nonzero(ids[s.camera] == s.thing.id)
            box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            assert s.box == pytest.approx([side / 96 for side in box])


def test_a_tag_lies_on_its_thing(drawn: Drawn) -> None:
    tags = 0
    for scene, ids in drawn:
        for s in sightings(scene.frame, ids):
            found = re.fullmatch(r"<c7,(CAM_[A-Z_]+),(0\.\d\d|1\.00),(0\.\d\d|1\.00)><r(\d+)>",
                                 s.tag(7))  # fmt: skip
            assert found is not None
            camera, u, v = found[1], float(found[2]), float(found[3])
            assert ids[camera][int(v * 96), int(u * 96)] == s.thing.id
            place, cell = divmod(int(found[4]), GRID * GRID)
            assert CAMERAS[place] == camera
            assert divmod(cell, GRID) == (int(s.v * GRID), int(s.u * GRID))
            tags += 1
    assert tags > 40


def test_small_things_are_not_seen() -> None:
    picture = np.zeros((96, 96), np.uint8)
    least = math.ceil(MIN_SHARE * picture.size)
    picture[5, : least - 1] = 1
    assert sightings(FRAME, {"CAM_FRONT": picture}) == ()
    picture[5, :least] = 1
    (one,) = sightings(FRAME, {"CAM_FRONT": picture})
    assert one.pixels == least
    assert one.box == pytest.approx((0, 5 / 96, least / 96, 6 / 96))


def test_cells_are_what_the_id_maps_hold(drawn: Drawn) -> None:
    """Recounted pixel by pixel: the thing with most pixels, where it has 7 % of a cell.

    A light's pixels count thrice, and 2.5 % are enough for it.
    """
    labelled, lit = 0, 0
    for scene, ids in [*drawn[:5], *[d for d in drawn if d[0].event.endswith("_light")][:2]]:
        labels = cells(scene.frame, [ids[camera] for camera in CAMERAS])
        things = {t.id: t for t in scene.frame.things}
        for c, row, column in np.ndindex(6, GRID, GRID):
            counts: Counter[int] = Counter()
            for y in range(row * 24, row * 24 + 24):
                counts.update(ids[CAMERAS[c]][y, column * 24 : column * 24 + 24].tolist())
            counts.pop(0, None)
            lights = {n for n, t in things.items() if t.kind == "light"}
            weighed = {n: pixels * (3 if n in lights else 1) for n, pixels in counts.items()}
            top = min(weighed, key=lambda n: (-weighed[n], n), default=0)
            said = dict(zip(ATTRIBUTES, labels[c, row, column].tolist(), strict=True))
            if counts[top] < (0.025 if top in lights else 0.07) * 24 * 24:
                assert not any(said.values())
                continue
            labelled, lit = labelled + 1, lit + (top in lights)
            thing = things[top]
            assert ATTRIBUTES["kind"][said["kind"] - 1] == thing.kind
            far = math.dist((thing.x, thing.y), (scene.frame.ego.x, scene.frame.ego.y))
            assert said["distance"] == 1 + (far > 8) + (far > 16)
            assert said["light"] == {None: 0, "red": 1, "green": 2}[thing.light]
            if said["colour"]:
                assert ATTRIBUTES["colour"][said["colour"] - 1] == thing.colour
            else:
                assert thing.kind in ("light", "cone")
            if said["status"]:
                assert ATTRIBUTES["status"][said["status"] - 1] == status(thing)
    assert labelled > 40
    assert lit


def test_most_lights_are_in_the_dense_labels(truths: list[dict[str, Any]]) -> None:
    place = list(ATTRIBUTES).index("light")
    lit = [
        (np.array(truth["cells"]).reshape(-1, len(ATTRIBUTES))[:, place] > 0).any()
        for truth in truths if truth["event"].endswith("_light")
    ]  # fmt: skip
    assert len(lit) >= 5
    assert np.mean(lit) >= 0.7


def test_dense_questions_say_what_the_cells_say(truths: list[dict[str, Any]]) -> None:
    asked: Counter[str] = Counter()
    for truth in truths:
        labels = np.array(truth["cells"]).reshape(-1, len(ATTRIBUTES))
        for row in truth["dense"]:
            text = row["messages"][0]["content"].rpartition("<image>\n")[2]
            found = re.fullmatch(r"([a-z]+) <r(\d+)>", text)
            assert found is not None
            place = list(ATTRIBUTES).index(found[1])
            label = labels[int(found[2]), place]
            wanted = ATTRIBUTES[found[1]][label - 1] if label else NOTHING
            assert row["messages"][1]["content"] == wanted
            assert row["template"] == f"cell_{found[1]}"
            asked[found[1] if label else NOTHING] += 1
        texts = [row["messages"][0]["content"] for row in truth["dense"]]
        assert len(set(texts)) == len(texts) <= 24
    assert set(asked) == {*ATTRIBUTES, NOTHING}
    assert asked[NOTHING] < 0.25 * asked.total()


def test_dense_questions_of_an_empty_scene() -> None:
    empty = np.zeros((6, GRID, GRID, len(ATTRIBUTES)), np.int8)
    asked = ask_about_cells(empty, 24, np.random.default_rng(0))
    assert {q.answer for q in asked} == {NOTHING}
    assert {q.template for q in asked} == {"cell_kind"}


@pytest.mark.parametrize(
    ("x", "y", "heading", "rear"),
    [(10, 0, 0, True), (10, 0, math.pi, False), (-10, 0, 0, False), (-10, 0, math.pi, True),
     (0, 10, math.pi / 2, True), (0, 10, 0, False), (10, 10, 0.1, True)],
)  # fmt: skip
def test_rears_are_seen_of_those_who_drive_away(
    x: float, y: float, heading: float, rear: bool
) -> None:
    assert bool(rear_visible(FRAME, replace(CAR, x=x, y=y, heading=heading))) is rear


def test_status_and_distance_in_words() -> None:
    assert status(CAR) == "going ahead"
    assert status(replace(CAR, turn="left")) == "turning left"
    assert status(replace(CAR, turn="right", braking=True)) == "braking"
    bands = [distance_band(FRAME, replace(CAR, x=x)) for x in (7.9, -8.1, 15.9, -16.1)]
    assert bands == ["near", "middle", "middle", "far"]
