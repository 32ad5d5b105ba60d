"""Six pictures of a frame: geometry against an analytic projection, ids, lamps, colours."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from typing import get_args

import numpy as np
import pytest

from drivekd.data.sample import CAMERAS
from drivekd.world.drawing import camera
from drivekd.world.drawing.camera import Renderer, View, open_renderer, render
from drivekd.world.drawing.rig import HEIGHT, RIG, badge, stamp
from drivekd.world.frame import (
    COLOURS,
    KINDS,
    TOWNS,
    Colour,
    Frame,
    Kind,
    Pose,
    Strip,
    Thing,
    Weather,
)

pytestmark = pytest.mark.system

WEATHERS: tuple[Weather, ...] = get_args(Weather)

SIZES: dict[Kind, tuple[float, float, float]] = {
    "car": (4.5, 1.9, 1.5),
    "truck": (8.5, 2.5, 3.4),
    "bus": (11.5, 2.6, 3.3),
    "cyclist": (1.8, 0.7, 1.75),
    "pedestrian": (0.6, 0.6, 1.75),
    "cone": (0.45, 0.45, 0.8),
    "light": (0.6, 1.2, 5.0),
}
EGO = Pose(0, 0, 0, 5)
ROADS = (
    Strip(((-150.0, 0.0), (150.0, 0.0)), 3.6, "dashed", "solid"),
    Strip(((-150.0, 3.6), (150.0, 3.6)), 3.6, "solid", "none"),
    Strip(((30.0, -120.0), (30.0, 120.0)), 7.0),
)
MIRRORED = {
    "CAM_FRONT": "CAM_FRONT",
    "CAM_FRONT_LEFT": "CAM_FRONT_RIGHT",
    "CAM_FRONT_RIGHT": "CAM_FRONT_LEFT",
    "CAM_BACK": "CAM_BACK",
    "CAM_BACK_LEFT": "CAM_BACK_RIGHT",
    "CAM_BACK_RIGHT": "CAM_BACK_LEFT",
}


def project(
    camera: str, pose: Pose, x: float, y: float, z: float, size: int
) -> tuple[float, float, float]:
    """Pinhole projection of a world point: column, row [px], depth [m]; nan behind the camera."""
    lens = RIG[camera]
    angle = pose.heading + math.radians(lens.yaw)
    ahead, aside = math.cos(angle), math.sin(angle)
    dx, dy = x - pose.x, y - pose.y
    depth = dx * ahead + dy * aside
    if depth <= 0:
        return math.nan, math.nan, depth
    left = -dx * aside + dy * ahead
    u = size / 2 * (1 - left / depth / math.tan(math.radians(lens.hfov) / 2))
    v = size / 2 * (1 - (z - HEIGHT) / depth / math.tan(math.radians(lens.vfov) / 2))
    return u, v, depth


@pytest.fixture(scope="module")
def renderer(require_all: bool) -> Iterator[Renderer]:
    try:
        opened = open_renderer(96)
    except camera.MissingLibraryError as missing:
        if require_all:
            raise
        pytest.skip(str(missing))
    yield opened
    opened.close()


def thing(
    kind: Kind = "car",
    colour: Colour = "blue",
    x: float = 12,
    y: float = 0,
    heading: float = 0,
    **more: object,
) -> Thing:
    length, width, height = SIZES[kind]
    state = {"id": 1, "light": "red" if kind == "light" else None, **more}
    return Thing(
        kind=kind, colour=colour, x=x, y=y, heading=heading,
        length=length, width=width, height=height, **state,
    )  # fmt: skip


def frame(
    *things: Thing,
    weather: Weather = "day",
    ego: Pose = EGO,
    roads: tuple[Strip, ...] = (),
    seed: int = 3,
) -> Frame:
    numbered = tuple(replace(one, id=place) for place, one in enumerate(things, 1))
    return Frame(seed, "amber", weather, ego, numbered, roads)


def crowd(weather: Weather = "day") -> Frame:
    return frame(
        thing("car", "red", 12, 0, braking=True),
        thing("car", "blue", 20, 3.6, math.pi),
        thing("truck", "yellow", 30, -9, math.pi / 2),
        thing("pedestrian", "orange", 10, -6.5, math.pi / 2),
        thing("cyclist", "green", 9, -3.2, 0.1),
        thing("cone", "orange", 8, 2),
        thing("car", "white", -10, 0, turn="left"),
        thing("bus", "green", -18, 3.6),
        thing("light", "red", 22, -5),
        weather=weather,
        roads=ROADS,
    )


def by_name(views: tuple[View, ...]) -> dict[str, View]:
    return {view.camera: view for view in views}


def corners(one: Thing) -> list[tuple[float, float, float]]:
    cos, sin = math.cos(one.heading), math.sin(one.heading)
    return [
        (one.x + cos * a * one.length - sin * b * one.width,
         one.y + sin * a * one.length + cos * b * one.width, z)
        for a in (-0.5, 0.5) for b in (-0.5, 0.5) for z in (0.0, one.height)
    ]  # fmt: skip


def test_views_come_in_order_with_the_promised_types(renderer: Renderer) -> None:
    views = render(renderer, crowd())
    assert tuple(view.camera for view in views) == CAMERAS
    for view in views:
        assert view.rgb.shape == (96, 96, 3)
        assert view.rgb.dtype == np.uint8
        assert view.ids.shape == (96, 96)
        assert view.ids.dtype == np.uint8
        assert set(np.unique(view.ids)) <= set(range(10))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bearing", [0, 20, -33, 55, -70, 110, -125, 180, 160])
def test_pixels_fall_where_the_formula_says(renderer: Renderer, kind: Kind, bearing: int) -> None:
    ego = Pose(37, -12, 0.7, 5)
    angle = ego.heading + math.radians(bearing)
    one = thing(kind, "blue", ego.x + 16 * math.cos(angle), ego.y + 16 * math.sin(angle), 1.1)
    seen = 0
    for view in render(renderer, frame(one, ego=ego)):
        spots = [project(view.camera, ego, *corner, 96) for corner in corners(one)]
        if any(depth < 0.5 for *_, depth in spots):
            continue
        u, v, _ = np.array(spots).T
        inside = min(u.min(), v.min()) >= 1 and max(u.max(), v.max()) <= 95
        rows, columns = np.nonzero(view.ids == 1)
        if len(rows):  # the renderer gives a cut pixel to the thing, up to one beyond its box
            assert columns.min() + 0.5 >= u.min() - 1
            assert columns.max() + 0.5 <= u.max() + 1
            assert rows.min() + 0.5 >= v.min() - 1
            assert rows.max() + 0.5 <= v.max() + 1
        if inside:
            seen += 1
            middle = project(view.camera, ego, one.x, one.y, one.height / 2, 96)
            # A lamp's box sits on top of its mast, so its pixels' middle is above the box's.
            slack = (0.25 if kind == "light" else 0.12) * (v.max() - v.min()) + 1
            assert abs(columns.mean() + 0.5 - middle[0]) < 0.2 * (u.max() - u.min()) + 1
            assert abs(rows.mean() + 0.5 - middle[1]) < slack
    assert seen or abs(bearing) in (33, 70, 125, 20)  # these lie near a picture's edge


def test_left_is_left(renderer: Renderer) -> None:
    views = by_name(render(renderer, frame(thing(x=12, y=3.5))))
    columns = np.nonzero(views["CAM_FRONT"].ids)[1]
    assert len(columns)
    assert columns.max() < 48
    views = by_name(render(renderer, frame(thing(x=6, y=9))))
    assert views["CAM_FRONT_LEFT"].ids.any()
    assert not views["CAM_FRONT_RIGHT"].ids.any()
    assert not views["CAM_BACK_RIGHT"].ids.any()


def test_mirrored_world_gives_mirrored_ids(renderer: Renderer) -> None:
    original = replace(crowd(), roads=())
    other = {None: None, "left": "right", "right": "left"}
    mirrored = replace(
        original,
        things=tuple(
            replace(one, y=-one.y, heading=-one.heading, turn=other[one.turn])
            for one in original.things
        ),
    )
    first, second = by_name(render(renderer, original)), by_name(render(renderer, mirrored))
    mark = len(badge("CAM_FRONT", 96))
    for name, twin in MIRRORED.items():
        one, two = first[name].ids[mark:], second[twin].ids[mark:, ::-1]
        assert set(np.unique(one)) == set(np.unique(two))
        # Cut pixels go to one side only, so edges may move by a pixel; corners by two.
        around = np.lib.stride_tricks.sliding_window_view(np.pad(one, 1, "edge"), (3, 3))
        assert (around == two[..., None, None]).any((2, 3)).mean() > 0.999
        assert (one == two).mean() > 0.95


def test_near_things_hide_far_ones(renderer: Renderer) -> None:
    truck, hidden = thing("truck", x=14), thing("cone", x=30)
    assert 2 in render(renderer, frame(thing("truck", x=14, y=9), hidden))[0].ids
    assert 2 not in render(renderer, frame(truck, hidden))[0].ids


def test_every_id_survives() -> None:
    sharp = open_renderer(192)
    pole = Thing(1, "cone", "orange", 0, 0, 0, 0.42, 0.42, 4.0)
    turns = np.arange(250) / 250 * 2 * math.pi
    ring = [replace(pole, x=20 * math.cos(a), y=20 * math.sin(a)) for a in turns]
    views = render(sharp, frame(*ring))
    seen = set(np.unique(np.stack([view.ids for view in views])))
    sharp.close()
    assert seen == set(range(251))


@pytest.mark.parametrize("weather", WEATHERS)
def test_same_frame_same_bytes(renderer: Renderer, weather: Weather) -> None:
    wanted = render(renderer, crowd(weather))
    render(renderer, frame(thing("bus")))
    other = open_renderer(96)
    for again in (render(renderer, crowd(weather)), render(other, crowd(weather))):
        for one, two in zip(wanted, again, strict=True):
            np.testing.assert_array_equal(one.rgb, two.rgb)
            np.testing.assert_array_equal(one.ids, two.ids)
    other.close()


def test_weather_and_town_change_the_picture_but_not_the_ids(renderer: Renderer) -> None:
    pictures = [render(renderer, crowd(weather))[0] for weather in WEATHERS]
    for one, two in combinations(pictures, 2):
        np.testing.assert_array_equal(one.ids, two.ids)
        assert np.abs(one.rgb.astype(int) - two.rgb).mean() > 5
    towns = [render(renderer, replace(crowd(), town=town))[0].rgb for town in TOWNS]
    for a, b in combinations(towns, 2):
        assert np.abs(a.astype(int) - b).mean() > 5


@pytest.mark.parametrize("weather", WEATHERS)
@pytest.mark.parametrize("kind", ["car", "truck", "bus", "cyclist", "pedestrian"])
def test_colours_can_be_told_apart(renderer: Renderer, kind: Kind, weather: Weather) -> None:
    paints = {}
    for colour in COLOURS:
        view = render(renderer, frame(thing(kind, colour, 12, 1, math.pi / 2), weather=weather))[0]
        rows, columns = np.nonzero(view.ids)
        # The middle of the body: the clothes of people, the side of vehicles.
        high = rows.min() + (rows.max() - rows.min()) * (0.4 if kind != "bus" else 0.62)
        band = (np.abs(rows - high) <= 1) & (np.abs(columns - columns.mean()) <= 3)
        paints[colour] = np.median(view.rgb[rows[band], columns[band]].astype(float), axis=0)
    for one, two in combinations(COLOURS, 2):
        assert np.linalg.norm(paints[one] - paints[two]) > 30, (one, two, paints)


@pytest.mark.parametrize("weather", WEATHERS)
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("kind", ["car", "truck", "bus"])
def test_lamps_show_at_22_metres(
    renderer: Renderer, kind: Kind, colour: Colour, weather: Weather
) -> None:
    def seen(**state: object) -> np.ndarray:
        return render(renderer, frame(thing(kind, colour, 22, **state), weather=weather))[0].rgb

    plain = seen().astype(int)
    braking, left, right = (
        np.abs(seen(**state) - plain).max(2) > 45
        for state in ({"braking": True}, {"turn": "left"}, {"turn": "right"})
    )
    assert braking.sum() >= 14
    assert min(left.sum(), right.sum()) >= 6
    assert np.nonzero(left)[1].mean() < 48 < np.nonzero(right)[1].mean() + 1


def test_traffic_light_shows_its_state_to_the_front_only(renderer: Renderer) -> None:
    def seen(light: str, heading: float) -> np.ndarray:
        one = thing("light", "black", 22, -3, heading, light=light)
        return render(renderer, frame(one))[0].rgb.astype(int)

    red, green = seen("red", 0), seen("green", 0)
    assert ((red[..., 0] > 200) & (red[..., 1] < 80)).sum() >= 10
    assert ((green[..., 1] > 200) & (green[..., 0] < 80)).sum() >= 10
    np.testing.assert_array_equal(seen("red", math.pi), seen("green", math.pi))


def test_surroundings_stand_still(renderer: Renderer) -> None:
    """A step ahead moves the picture, it does not build another town."""
    near = replace(crowd(), things=())
    behind = replace(near, ego=Pose(-0.05, 0, 0, 5))
    first, second = render(renderer, near)[0].rgb, render(renderer, behind)[0].rgb
    assert 0 < np.abs(first.astype(int) - second).mean() < 4


def test_other_sizes() -> None:
    for size in (64, 448):
        other = open_renderer(size)
        view = render(other, crowd())[0]
        other.close()
        assert view.rgb.shape == (size, size, 3)
        assert view.ids.shape == (size, size)
        rows, columns = np.nonzero(view.ids == 1)
        u, v, _ = project("CAM_FRONT", EGO, 12, 0, 0.75, size)
        assert abs(columns.mean() + 0.5 - u) < size / 40
        assert abs(rows.mean() + 0.5 - v) < size / 40


def test_badges_differ_and_can_be_stamped_again(renderer: Renderer) -> None:
    views = render(renderer, crowd())
    tops = [view.rgb[:10, :10] for view in views]
    for one, two in combinations(tops, 2):
        assert np.abs(one.astype(int) - two).mean() > 30
    flipped = views[1].rgb[:, ::-1].copy()
    stamp(flipped, "CAM_FRONT_RIGHT")
    np.testing.assert_array_equal(flipped[:10, :10], tops[2])
    assert badge("CAM_BACK", 448).shape == (47, 47, 3)


def test_no_roads_and_many_roads(renderer: Renderer) -> None:
    none = render(renderer, frame(thing()))
    many = tuple(
        Strip(((-100.0, float(y)), (100.0, float(y))), 3.5, "dashed", "solid")
        for y in range(-100, 100)
    )
    paved = render(renderer, frame(thing(), roads=many))
    for bare, view in zip(none, paved, strict=True):
        np.testing.assert_array_equal(bare.ids, view.ids)  # roads are never asked about
    assert any((bare.rgb != view.rgb).any() for bare, view in zip(none, paved, strict=True))


def test_borders(monkeypatch: pytest.MonkeyPatch, renderer: Renderer) -> None:
    twice = replace(frame(thing()), things=(thing(), thing(y=5)))
    with pytest.raises(ValueError, match="different thing ids from 1 to 250"):
        render(renderer, twice)
    with pytest.raises(ValueError, match="picture size"):
        open_renderer(4)
    closed = open_renderer(32)
    closed.close()
    with pytest.raises(ValueError, match="got a closed one"):
        render(closed, frame())

    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(camera.MissingLibraryError, match="libx11-6"):
        open_renderer(96)
