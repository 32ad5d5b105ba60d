"""Means and paired differences of questions, with errors over scenes and training seeds [ours].

Questions about one scene are not independent: errors are clustered by scene. Values are percent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drivekd.statistics.resampling import FEWEST

#: made-up wrong answers by which the error of few wrong answers is steadied, and the correlation of
#: a scene's answers that they have
PSEUDO, CORRELATION = 2.0, 0.15
ROUNDING = 1e-9  # points: what sums of equal differences differ by

Array = NDArray[np.float64]
#: a number for each question, or a row of them for each seed
Values = Sequence[float] | Sequence[Sequence[float]] | NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its clustered standard error and 95 % interval [percent].

    The error and both ends are None where some group has fewer than `FEWEST` scenes. `n` counts
    questions, `scenes` what they are about.
    """

    mean: float
    standard_error: float | None
    low: float | None
    high: float | None
    n: int
    scenes: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of one side minus the other's over the same questions [points]: mean = mine − theirs.

    The error, the 95 % interval and the two-sided p are None where some group has fewer than
    `FEWEST` scenes.
    """

    mine: float
    theirs: float
    mean: float
    standard_error: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int
    scenes: int


def estimate(
    values: Values,
    scenes: Sequence[str],
    groups: Sequence[str] | None = None,
    shares: Sequence[float] | None = None,
) -> Estimate:
    """Estimate a mean score: standard error clustered by scene, Wilson's interval.

    error² = S/(S − 1) · Σ_scenes pull², pull = Σ w (value − mean of its group) over the questions
    of a scene; with rows of K seeds the variance between seeds / K is added, less the part of it
    that is in the first already. The ends of the interval are the p with
    (mean − p)² = t² · d · p(1 − p) / n*, n* = 1/Σw², where d is error² over what n* independent
    right or wrong answers would have. d is steadied by `PSEUDO` made-up answers, so that it is
    known where all answers are right, too. t has S − 1 degrees of freedom (K − 1 if fewer), more
    where the made-up part is large. No low end is above that of all answers right, nor a high end
    below that of all wrong: with wrong answers spread alike over the scenes, one more right answer
    never lowers an end.

    Args:
        values: 0 … 100, [questions], or [seeds, questions] of one recipe trained with several.
        scenes: of each question.
        groups: of each question: the mean is that of the groups' means; None for one group.
        shares: of each question's group in that mean; None for alike. Only ratios count.

    Raises:
        ValueError: there are no questions, lengths differ, or a value is outside.
    """
    data = _arranged(values, scenes, groups, shares)
    if data.values.min() < 0 or data.values.max() > 100:
        raise ValueError(
            f"scores: expected percent, 0 … 100, got {data.values.min():g} … {data.values.max():g}"
        )
    n, among = data.values.shape[1], data.columns
    if data.least < FEWEST:
        return Estimate(data.mean, None, None, None, n, among)
    variance = _variance(data)
    return Estimate(data.mean, math.sqrt(variance), *_wilson(data, variance), n, among)


def difference(
    mine: Values,
    theirs: Values,
    scenes: Sequence[str],
    groups: Sequence[str] | None = None,
    shares: Sequence[float] | None = None,
) -> Difference:
    """Compare two sides on the same questions: interval and p of Student's t.

    Clustered as in `estimate`, of mine − theirs, with S − 1 degrees of freedom for the S scenes of
    the smallest group, or K − 1 for fewer seeds, which are paired row by row. p is never below
    2^(1 − S') for the S' scenes that differ at all: a test that turns their signs reaches no less.

    The arguments are those of `estimate`, with scores of both sides.

    Raises:
        ValueError: there are no questions, or the shapes differ.
    """
    one, other = np.asarray(mine, np.float64), np.asarray(theirs, np.float64)
    if one.shape != other.shape:
        raise ValueError(
            f"paired comparison: expected the same questions and seeds on both sides, got"
            f" {list(one.shape)} and {list(other.shape)} scores"
        )
    data = _arranged(one - other, scenes, groups, shares)
    left, right = (_arranged(side, scenes, groups, shares).mean for side in (one, other))
    n, middle = data.values.shape[1], data.mean
    if data.least < FEWEST:
        return Difference(left, right, middle, None, None, None, None, n, data.columns)
    from scipy.stats import t as student  # not needed by those who only train

    variance = _variance(data)
    error, freedom = math.sqrt(variance), _freedom(variance, data)
    half = float(student.ppf(0.975, freedom)) * error
    if error > ROUNDING:
        tails = 2 * float(student.sf(abs(middle) / error, freedom))
    else:  # alike in every scene
        tails = float(abs(middle) <= ROUNDING)
    differing = len(np.unique(data.scene[(data.values != 0).any(axis=0)]))
    p = min(1.0, max(tails, 2.0 ** (1 - differing)))
    low, high = max(-100.0, middle - half), min(100.0, middle + half)
    return Difference(left, right, middle, error, low, high, p, n, data.columns)


def holm(values: Sequence[float]) -> list[float]:
    """Correct p values for their number, in the order given [Holm 1979]."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    corrected, least = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = least
    return corrected


@dataclass(frozen=True, slots=True)
class _Data:
    """Questions with their weights w, which sum to 1.

    Attributes:
        values: [seeds, questions].
        weights: [questions].
        mean: of the groups' means.
        residuals: value − mean of its group over all seeds [seeds, questions].
        scene: number of each question's scene, of `columns` ones.
        least: scenes of the group that has fewest.
    """

    values: Array
    weights: Array
    mean: float
    residuals: Array
    scene: NDArray[np.intp]
    columns: int
    least: int

    def by_scene(self, values: Array) -> Array:
        """Sums over the questions of each scene [scenes]."""
        return np.bincount(self.scene, values, self.columns).astype(np.float64)


def _arranged(
    values: Values,
    scenes: Sequence[str],
    groups: Sequence[str] | None,
    shares: Sequence[float] | None,
) -> _Data:
    table = np.atleast_2d(np.asarray(values, np.float64))
    n = table.shape[1]
    if not table.size:
        raise ValueError("the mean of no questions is asked for; leave out what has none")
    if any(len(each) != n for each in (scenes, groups, shares) if each is not None):
        raise ValueError(f"scores of {n} questions: expected as many scenes, groups and shares")
    if not np.isfinite(table).all():
        raise ValueError("scores: expected numbers, got some that are not finite; leave them out")
    columns, scene = np.unique(np.asarray(scenes), return_inverse=True)
    names = np.asarray([""] * n if groups is None else groups)
    _, first, group = np.unique(names, return_index=True, return_inverse=True)
    share = np.ones(len(first)) if shares is None else np.asarray(shares, np.float64)[first]
    size = np.bincount(group)
    middle = np.bincount(group, table.mean(axis=0)) / size
    least = min(len(np.unique(scene[group == k])) for k in range(len(first)))
    weights, residuals = (share / share.sum() / size)[group], table - middle[group]
    return _Data(
        table, weights, float(share @ middle / share.sum()), residuals, scene, len(columns), least
    )


def _variance(data: _Data) -> float:
    """Variance of the mean over scenes, and over seeds where there are several."""
    scale = data.columns / (data.columns - 1)
    pulls = np.stack([data.by_scene(data.weights * row) for row in data.residuals])
    over_scenes = scale * float((pulls.mean(axis=0) ** 2).sum())
    if (seeds := len(pulls)) < 2:
        return over_scenes
    between = float(pulls.sum(axis=1).var(ddof=1)) / seeds
    levels = np.outer(pulls.sum(axis=1), data.by_scene(data.weights))  # of each seed, by scene
    shared = scale * float((pulls - levels).var(axis=0, ddof=1).sum()) / seeds
    return over_scenes + max(0.0, between - shared)


def _freedom(variance: float, data: _Data, known: float = 0.0) -> float:
    """Degrees of freedom of a variance with a part that is known [Satterthwaite 1946]."""
    seeds = len(data.values)
    fewest = min(data.least, seeds) if seeds > 1 else data.least
    return (fewest - 1) * ((variance + known) / variance) ** 2 if variance else math.inf


def _wilson(data: _Data, variance: float) -> tuple[float, float]:
    """Ends of the interval of `estimate` [percent].

    V = error² n*², that of a sum of n* answers. Independent answers have I = n* p(1 − p) where each
    is right or wrong, less where they are points in between: by the factor φ, steadied by one
    answer. d = φ (V + κφD) / (φI + κφ) with κ made-up answers and
    D = 1 + correlation · (questions of a scene − 1).
    """
    from scipy.stats import norm
    from scipy.stats import t as student

    unit = float((data.weights**2).sum())  # 1 / n*
    share = data.mean / 100
    independent = share * (1 - share) / unit
    seen = float(((data.weights * data.residuals.mean(axis=0)) ** 2).sum()) / (100 * unit) ** 2
    part = (seen + 1) / (independent + 1)
    together = float((data.by_scene(data.weights) ** 2).sum()) / unit
    alike = 1 + CORRELATION * (together - 1)
    known = PSEUDO * part * alike
    total = variance / (100 * unit) ** 2
    effect = part * (total + known) / (seen + PSEUDO * part)
    freedom = _freedom(variance, data, known * (100 * unit) ** 2)
    wide = float(student.ppf(0.975, freedom)) ** 2 * effect * unit
    middle = share + wide / 2
    half = math.sqrt(wide * share * (1 - share) + wide**2 / 4)
    border = float(norm.ppf(0.975)) ** 2 * alike * unit
    low = min((middle - half) / (1 + wide), 1 / (1 + border))
    high = max((middle + half) / (1 + wide), border / (1 + border))
    return 100 * max(0.0, min(share, low)), 100 * min(1.0, max(share, high))
