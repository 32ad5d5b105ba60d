"""Means of questions with errors that know of scenes: clustered standard errors and bootstrap.

Questions about one scene are not independent, so scenes are drawn, all questions of one together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
#: what values can be [percent, points]
SCORES, DIFFERENCES = (0.0, 100.0), (-100.0, 100.0)
#: fewer scenes cannot tell how much scenes differ
FEWEST = 5
_Z = 1.959963984540054  # 97.5 % quantile of the standard normal

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """Questions of one kind: by scene, the sum of their values and how many they are."""

    total: Array
    count: Array

    @property
    def n(self) -> int:
        return int(self.count.sum())

    @property
    def scenes(self) -> int:
        return int((self.count > 0).sum())

    @property
    def mean(self) -> float:
        """Raises ValueError where there is nothing: that has no mean."""
        if not self.n:
            raise ValueError("the mean of no questions was asked for; leave out what has none")
        return float(self.total.sum() / self.count.sum())


#: parts with their weights, such as the three capabilities of an average; only ratios count
Mix = Sequence[tuple[int, Part]]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its standard error and 95 % interval.

    Attributes:
        mean: of the values, in their unit.
        standard_error: clustered by scene.
        low, high: the interval; with the error None where there are fewer than `FEWEST` scenes.
        n: questions.
        scenes: that they are about.
    """

    mean: float
    standard_error: float | None
    low: float | None
    high: float | None
    n: int
    scenes: int


def places(names: Iterable[str]) -> dict[str, int]:
    """A column for each scene, in the order in which they come."""
    return {name: i for i, name in enumerate(dict.fromkeys(names))}


def draws(scenes: int, seed: int, resamples: int = RESAMPLES) -> Array:
    """How often each scene is drawn [1 + resamples, scenes]; the first row is the data itself."""
    if not scenes:
        return np.zeros((1 + resamples, 0))
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(scenes, np.full(scenes, 1 / scenes), size=resamples)
    return np.vstack([np.ones(scenes), drawn.astype(np.float64)])


def tally(values: Iterable[tuple[str, float]], columns: Mapping[str, int]) -> Part:
    """Sums values by their scenes' names."""
    total, count = np.zeros(len(columns)), np.zeros(len(columns))
    for scene, value in values:
        total[columns[scene]] += value
        count[columns[scene]] += 1
    return Part(total, count)


def alone(part: Part) -> Mix:
    """A mix of one part."""
    return [(1, part)]


def mean(mix: Mix) -> float:
    """Σ weight · mean of the part / Σ weight.

    Raises:
        ValueError: a part is empty, or there is none: the mean of nothing is none.
    """
    if not mix:
        raise ValueError("the mean of no questions was asked for; leave out what has none")
    return sum(weight * part.mean for weight, part in mix) / _sum(mix)


def _sum(mix: Mix) -> int:
    return sum(weight for weight, _ in mix)


def resampled(mix: Mix, weights: Array) -> Array:
    """The mean in each row of `draws`; NaN where a part got no question."""
    found = np.zeros(len(weights))
    for share, part in mix:
        questions = weights @ part.count
        means = np.full(len(weights), np.nan)
        np.divide(weights @ part.total, questions, out=means, where=questions > 0)
        found += share * means
    return found / _sum(mix)


def pull(mix: Mix) -> Array:
    """How far each scene pulls the mean: of its questions, Σ (value − mean of the part) / n."""
    pulls = [share * (part.total - part.mean * part.count) / part.n for share, part in mix]
    return np.asarray(np.sum(pulls, axis=0)) / _sum(mix)


def scenes_of(mix: Mix) -> int:
    """How many scenes the questions of any part are about."""
    return int((np.sum([part.count for _, part in mix], axis=0) > 0).sum())


def estimate(mix: Mix, weights: Array, within: tuple[float, float]) -> Estimate:
    """The mean of a mix, its clustered standard error and its bootstrap interval [ours].

    error² = S/(S − 1) · Σ_scenes pull², S scenes. The interval is that of the 2.5 and 97.5 %
    quantiles of the draws, stretched about the mean, see `stretch`.

    Args:
        mix: the values.
        weights: see `draws`.
        within: what the values can be, and so the interval: `SCORES` or `DIFFERENCES`. Where a
            score is 0 or 100 no draw can differ, then Wilson's for as many trials as scenes.

    Raises:
        ValueError: a part is empty.
    """
    middle, n = mean(mix), sum(part.n for _, part in mix)
    scenes, least = scenes_of(mix), min(part.scenes for _, part in mix)
    if least < FEWEST:
        return Estimate(middle, None, None, None, n, scenes)
    error = math.sqrt(scenes / (scenes - 1) * float((pull(mix) ** 2).sum()))
    if within == SCORES and middle in SCORES:
        return Estimate(middle, error, *_wilson(middle / 100, scenes), n, scenes)
    quantiles = np.nanpercentile(resampled(mix, weights)[1:], [2.5, 97.5])
    low, high = (float(middle + stretch(least) * (each - middle)) for each in quantiles)
    return Estimate(middle, error, max(within[0], low), min(within[1], high), n, scenes)


def stretch(scenes: int) -> float:
    """√(S/(S − 1)) · t(97.5 %, S − 1) / z(97.5 %): draws of few scenes differ too little.

    Bootstrap means spread as if divided by S, not S − 1, and their quantiles are a normal's. At 10
    scenes this is 1.22, at 40 scenes 1.05.
    """
    from scipy.special import stdtrit  # not needed by those who only train

    return math.sqrt(scenes / (scenes - 1)) * float(stdtrit(scenes - 1, 0.975)) / _Z


def p_value(difference: Mix, weights: Array) -> float | None:
    """Two-sided p of a mean difference of 0, from the same stretched draws as its interval [ours].

    p = 2 · min(share of draws ≤ 0, share ≥ 0), each counted with one draw more than there are. It
    is never below 2^(1 − S') for the S' scenes that differ at all: that is what a test which turns
    the signs of S' scenes could reach at best. None with fewer than `FEWEST` scenes.
    """
    least = min(part.scenes for _, part in difference)
    if least < FEWEST:
        return None
    middle = mean(difference)
    drawn = resampled(difference, weights)[1:]
    drawn = middle + stretch(least) * (drawn[~np.isnan(drawn)] - middle)
    tails = ((drawn <= 0).sum(), (drawn >= 0).sum())
    differing = int(np.sum(np.any([part.total != 0 for _, part in difference], axis=0)))
    return min(1.0, max(2 * (1 + int(min(tails))) / (1 + len(drawn)), 2.0 ** (1 - differing)))


def holm(values: Sequence[float]) -> list[float]:
    """P values corrected for their number [Holm 1979], in the order given."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    found, least = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(values) - rank) * values[i]))
        found[i] = least
    return found


def _wilson(share: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval [percent] of a proportion."""
    spread = _Z * math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
    centre, scale = share + _Z**2 / (2 * trials), 1 + _Z**2 / trials
    return 100 * max(0.0, (centre - spread) / scale), 100 * min(1.0, (centre + spread) / scale)
