"""Nasty gradients: explicit vectors, row 0 the cross-entropy's, for every property to face."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float64]

WIDTH = 13


def random(seed: int, teachers: int, width: int = WIDTH) -> Vectors:
    """Independent directions of comparable length."""
    return np.random.default_rng(seed).standard_normal((1 + teachers, width))


def conflicting(seed: int, teachers: int, width: int = WIDTH) -> Vectors:
    """Every teacher against the anchor, and long and opposed in pairs beyond it."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((1 + teachers, width))
    for t in range(1, 1 + teachers):
        vectors[t] *= 6
        if t % 2 == 0:
            vectors[t] = -vectors[t - 1] + rng.standard_normal(width)
        vectors[t] -= (1 + vectors[t] @ vectors[0] / (vectors[0] @ vectors[0])) * vectors[0]
    return vectors


def _nasty() -> dict[str, Vectors]:
    g = np.random.default_rng(1).standard_normal((5, WIDTH))
    zero = np.zeros(WIDTH)
    orthogonal = np.linalg.qr(g[:4].T)[0].T
    scales = np.array([1.0, 1e-12, 1e12, 1.0])[:, None]
    tiny_anchor = conflicting(2, 3) * np.array([1e-12, 1.0, 1.0, 1.0])[:, None]
    huge_anchor = conflicting(3, 3) * np.array([1e12, 1.0, 1.0, 1.0])[:, None]
    return {
        "no teacher": g[:1],
        "no teacher, zero anchor": zero[None],
        "one teacher aligned": np.stack([g[0], 2 * g[0]]),
        "one teacher opposed": np.stack([g[0], -3 * g[0]]),
        "one teacher zero": np.stack([g[0], zero]),
        "aligned": np.stack([g[0], g[0], 2 * g[0], 3 * g[0]]),
        "opposed": np.stack([g[0], -g[0], -2 * g[0], -1e-3 * g[0]]),
        "opposed and huge": np.stack([g[0], -1e12 * g[0], -7e11 * g[0], g[1]]),
        "nearly opposed": np.stack([g[0], -g[0] + 1e-5 * g[1], -g[0] - 1e-5 * g[1], g[2]]),
        "opposed teachers": np.stack([g[0], 5 * g[1], -5 * g[1], g[2]]),
        "teacher against the sum": np.stack([g[0], -g[0], g[1], -g[0] - g[1]]),
        "all zero": np.zeros((4, WIDTH)),
        "zero anchor": np.stack([zero, g[1], -g[1], g[2]]),
        "zero teacher": np.stack([g[0], zero, g[1], -g[1]]),
        "only the anchor": np.stack([g[0], zero, zero, zero]),
        "duplicates": np.stack([g[0], g[1], g[1], g[1]]),
        "conflicting duplicates": np.stack([g[0], g[1] - 9 * g[0], g[1] - 9 * g[0]]),
        "orthogonal": orthogonal,
        "rank 1": np.outer([1.0, -2.0, 3.0, -4.0], g[0]),
        "rank 2": np.array([[1.0, 0.0], [-1.0, 8.0], [-2.0, -8.0], [1.0, -1.0]]) @ g[:2],
        "scales apart": g[:4] * scales,
        "conflict, scales apart": conflicting(4, 3) * scales,
        "tiny anchor": tiny_anchor,
        "huge anchor": huge_anchor,
        "all tiny": conflicting(5, 3) * 1e-150,
        "all huge": conflicting(6, 3) * 1e150,
        "many teachers": conflicting(7, 7),
        "more teachers than dimensions": conflicting(8, 7, width=3),
    }


NASTY: dict[str, Vectors] = _nasty()

ORDINARY: dict[str, Vectors] = {
    f"{kind.__name__} {seed}, K={teachers}": kind(seed, teachers)
    for kind in (random, conflicting)
    for teachers in (1, 2, 3, 5)
    for seed in range(5)
}
"""Well-conditioned draws, for comparisons that ask for nearly all digits."""


def gram_of(vectors: Vectors) -> Vectors:
    return vectors @ vectors.T


def order_of(vectors: Vectors, combiner: str, seed: int = 0) -> list[int]:
    """A permutation of what this combiner orders."""
    length = len(vectors) if combiner == "pcgrad" else len(vectors) - 1
    return [int(i) for i in np.random.default_rng(seed).permutation(length)]


def fits(scale: float, vectors: Vectors) -> bool:
    """Whether the Gram matrix of the scaled vectors stays within float64."""
    largest = float(np.abs(gram_of(vectors)).max())
    return largest == 0 or -300 < math.log10(largest) + 2 * math.log10(scale) < 300
