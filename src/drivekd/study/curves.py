"""Curves and bands of the pre-study from sums per scene: mathematics without model or file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.typing import NDArray

from drivekd.statistics import band

BINS = 10  # of an answer's positions: the paper's panel has ten


@dataclass(frozen=True)
class Curve:
    """A quantity at several places (layers, positions of an answer), with its bootstrap draws."""

    #: [1 + draws, places]; the first row is the estimate. NaN where nothing was seen.
    draws: NDArray[np.float64]
    n: int  # samples that went in
    scenes: int  # in which they lie

    @property
    def mean(self) -> NDArray[np.float64]:
        row: NDArray[np.float64] = self.draws[0]
        return row

    @property
    def band(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Lower and upper end of the 95 % band; None with fewer than five scenes."""
        return band(self.draws, self.scenes)


def ratio(
    sums: Float[ndarray, "S K"], counts: Float[ndarray, "S K"], weights: Float[ndarray, "D S"]
) -> Float[ndarray, "D K"]:
    """Mean over samples, Σ_s w_s·sum_s / Σ_s w_s·count_s, at every place; NaN where nothing is."""
    total = weights @ counts
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, (weights @ sums) / total, np.nan)


def pair_mean(
    sums: Float[ndarray, "S d"], counts: Float[ndarray, " S"], weights: Float[ndarray, "D S"]
) -> Float[ndarray, " D"]:
    """Mean cosine over all pairs of different samples, from sums of their unit vectors.

    With unit vectors φ̂_i, S_s = Σ_{i in scene s} φ̂_i and N_s of them:

     (‖Σ_s w_s S_s‖² − Σ_s w_s² N_s) / ((Σ_s w_s N_s)² − Σ_s w_s² N_s)

    With all w_s = 1 this is (‖Σφ̂_i‖² − N) / (N(N−1)), the mean over i ≠ j of cos(φ_i, φ_j)
    [ours: METHOD panel b]. In a bootstrap draw a pair has the weight w_s·w_t, and a sample is never
    paired with its own copy, whose cosine of 1 would lift every band [ours].

    NaN where no two samples are drawn.
    """
    gram = sums @ sums.T
    alone = weights**2 @ counts
    pairs = (weights @ counts) ** 2 - alone
    total = ((weights @ gram) * weights).sum(axis=1) - alone
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0.5, total / pairs, np.nan)


def dispersion(vectors: Float[ndarray, "k L d"]) -> Float[ndarray, " L"]:
    """Mean of 1 − cos over all pairs of k wordings of one question, in every layer [ours].

    1 − (‖Σφ̂_i‖² − k) / (k(k−1)), k ≥ 2.
    """
    k = len(vectors)
    assert k >= 2, "a single wording has no dispersion"
    total = unit(vectors).sum(axis=0)
    spread: NDArray[np.float64] = 1 - ((total**2).sum(axis=-1) - k) / (k * (k - 1))
    return spread


def unit(vectors: Float[ndarray, "*any d"]) -> Float[ndarray, "*any d"]:
    """Scale vectors to length 1; zero vectors stay zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1.0)


def bins(
    margins: Float[ndarray, " T"],
) -> tuple[Float[ndarray, " bins"], Float[ndarray, " bins"]]:
    """Sum and count of the margins of an answer, one token or more, in ten bins of position.

    Token j of T falls into bin ⌊10(j−1)/T⌋: an answer of one token lies in the first bin
    altogether, one of five tokens in every second. [ours: METHOD panel d]
    """
    place = BINS * np.arange(len(margins)) // len(margins)
    counts = np.bincount(place, minlength=BINS).astype(np.float64)
    return np.bincount(place, weights=margins, minlength=BINS), counts
