"""The projection of the authors' release, which skips parameters a gradient is missing for.

    python benchmarks/release_projection.py [--draws 2000] [--seed 0]

Where a loss does not reach a parameter the release keeps no gradient for it. Dots and norms are
those of the whole vectors, with zeros there, but an anchor is not subtracted where the follower
has no gradient: a conflict that stage 1 found partly remains. Training uses flat vectors
(method/combine/projection.py), where the formula is right; this is what the release does instead.

Three teachers, each reaching a random 60 % of eight sets of parameters, 70 % of them opposed to the
cross-entropy. The last line is JSON: in percent of the teachers on which stage 1 acted, those still
opposed to g_0 behind it, and the mean distance of both updates, relative to that of flat vectors.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from numpy.typing import NDArray

from drivekd.method.combine.projection import (
    ROUNDING,
    CeCount,
    Matrix,
    Order,
    agp,
    permutation,
)

Matrices = NDArray[np.float64]
Flags = NDArray[np.bool_]


def skip_coefficients(
    grams: Matrices,
    reached: Flags,
    combiner: str,
    order: Order,
    ce_count: CeCount = "per_capability",
) -> Matrices:
    """Coefficients of the update, for every set of parameters that the same losses reach.

    [release] A vector is, on each of P sets of parameters, a combination of the 1+K gradients, so
    ⟨x,y⟩ = Σ_p x_pᵀ G_p y_p with one Gram matrix per set. Stage 1: f_t = g_t − min(⟨g_t,g_0⟩, 0)
    /‖g_0‖² g_0 where g_t has a gradient, nothing elsewhere; m_t = g_0 + f_t. Stage 2 as in AGP, on
    the sets where m_i has a gradient. [ours] The form by Gram matrices.

    Args:
        grams: inner products [P, 1+K, 1+K] of the gradients on each set.
        reached: losses that reach the set [P, 1+K].
        combiner: `agp`, `stage1_only`, `pcgrad_caps`, `pcgrad`, or a sum, where nothing changes.
        order: as for the combiner.
        ce_count: as for the combiner.

    Returns:
        float64 [P, 1+K].
    """
    rows = len(grams[0])
    K = rows - 1
    gradients = np.eye(rows)[:, None, :] * reached[None, :, :]  # g_k on each set: [1+K, P, 1+K]
    if combiner == "pcgrad":
        return _total(_project(gradients, reached.T, grams, permutation(order, rows)))
    if combiner not in ("agp", "stage1_only", "pcgrad_caps") or K == 0:
        a = _total(gradients)
        a[:, 0] *= K if combiner == "sum_ceK" and K else 1
        return a
    followers = gradients[1:].copy()
    if combiner != "pcgrad_caps":
        for t in range(K):
            _subtract(followers[t], gradients[0], reached[:, 1 + t], grams)
    sums = gradients[0] + followers
    if combiner != "stage1_only":
        sums = _project(sums, reached[:, :1].T | reached[:, 1:].T, grams, permutation(order, K))
    extra: Matrices = (K - 1 if ce_count == "once" else 0) * gradients[0]
    return _total(sums) - extra


def _total(vectors: Matrices) -> Matrices:
    total: Matrices = vectors.sum(axis=0)
    return total


def _dot(x: Matrix, y: Matrix, grams: Matrices) -> float:
    return float(np.einsum("pi,pij,pj->", x, grams, y))


def _subtract(v: Matrix, anchor: Matrix, where: Flags, grams: Matrices) -> None:
    """Project v off an anchor it conflicts with, in place, on the sets where v has a gradient."""
    square, dot = _dot(anchor, anchor, grams), _dot(v, anchor, grams)
    terms = float(np.einsum("pi,pii,pi->", anchor, grams, anchor))
    if dot < 0 and square > ROUNDING * terms:
        v[where] -= dot / square * anchor[where]


def _project(vectors: Matrices, present: Flags, grams: Matrices, order: list[int]) -> Matrices:
    projected = vectors.copy()
    for i in range(len(vectors)):
        for j in order:
            if i != j:
                _subtract(projected[i], vectors[j], present[i], grams)
    return projected


def rates(draws: int, seed: int, sets: int = 8, teachers: int = 3) -> dict[str, float]:
    """What the module's docstring says, over random gradients of one number per set."""
    rng = np.random.default_rng(seed)
    left, distances = [], []
    for _ in range(draws):
        g = rng.standard_normal((1 + teachers, sets))
        g[1:] -= (rng.random(teachers) < 0.7)[:, None] * g[0]
        reached = np.vstack([np.ones(sets, dtype=bool), rng.random((teachers, sets)) < 0.6]).T
        g *= reached.T
        grams, order = np.einsum("ip,jp->pij", g, g), rng.permutation(teachers)
        for t in range(teachers):
            pair = np.ix_(range(sets), [0, 1 + t], [0, 1 + t])
            a = skip_coefficients(grams[pair], reached[:, [0, 1 + t]], "stage1_only", [0])
            follower = a[:, 1] * g[1 + t] + (a[:, 0] - 1) * g[0]
            if g[1 + t] @ g[0] < 0:
                left.append(follower @ g[0] < -1e-12)
        skipped = np.einsum("pk,kp->p", skip_coefficients(grams, reached, "agp", order), g)
        flat = agp(g @ g.T, order).coefficients @ g
        distances.append(float(np.linalg.norm(skipped - flat) / np.linalg.norm(flat)))
    return {
        "conflict_left_after_stage_1": round(100 * float(np.mean(left)), 1),
        "distance_of_updates": round(float(np.mean(distances)), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(rates(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
