"""When the tokens of an answer came: first token, time per token, and the spread over requests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Timeline:
    """One request, in seconds of one clock.

    Attributes:
        started: when it was made.
        ready: when its pictures and text were tensors; None where that is not seen, at a server.
        arrivals: when text came, at least once: each token, or each piece that a server sends.
        tokens: of the answer, as many as arrivals or more.
        ended: when the end was told, where that is seen apart from the text: at a server, whose
            last token has none.
    """

    started: float
    ready: float | None
    arrivals: tuple[float, ...]
    tokens: int
    ended: float | None = None

    @property
    def ttft(self) -> float:
        """From the request to the first token [s]."""
        return self.arrivals[0] - self.started

    @property
    def latency(self) -> float:
        """From the request to the last token [s]."""
        return (self.arrivals[-1] if self.ended is None else self.ended) - self.started

    @property
    def tpot(self) -> float | None:
        """(latency − TTFT) / (n − 1) [s/token]; None for one token, or all of them at once."""
        decoding = self.latency - self.ttft
        return decoding / (self.tokens - 1) if self.tokens > 1 and decoding > 0 else None

    @property
    def prefill(self) -> float | None:
        """From tensors to the first token: vision tower, decoder, head [s]."""
        return None if self.ready is None else self.arrivals[0] - self.ready


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of the values do not exceed (nearest rank).

    It is one of the values: of fewer than a hundred, the 99th percentile is the largest.

    Raises:
        ValueError: without values.
    """
    if not values:
        raise ValueError("percentile: no values; expected at least one")
    rank = math.ceil(len(values) * percent / 100)
    return sorted(values)[max(rank, 1) - 1]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, percentiles by nearest rank, least and largest of some measurements.

    Raises:
        ValueError: without values.
    """
    ranks = {f"p{percent}": percentile(values, percent) for percent in (50, 90, 99)}
    return {"median": median(values), **ranks, "min": min(values), "max": max(values)}
