"""Choice of the next token: the most probable, or one drawn from the sample's stream."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

#: logits of some texts, and the number of new tokens before this one → the next token of each
Choice = Callable[[Float[Tensor, "b v"], int], Int[Tensor, " b"]]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of the choice of tokens.

    Attributes:
        temperature: logits are divided by it; at 0 the most probable token is taken.
        top_p: draw from the fewest most probable tokens that together have this probability.
        seed: of all draws.
        run: number of the run; each draws anew.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    run: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature {self.temperature}: expected 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p}: expected more than 0 and at most 1")

    def seed_of(self, sample_id: str) -> int:
        """Derive the seed from sample and run alone, below 2³¹, as every server takes it [ours]."""
        text = json.dumps([self.seed, self.run, sample_id])
        digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
        return int.from_bytes(digest) >> 1


GREEDY = Sampling()


def choice(sampling: Sampling, ids: Sequence[str], steps: int, device: torch.device) -> Choice:
    """Make the choice of these samples' tokens, for up to so many steps.

    Every sample has a stream of one number per token. So its draws are the same alone, beside
    others, and with more steps; the logits are, to rounding, so the token is unless a draw falls
    within the rounding of a border between two.
    """
    if sampling.temperature == 0:
        return lambda logits, _: logits.argmax(-1)
    streams = [np.random.default_rng(sampling.seed_of(id)).random(steps) for id in ids]
    numbers = torch.from_numpy(np.stack(streams)).to(device)
    return lambda logits, step: drawn(logits, numbers[:, step], sampling)


def drawn(
    logits: Float[Tensor, "b v"], numbers: Float[Tensor, " b"], sampling: Sampling
) -> Int[Tensor, " b"]:
    """Draw the token in whose part of the distribution function a number in [0, 1) falls.

    softmax(logits / T), cut to the smallest set of most probable tokens whose sum reaches top_p,
    summed in the order of the vocabulary: in the order of probability two tokens that are nearly
    alike could change places, and with them half of the draws.
    """
    scaled = (logits.double() - logits.max(-1, keepdim=True).values) / sampling.temperature
    probability = scaled.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = probability.sort(-1, descending=True)
        inside = ordered.cumsum(-1) - ordered < sampling.top_p
        probability = torch.zeros_like(ordered).scatter(-1, order, ordered * inside)
    summed = probability.cumsum(-1)
    at = torch.searchsorted(summed, numbers[:, None] * summed[:, -1:], right=True)
    return at[:, 0]
