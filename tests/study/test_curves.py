"""The mathematics of the panels beside loops over samples."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from drivekd.statistics import draw_scenes
from drivekd.study.curves import (
    Curve,
    bins,
    dispersion,
    pair_mean,
    ratio,
    unit,
)

SCENES = (3, 1, 4, 2)  # samples of each


def per_scene(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = np.split(values, np.cumsum(SCENES)[:-1])
    return np.stack([part.sum(axis=0) for part in parts]), np.array(SCENES, dtype=float)


def test_pairs_from_sums_are_the_pairs_one_by_one() -> None:
    features = unit(np.random.default_rng(0).normal(size=(sum(SCENES), 7)))
    sums, counts = per_scene(features)
    weights = draw_scenes(len(SCENES), 5, np.random.default_rng(1))
    scene = np.repeat(np.arange(len(SCENES)), SCENES)
    for found, weight in zip(pair_mean(sums, counts, weights), weights, strict=True):
        total = pairs = 0.0
        for i, j in combinations(range(len(features)), 2):
            both = weight[scene[i]] * weight[scene[j]]
            total, pairs = total + both * float(features[i] @ features[j]), pairs + both
        assert found == pytest.approx(total / pairs, abs=1e-12)


def test_copies_of_a_drawn_scene_do_not_lift_the_band() -> None:
    """Orthogonal samples have a consistency of 0 in every draw, not the copies' cosine of 1."""
    sums, counts = np.eye(4), np.ones(4)
    weights = draw_scenes(4, 200, np.random.default_rng(2))
    found = pair_mean(sums, counts, weights)
    assert np.abs(found[np.isfinite(found)]).max() < 1e-12


def test_one_sample_has_no_pairs() -> None:
    assert np.isnan(pair_mean(np.ones((1, 3)), np.ones(1), np.ones((1, 1)))[0])


def test_ratio_is_the_mean_over_samples_and_absent_where_nothing_is() -> None:
    values = np.random.default_rng(3).normal(size=(sum(SCENES), 5))
    sums, counts = per_scene(values)
    every = np.repeat(counts[:, None], 5, axis=1)
    every[:, 4] = 0
    found = ratio(sums, every, np.ones((1, len(SCENES))))[0]
    assert found[:4] == pytest.approx(values[:, :4].mean(axis=0))
    assert np.isnan(found[4])


def test_dispersion_is_the_mean_over_pairs() -> None:
    vectors = np.random.default_rng(4).normal(size=(3, 2, 5))
    said = [
        1 - np.sum(unit(vectors[i]) * unit(vectors[j]), axis=1)
        for i, j in combinations(range(3), 2)
    ]
    assert dispersion(vectors) == pytest.approx(np.mean(said, axis=0), abs=1e-12)
    assert dispersion(np.repeat(vectors[:1], 4, axis=0)) == pytest.approx(np.zeros(2), abs=1e-12)


@pytest.mark.parametrize(
    ("tokens", "places"),
    [(1, [0]), (2, [0, 5]), (3, [0, 3, 6]), (10, list(range(10))), (20, sorted([*range(10)] * 2))],
)
def test_bins_follow_the_formula(tokens: int, places: list[int]) -> None:
    margins = np.arange(1.0, tokens + 1)
    sums, counts = bins(margins)
    assert counts.tolist() == np.bincount(places, minlength=10).tolist()
    assert sums.tolist() == np.bincount(places, margins, minlength=10).tolist()


def test_a_curve_of_few_scenes_has_no_band() -> None:
    draws = np.arange(1001.0)[:, None]
    assert Curve(draws, n=9, scenes=4).band is None
    assert Curve(draws, n=9, scenes=5).band is not None
