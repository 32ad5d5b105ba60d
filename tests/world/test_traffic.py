"""Stories about who moves how, and what six actions lead to."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from highway_env.road.lane import StraightLane
from highway_env.road.road import Road, RoadNetwork

from drivekd.world.frame import Kind
from drivekd.world.traffic import ACTIONS, SIZES, STEP, Driver, Ego, Intent, Mover, look_ahead

WIDTH = 3.5


def a_road(speed: float = 14.0, lane: int = 1, lanes: int = 3) -> Road:
    """A straight road with the ego at x = 0, lane 0 being the leftmost."""
    network = RoadNetwork()
    for i in range(lanes):
        ends = [-200, i * WIDTH], [2000, i * WIDTH]
        network.add_lane("a", "b", StraightLane(*ends, width=WIDTH, speed_limit=20))
    road = Road(network, np_random=np.random.RandomState(0))
    ego = Ego(road, [0.0, lane * WIDTH], 0.0, speed)
    ego.lanes = lanes
    road.vehicles.append(ego)
    return road


def put_driver(
    road: Road, x: float, lane: int, speed: float, intent: Intent = "keep", kind: Kind = "car"
) -> Driver:
    driver = Driver(road, [x, lane * WIDTH], 0.0, speed, target_speed=max(speed, 0.1))
    driver.set_up(kind, "red", intent)
    driver.number = len(road.vehicles)
    road.vehicles.append(driver)
    return driver


def put_mover(
    road: Road, x: float, y: float, heading: float = 0.0, speed: float = 0.0, kind: Kind = "car"
) -> Mover:
    mover = Mover(road, [x, y], heading, speed)
    mover.set_up(kind, "red")
    mover.number = len(road.vehicles)
    road.vehicles.append(mover)
    return mover


def drive(road: Road, seconds: float) -> None:
    for _ in range(round(seconds / STEP)):
        road.act()
        road.step(STEP)


def bumper_gap(rear: Driver, front: Driver | Mover) -> float:
    return float(front.position[0] - rear.position[0]) - (front.LENGTH + rear.LENGTH) / 2


def test_a_follower_stops_before_the_obstacle() -> None:
    road = a_road(lane=0)
    follower = put_driver(road, 0, 2, 12.0)
    obstacle = put_mover(road, 70, 2 * WIDTH)
    gaps = []
    for _ in range(20):
        drive(road, 1)
        gaps.append(bumper_gap(follower, obstacle))
    assert not follower.crashed
    assert abs(follower.speed) < 0.3
    assert 1.0 < gaps[-1] < 12.0
    assert min(gaps) > 1.0


def test_a_follower_keeps_a_gap_that_grows_with_its_speed() -> None:
    gaps = []
    for speed in (6.0, 12.0):
        road = a_road(lane=0)
        leader = put_driver(road, 30, 2, speed)
        follower = put_driver(road, 0, 2, speed)
        follower.target_speed = 20.0
        drive(road, 40)
        assert follower.speed == pytest.approx(leader.speed, abs=0.1)
        gaps.append(bumper_gap(follower, leader))
    # IDM's equilibrium gap is at least its wanted distance and time headway [m]
    for speed, gap in zip((6.0, 12.0), gaps, strict=True):
        wanted = Driver.DISTANCE_WANTED + speed * Driver.TIME_WANTED
        assert gap + SIZES["car"][0] > wanted > 5


def test_a_braking_leader_is_hit_if_the_ego_keeps_its_speed() -> None:
    road = a_road()
    leader = put_driver(road, 20, 1, 13.0, "brake")
    assert leader.braking
    kept, end = look_ahead(road, "keep speed", None)
    assert kept.collision == leader.number
    assert kept.gap == pytest.approx(0, abs=1.5)
    assert kept.time_to_collision < 1
    assert end.vehicles[1].speed < 6
    stopped, _ = look_ahead(road, "stop", None)
    assert stopped.collision == 0
    assert stopped.gap > 3
    for change in ("lane left", "lane right"):
        assert look_ahead(road, change, None)[0].collision == 0


def test_a_parked_car_is_reached_when_the_formula_says() -> None:
    speed, x = 10.0, 30.0
    road = a_road(speed)
    put_mover(road, x, WIDTH)
    outcome, _ = look_ahead(road, "keep speed", None)
    free = x - SIZES["car"][0]
    assert outcome.collision == 1
    assert outcome.progress == pytest.approx(free, abs=speed * STEP)
    assert look_ahead(road, "stop", None)[0].gap == pytest.approx(free - speed**2 / 12, abs=4)


def test_a_walker_who_steps_out_is_hit_only_by_those_who_go_on() -> None:
    road = a_road(9.0)
    walker = put_mover(road, 14, WIDTH + 1.5, -math.pi / 2, 0.8, "pedestrian")
    assert look_ahead(road, "keep speed", None)[0].collision == walker.number
    assert look_ahead(road, "stop", None)[0].collision == 0


@pytest.mark.parametrize("lane", [0, 2])
def test_a_lane_that_is_not_there_is_reported_and_not_entered(lane: int) -> None:
    road = a_road(lane=lane)
    for action, absent in (("lane left", lane == 0), ("lane right", lane == 2)):
        outcome, end = look_ahead(road, action, None)
        assert outcome.left_lane is absent
        moved = float(end.vehicles[0].position[1]) - lane * WIDTH
        assert abs(moved) == pytest.approx(0 if absent else WIDTH, abs=0.3)


def test_a_follower_who_runs_into_the_ego_is_at_fault() -> None:
    road = a_road(12.0)
    put_mover(road, -9, WIDTH, 0.0, 14.0)  # it never brakes
    outcome, end = look_ahead(road, "stop", None)
    assert end.vehicles[0].crashed
    assert outcome.collision == 0


def test_whoever_changes_lane_into_another_is_at_fault() -> None:
    road = a_road(12.0)
    beside = put_mover(road, -3, 0, 0.0, 12.0)
    outcome, _ = look_ahead(road, "lane left", None)
    assert outcome.collision == beside.number
    assert look_ahead(road, "keep speed", None)[0].collision == 0
    assert look_ahead(road, "lane right", None)[0].collision == 0


def test_who_is_struck_from_the_side_collides_too() -> None:
    """A long vehicle's middle may be behind the ego's although its nose is beside the ego."""
    road = a_road(9.0)
    beside = put_driver(road, -1, 2, 9.0, "left", "truck")
    outcome, end = look_ahead(road, "keep speed", None)
    assert end.vehicles[0].crashed
    assert outcome.collision == beside.number


def test_every_crash_is_named_but_those_from_behind(truths: list[dict[str, Any]]) -> None:
    named = Counter(a for t in truths for a, o in t["outcomes"].items() if o["collision"])
    assert set(named) == set(ACTIONS)
    cones = [t for t in truths if t["cause"] == "cones"]
    for truth in cones:
        first = truth["outcomes"]["keep speed"]["collision"]
        assert {t["id"]: t["kind"] for t in truth["frame"]["things"]}[first] == "cone"
    assert cones


def test_drivers_do_not_back_away() -> None:
    road = a_road(0.0, lane=1)
    late = put_driver(road, -6, 1, 5.0)  # far too near to what stands in front of it
    put_mover(road, 0, WIDTH)
    for _ in range(20):
        drive(road, STEP)
        assert late.speed >= 0


def test_a_stop_line_at_red_is_run_by_keeping_the_speed() -> None:
    road = a_road(9.0)
    for action, runs in (("keep speed", True), ("accelerate", True), ("stop", False)):
        outcome, end = look_ahead(road, action, 15.0)
        assert outcome.ran_red is runs, action
        front = float(end.vehicles[0].position[0]) + Ego.LENGTH / 2
        assert (front > 15.0) is runs
        assert not look_ahead(road, action, None)[0].ran_red


def test_actions_order_the_distance_driven() -> None:
    road = a_road(10.0)
    order = ("accelerate", "keep speed", "slow down", "stop")
    driven = [look_ahead(road, action, None)[0].progress for action in order]
    assert driven == sorted(driven, reverse=True)
    assert driven[1] == pytest.approx(40, abs=0.5)
    assert driven[0] <= 40 + 0.5 * 2.5 * 16  # never above its acceleration limit
    assert driven[3] >= 10**2 / 12  # nor below its braking limit


def test_the_look_ahead_leaves_the_given_road_untouched() -> None:
    road = a_road()
    put_driver(road, 18, 1, 12.0, "brake")
    put_driver(road, 10, 0, 13.0, "right")
    put_mover(road, 15, 9.0, -math.pi / 2, 1.0, "pedestrian")

    def state() -> list[tuple[object, ...]]:
        names = ("speed", "heading", "lane_index", "crashed", "timer", "target_speed")
        names += ("target_lane_index",)
        return [(*v.position, *(getattr(v, n, None) for n in names)) for v in road.vehicles]

    before = state()
    for action in ACTIONS:
        _, end = look_ahead(road, action, 20.0)
        assert end is not road
        assert state() == before
    again = [look_ahead(road, action, 20.0)[0] for action in ACTIONS]
    assert again == [look_ahead(road, action, 20.0)[0] for action in ACTIONS]


@pytest.mark.parametrize(("intent", "sideways"), [("left", -WIDTH), ("right", WIDTH), ("keep", 0)])
def test_an_indicator_keeps_its_word(intent: Intent, sideways: float) -> None:
    road = a_road(lane=0)
    driver = put_driver(road, 30, 1, 10.0, intent)
    assert driver.turn == (intent if intent != "keep" else None)
    assert not driver.braking
    drive(road, 4)
    assert float(driver.position[1]) - WIDTH == pytest.approx(sideways, abs=0.3)


def test_brake_lamps_keep_their_word() -> None:
    road = a_road(lane=0)
    driver = put_driver(road, 30, 2, 10.0, "brake")
    assert driver.braking
    drive(road, 1)
    assert driver.speed < 7
    drive(road, 3)
    assert 0 <= driver.speed < 2.5


def test_movers_keep_their_course() -> None:
    road = a_road()
    straight = put_mover(road, 0, 20, -math.pi / 3, 4.0, "cyclist")
    turning = put_mover(road, 0, 30, 0.0, 6.0)
    turning.yaw_rate = -6.0 / 13.0
    drive(road, 3)
    ahead = 12 * np.array([math.cos(math.pi / 3), -math.sin(math.pi / 3)])
    np.testing.assert_allclose(straight.position, np.array([0, 20]) + ahead, atol=1e-9)
    assert straight.speed == 4.0
    centre = np.array([0, 30 - 13.0])
    assert np.linalg.norm(turning.position - centre) == pytest.approx(13, abs=1.5)
