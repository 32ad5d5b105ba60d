"""Means and paired differences of runs with several seeds: Student's t."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class OverSeeds:
    """A mean over n seeds with its 95 % interval and two-sided p of a mean of 0, df = n − 1.

    Ends and p are None where all values are equal but not 0: how far seeds differ is not known.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int


def over_seeds(values: Sequence[float]) -> OverSeeds:
    """Average one figure over seeds.

    Raises:
        ValueError: fewer than two, or one that is not finite.
    """
    numbers = np.asarray(values, np.float64)
    if len(numbers) < 2 or not np.isfinite(numbers).all():
        raise ValueError(
            f"seeds: expected two finite figures or more, got {numbers.tolist()}; run more seeds,"
            " or leave out those that failed and say so"
        )
    mean, n = float(numbers.mean()), len(numbers)
    if np.ptp(numbers) <= 1e-12 * max(1.0, abs(mean)):
        return (
            OverSeeds(mean, 0.0, 0.0, 1.0, n) if mean == 0 else OverSeeds(mean, None, None, None, n)
        )
    from scipy.stats import ttest_1samp  # half a second to import

    test = ttest_1samp(numbers, 0.0)
    low, high = test.confidence_interval(0.95)
    return OverSeeds(mean, float(low), float(high), float(test.pvalue), n)


def paired(mine: Sequence[float], theirs: Sequence[float]) -> OverSeeds:
    """Compare two recipes over the same seeds, in the same order: a paired t test of mine − theirs.

    Raises:
        ValueError: different lengths, or see `over_seeds`.
    """
    if len(mine) != len(theirs):
        raise ValueError(
            f"paired comparison: expected the same seeds on both sides, got {len(mine)} and"
            f" {len(theirs)} scores; run both recipes on the same seeds"
        )
    return over_seeds(np.subtract(mine, theirs).tolist())
