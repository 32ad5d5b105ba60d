from __future__ import annotations

import numpy as np
import pytest

from drivekd.evaluate.resampling import (
    DIFFERENCES,
    SCORES,
    Part,
    alone,
    draws,
    estimate,
    holm,
    mean,
    p_value,
    places,
    pull,
    resampled,
    stretch,
    tally,
)


def part(scenes: int, seed: int = 0, size: int = 7, middle: float = 50.0) -> Part:
    rng = np.random.default_rng(seed)
    count = rng.integers(1, size, scenes).astype(float)
    level = rng.normal(middle, 12, scenes)
    return Part(level * count + rng.normal(0, 6, scenes) * np.sqrt(count), count)


def test_tally_is_by_scene() -> None:
    columns = places(["b", "a", "b"])
    found = tally([("a", 1.0), ("b", 3.0), ("b", 5.0)], columns)
    assert (found.total.tolist(), found.count.tolist()) == ([8.0, 1.0], [2.0, 1.0])
    assert (found.mean, found.n, found.scenes) == (3.0, 3, 2)


@pytest.mark.parametrize("mix", [[], [(1, Part(np.zeros(3), np.zeros(3)))]])
def test_nothing_has_no_mean(mix: list[tuple[int, Part]]) -> None:
    with pytest.raises(ValueError, match="no questions"):
        mean(mix)
    with pytest.raises(ValueError, match="no questions"):
        estimate(mix, draws(3, 0, 10), SCORES)


def test_the_error_is_that_of_leaving_out_a_scene() -> None:
    """Brute force: the jackknife over scenes, which the clustered error is to first order."""
    mix = [(1, part(60, 1)), (2, part(60, 2))]
    without = []
    for scene in range(60):
        left = [(w, Part(np.delete(p.total, scene), np.delete(p.count, scene))) for w, p in mix]
        without.append(mean(left))
    jackknife = np.sqrt(59 / 60 * np.sum((np.array(without) - np.mean(without)) ** 2))
    found = estimate(mix, draws(60, 0), SCORES)
    assert found.standard_error == pytest.approx(jackknife, rel=0.02)
    assert found.standard_error == pytest.approx(resampled(mix, draws(60, 0))[1:].std(), rel=0.05)


def test_the_error_of_scenes_alike_is_that_of_their_means() -> None:
    values = np.random.default_rng(3).normal(40, 9, 12)
    found = estimate(alone(Part(4 * values, np.full(12, 4.0))), draws(12, 0), SCORES)
    assert found.standard_error == pytest.approx(values.std(ddof=1) / np.sqrt(12))
    assert (found.n, found.scenes) == (48, 12)


def test_pulls_sum_to_nothing() -> None:
    assert pull([(1, part(9, 4)), (3, part(9, 5))]).sum() == pytest.approx(0, abs=1e-9)


def test_only_ratios_of_weights_count() -> None:
    one, other = part(20, 6), part(20, 7)
    weights = draws(20, 0, 50)
    small = estimate([(1, one), (2, other)], weights, SCORES)
    large = estimate([(3, one), (6, other)], weights, SCORES)
    assert small.mean == pytest.approx((one.mean + 2 * other.mean) / 3)
    assert (large.mean, large.standard_error, large.low) == pytest.approx(
        (small.mean, small.standard_error, small.low)
    )


def test_a_single_scene_in_one_part_is_no_interval() -> None:
    lonely = Part(np.array([50.0, 0, 0]), np.array([1.0, 0, 0]))
    found = estimate([(1, part(3)), (1, lonely)], draws(3, 0, 50), SCORES)
    assert (found.standard_error, found.low, found.high, found.scenes) == (None, None, None, 3)
    assert p_value([(1, lonely)], draws(3, 0, 50)) is None


def test_intervals_of_percentages_stay_within() -> None:
    few = Part(np.array([100.0, 0.0, 100.0, 100.0, 0.0]), np.ones(5))
    found = estimate(alone(few), draws(5, 0, 400), SCORES)
    assert (found.low, found.high) == (0.0, 100.0)
    more = estimate(alone(few), draws(5, 0, 400), DIFFERENCES)
    assert more.low is not None and more.low < 0 and more.high == 100.0
    four = Part(few.total[:4], few.count[:4])
    assert estimate(alone(four), draws(4, 0, 400), SCORES).low is None


@pytest.mark.parametrize("scenes", [5, 10, 40])
def test_intervals_hold_the_truth_as_often_as_they_say(scenes: int) -> None:
    """Stretched: without it, 5 scenes hold it in 83 % of the cases, 10 in 90 %."""
    held, weights = 0, draws(scenes, 0, 500)
    for trial in range(300):
        values = np.random.default_rng(trial).normal(0, 5, scenes)
        found = estimate(alone(Part(6 * values, np.full(scenes, 6.0))), weights, DIFFERENCES)
        assert found.low is not None and found.high is not None
        held += found.low <= 0 <= found.high
    assert 0.92 <= held / 300 <= 0.98


@pytest.mark.parametrize("scenes", [8, 30])
def test_p_is_small_as_often_as_it_says(scenes: int) -> None:
    weights = draws(scenes, 0, 500)
    values = [np.random.default_rng(trial).normal(0, 5, scenes) for trial in range(300)]
    ps = [p_value(alone(Part(v, np.ones(scenes))), weights) for v in values]
    assert 0.02 <= np.mean([p is not None and p < 0.05 for p in ps]) <= 0.08
    assert 0.4 <= np.mean([p is not None and p < 0.5 for p in ps]) <= 0.6


def test_p_knows_a_difference_and_its_sign_does_not_count() -> None:
    weights = draws(40, 0, 999)
    values = np.random.default_rng(8).normal(8, 5, 40)
    there, back = (p_value(alone(Part(s * values, np.ones(40))), weights) for s in (1, -1))
    assert there == back == 0.002  # no draw of 999 on the other side
    assert p_value(alone(Part(np.zeros(40), np.ones(40))), weights) == 1.0


def test_p_is_not_below_what_so_few_scenes_can_tell() -> None:
    for differing, least in ((2, 0.5), (4, 0.125), (6, 0.03125)):
        total = np.array([1.0] * differing + [0.0] * (10 - differing))
        found = p_value(alone(Part(total, np.ones(10))), draws(10, 0))
        assert found is not None
        assert found >= least
    same = p_value(alone(Part(np.ones(6), np.ones(6))), draws(6, 0))
    assert same == 0.03125  # alike in every scene: no draw differs


def test_stretch_falls_to_one() -> None:
    assert stretch(10) == pytest.approx(np.sqrt(10 / 9) * 2.262157 / 1.959964, rel=1e-6)
    assert 1 < stretch(1000) < 1.003


def test_holm() -> None:
    # by hand: .01 × 3; max(.03, .02 × 2); max(.04, .04 × 1)
    assert holm([0.02, 0.01, 0.04]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []
