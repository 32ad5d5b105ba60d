"""Means and differences with errors clustered by scene, held against scipy and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp, ttest_rel

from drivekd.statistics import FEWEST, difference, estimate, holm


def names(scenes: int, each: int = 1) -> list[str]:
    return [str(scene) for scene in range(scenes) for _ in range(each)]


def rights(right: int, questions: int) -> list[float]:
    return [100.0] * right + [0.0] * (questions - right)


def uneven(scenes: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Scores of 1 to 6 questions about each scene, which differ by scene."""
    random = np.random.default_rng(seed)
    of = np.repeat(np.arange(scenes), random.integers(1, 7, scenes))
    level = random.normal(50, 12, scenes)[of]
    return np.clip(level + random.normal(0, 6, len(of)), 0, 100), [str(scene) for scene in of]


def test_the_error_is_that_of_leaving_out_a_scene() -> None:
    """Brute force: the jackknife over scenes, which the clustered error is to first order."""
    values, scenes = uneven(60, 1)
    keep = np.asarray(scenes)
    without = [values[keep != scene].mean() for scene in sorted(set(scenes))]
    jackknife = np.sqrt(59 / 60 * ((without - np.mean(without)) ** 2).sum())
    assert estimate(values, scenes).standard_error == pytest.approx(jackknife, rel=0.03)


def test_the_error_of_scenes_alike_is_that_of_their_means() -> None:
    means = np.random.default_rng(3).normal(40, 9, 12)
    found = estimate(np.repeat(means, 4), names(12, 4))
    assert found.standard_error == pytest.approx(means.std(ddof=1) / np.sqrt(12))
    assert (found.n, found.scenes) == (48, 12)


def test_all_right_is_a_hundred_in_any_mix() -> None:
    assert estimate([100.0] * 9, names(9), list("aaabbbbcc")).mean == 100.0


def test_groups_weigh_alike_or_as_asked_and_only_ratios_count() -> None:
    values, scenes = uneven(20, 6)
    groups = ["a" if i % 3 else "b" for i in range(len(values))]
    means = {g: np.mean([v for v, k in zip(values, groups, strict=True) if k == g]) for g in "ab"}
    assert estimate(values, scenes, groups).mean == pytest.approx((means["a"] + means["b"]) / 2)
    small, large = (
        estimate(values, scenes, groups, [factor * (1 if g == "a" else 2) for g in groups])
        for factor in (1, 3)
    )
    assert small.mean == pytest.approx((means["a"] + 2 * means["b"]) / 3)
    assert (small.standard_error, small.low) == pytest.approx((large.standard_error, large.low))


@pytest.mark.parametrize("scenes", [5, 50, 500])
def test_one_more_right_answer_lowers_no_end(scenes: int) -> None:
    """500 of 500 had [92.9, 100], 499 of 500 had [99.4, 100]."""
    found = [estimate(rights(right, scenes), names(scenes)) for right in range(scenes + 1)]
    lows, highs = np.transpose([(each.low, each.high) for each in found])
    assert (np.diff(lows) >= -1e-9).all()
    assert (np.diff(highs) >= -1e-9).all()
    assert lows[0] == 0 < highs[0]
    assert lows[-1] < 100 == highs[-1]


def test_ends_of_independent_answers_are_wilsons() -> None:
    for right in (30, 150, 270, 300):
        found = estimate(rights(right, 300), names(300))
        wilson = binomtest(right, 300).proportion_ci(0.95, "wilson")
        ends = (100 * wilson.low, 100 * wilson.high)
        assert (found.low, found.high) == pytest.approx(ends, abs=0.6)


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9, 0.95, 0.97])
@pytest.mark.parametrize("scenes", [5, 10, 20, 50, 100])
def test_intervals_hold_the_truth_as_often_as_they_say(scenes: int, rate: float) -> None:
    """A few hundred sets; benchmarks/coverage.py takes 2,000 of every kind."""
    random, held, sets = np.random.default_rng([scenes, int(100 * rate)]), 0, 300
    for _ in range(sets):
        right = random.random((scenes, 4)) < random.beta(9 * rate, 9 * (1 - rate), (scenes, 1))
        found = estimate(100.0 * right.ravel(), names(scenes, 4))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 100 * rate <= found.high
    assert 0.915 <= held / sets <= 0.99


def test_a_difference_of_one_question_a_scene_is_the_paired_t_test() -> None:
    random = np.random.default_rng(8)
    mine, theirs = random.uniform(0, 100, (2, 9))
    found = difference(mine, theirs, names(9))
    test = ttest_rel(mine, theirs)
    interval = test.confidence_interval(0.95)
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    back = difference(theirs, mine, names(9))
    assert (back.p, back.mean) == pytest.approx((found.p, -found.mean))


def test_p_is_small_as_often_as_it_says() -> None:
    """By Holm, a family of ten at ten scenes had one below .05 in 12 % of the cases."""
    random = np.random.default_rng(0)
    ps = [
        difference(*random.normal(50, 5, (2, 10)).clip(0, 100), names(10)).p or 0
        for _ in range(1000)
    ]
    assert 0.03 <= np.mean([p < 0.05 for p in ps]) <= 0.07
    families = [holm(ps[i : i + 10]) for i in range(0, 1000, 10)]
    assert np.mean([min(family) < 0.05 for family in families]) <= 0.1


def test_p_is_not_below_what_so_few_scenes_can_tell() -> None:
    """Alike in every scene, the error is 0: p is that of turning signs, not 0."""
    for differing in (2, 4, 6):
        found = difference([1.0] * differing + [0.0] * (10 - differing), [0.0] * 10, names(10))
        assert found.p is not None
        assert found.p >= 2.0 ** (1 - differing)
    alike = difference([6.0] * 6, [5.0] * 6, names(6))
    assert (alike.standard_error, alike.p) == (0.0, 2.0**-5)
    assert difference([5.0] * 6, [5.0] * 6, names(6)).p == 1.0


def test_fewer_scenes_than_five_have_no_interval() -> None:
    for scenes in range(1, FEWEST):
        found = estimate([50.0] * scenes, names(scenes))
        assert (found.standard_error, found.low, found.high) == (None, None, None)
        pair = difference([50.0] * scenes, [40.0] * scenes, names(scenes))
        assert (pair.mean, pair.low, pair.p) == (10.0, None, None)
    lonely = ["a"] * 7 + ["b"]  # a group with one scene
    assert estimate([50.0] * 8, names(8), lonely).low is None
    assert estimate([50.0] * FEWEST, names(FEWEST)).low is not None


def test_seeds_widen_the_interval_by_what_they_differ() -> None:
    random = np.random.default_rng(4)
    answers = random.uniform(20, 80, 40)
    alike = estimate(np.stack([answers] * 3), names(40))
    apart = estimate(np.stack([answers - 9, answers, answers + 9]), names(40))
    plain = estimate(answers, names(40))
    assert alike.standard_error == pytest.approx(plain.standard_error)
    expected = np.hypot(plain.standard_error or 0, 9 / np.sqrt(3))  # of the mean of three seeds
    assert apart.standard_error == pytest.approx(expected)
    only_seeds = difference(
        np.array([[53.0] * 40, [55.0] * 40, [54.0] * 40]), np.full((3, 40), 50.0), names(40)
    )
    assert only_seeds.p == pytest.approx(ttest_1samp([3.0, 5.0, 4.0], 0).pvalue)


def test_a_difference_of_rounding_is_none() -> None:
    """It had a p of 2^(1 − 10), as if ten scenes had differed alike."""
    nothing = difference([0.1 + 0.2] * 10, [0.3] * 10, names(10))
    assert nothing.p == 1.0
    apart = difference([0.1 + 0.2, 0.3] * 5, [0.2, 0.2] * 5, names(10))
    assert apart.p == 2.0**-9


@pytest.mark.parametrize(
    ("values", "scenes", "named"),
    [
        ([], [], "no questions"),
        ([50.0], ["a", "b"], "expected as many scenes"),
        ([np.nan], ["a"], "not finite"),
        ([101.0], ["a"], "got 101"),
    ],
)
def test_what_has_no_mean_is_refused(values: list[float], scenes: list[str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        estimate(values, scenes)


def test_sides_of_other_questions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2\] and \[1\]"):
        difference([1.0, 2.0], [1.0], ["a", "b"])


def test_holm() -> None:
    # by hand: .01 × 3; max(.03, .02 × 2); max(.04, .04 × 1)
    assert holm([0.02, 0.01, 0.04]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []
