"""Scenes drawn with replacement, and bands from the draws, for what has no formula of its error."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

#: scenes: fewer cannot tell how much scenes differ, so they have no error, interval or band
FEWEST = 5

Array = NDArray[np.float64]


def draw_scenes(scenes: int, draws: int, random: np.random.Generator) -> Array:
    """Draw scenes with replacement; how often each is in a draw [1 + draws, scenes] [ours].

    The first row is the data as it is; the others sum to the number of scenes.
    """
    drawn = random.multinomial(scenes, np.full(scenes, 1 / scenes), size=draws)
    return np.vstack([np.ones((1, scenes)), drawn]).astype(np.float64)


def band(draws: Array, scenes: int) -> tuple[Array, Array] | None:
    """Lower and upper end of the 95 % band of draws [1 + draws, ...]; the first is the estimate.

    The 2.5 and 97.5 % quantiles, with their distance from the estimate multiplied by `stretch`, and
    no farther than any draw, which keeps a share within 0 … 1. Draws in which nothing was seen
    (NaN) do not count; NaN where that is all of them.

    Returns:
        None with fewer than `FEWEST` scenes: of two, plain quantiles hold the truth in half of the
        cases.
    """
    if scenes < FEWEST:
        return None
    drawn, middle = draws[1:], draws[0]
    seen = np.isfinite(drawn)
    nothing = ~seen.any(axis=0)
    filled = np.where(nothing, 0.0, drawn)
    low, high = np.nanpercentile(np.where(np.isfinite(filled), filled, np.nan), [2.5, 97.5], axis=0)
    ends = (
        np.maximum(middle + stretch(scenes) * (low - middle), np.nanmin(filled, axis=0)),
        np.minimum(middle + stretch(scenes) * (high - middle), np.nanmax(filled, axis=0)),
    )
    return np.where(nothing, np.nan, ends[0]), np.where(nothing, np.nan, ends[1])


def stretch(scenes: int) -> float:
    """√(S/(S − 1)) · t(97.5 %, S − 1) / z(97.5 %): draws of few scenes differ too little.

    Means of draws spread as if divided by S, not S − 1, and their quantiles are a normal's. At 5
    scenes this is 1.58, at 10 scenes 1.22, at 40 scenes 1.05.
    """
    from scipy.special import ndtri, stdtrit  # not needed by those who only train

    return math.sqrt(scenes / (scenes - 1)) * float(stdtrit(scenes - 1, 0.975) / ndtri(0.975))
