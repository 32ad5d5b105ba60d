"""Figures over seeds: Student's t as scipy has it, and nothing where seeds do not differ."""

from __future__ import annotations

import math

import pytest
from scipy.stats import ttest_rel

from drivekd.statistics import over_seeds, paired


def test_a_paired_difference_is_scipys() -> None:
    mine, theirs = [61.0, 64.5, 60.2, 66.1, 63.0], [58.0, 63.0, 59.9, 61.0, 62.5]
    found, test = paired(mine, theirs), ttest_rel(mine, theirs)
    interval = test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.p, found.n) == (pytest.approx(test.pvalue), 5)


def test_two_equal_differences_give_no_p() -> None:
    found = paired([3.0, 4.0], [1.0, 2.0])
    assert (found.mean, found.low, found.high, found.p) == (2.0, None, None, None)
    almost = paired([0.1 + 0.2, 0.4], [0.2, 0.3])  # equal but for rounding
    assert almost.p is None
    nothing = paired([3.0, 4.0], [3.0, 4.0])
    assert (nothing.low, nothing.high, nothing.p) == (0.0, 0.0, 1.0)


def test_one_seed_or_a_failed_one_is_refused() -> None:
    for values in ([1.0], [1.0, math.nan]):
        with pytest.raises(ValueError, match="seeds"):
            over_seeds(values)
    with pytest.raises(ValueError, match="2 and 1"):
        paired([1.0, 2.0], [1.0])
