"""What the gradients of a unit looked like and what was made of them, named for the log.

Functions of Gram matrices alone. What is undefined, such as a cosine with a zero gradient, is left
out: a quantity that did not occur is a missing key.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import SupportsFloat

import numpy as np
from numpy.typing import NDArray

from drivekd.method.combine.projection import (
    CeCount,
    GramLike,
    Matrix,
    Order,
    capability_rows,
    checked,
    combine,
)


def telemetry(
    gram: GramLike,
    teachers: Sequence[str],
    order: Order,
    *,
    combiner: str = "agp",
    ce_count: CeCount = "per_capability",
) -> dict[str, float]:
    """What the gradients looked like and what the projection did, named for the log [ours].

    Always: what `of_gradients` says. With stage 1: `grad/stage1_rate` = share of teachers where it
    fired, `grad/stage1_removed/NAME` = 1 − ‖f_t‖/‖g_t‖. With stage 2 and two teachers:
    `grad/stage2_rate` = share of ordered pairs where it fired, `grad/stage2_removed/NAME` =
    ‖m̃_i − m_i‖/‖m_i‖, `grad/residual_conflict` = share of i ≠ j with ⟨m̃_i,m_j⟩ < 0 all the same.

    Args:
        gram: inner products [1+K, 1+K] of the weighted gradients.
        teachers: names of the K active teachers.
        order: as for the combiner.
        combiner: a name in `COMBINERS`.
        ce_count: as for the combiner.
    """
    G = _matching(gram, teachers)
    a = combine(gram, combiner, order, ce_count).numpy()
    values = of_gradients(gram, teachers, multiplier=float(a[0]), progress=ratio(a @ G[0], G[0, 0]))
    first, second = combiner in ("agp", "stage1_only"), combiner in ("agp", "pcgrad_caps")
    if first or second:
        solved = capability_rows(gram, order, stage1=first, stage2=second)
        before, after = np.diag(solved.G)[1:], np.diag(solved.F)[1:]
        values |= of_stage1(before, after, solved.fired1, teachers) if first else {}
        values |= of_stage2(solved.projected, solved.M, solved.fired2, teachers) if second else {}
    return values


def of_gradients(
    gram: GramLike, teachers: Sequence[str], *, multiplier: float | None, progress: float | None
) -> dict[str, float]:
    """Norms and angles of the gradients, and what became of the cross-entropy's.

    `grad/norm/NAME`; `grad/cos/A_B` for every pair with two non-zero norms, `ce` first;
    `grad/ce_multiplier` = a_0; `grad/update_dot_ce` = ⟨U,g_0⟩/‖g_0‖²; with teachers
    `grad/conflict_rate` = share of teachers with ⟨g_t,g_0⟩ < 0.

    Args:
        gram: inner products [1+K, 1+K] of the weighted gradients, cross-entropy first.
        teachers: names of the K active teachers.
        multiplier: a_0, how often the update counts the cross-entropy; None where undefined.
        progress: ⟨U,g_0⟩/‖g_0‖²; None where the cross-entropy has no gradient.
    """
    G = _matching(gram, teachers)
    names, norms = ("ce", *teachers), np.sqrt(np.diag(G))
    values = {f"grad/norm/{name}": float(gram[i, i]) ** 0.5 for i, name in enumerate(names)}
    values |= {
        f"grad/cos/{names[i]}_{names[j]}": float(G[i, j] / (norms[i] * norms[j]))
        for i, j in itertools.combinations(range(len(G)), 2)
        if norms[i] > 0 and norms[j] > 0
    }
    if multiplier is not None:
        values["grad/ce_multiplier"] = multiplier
    if progress is not None:
        values["grad/update_dot_ce"] = progress
    if teachers:
        values["grad/conflict_rate"] = float((G[1:, 0] < 0).mean())
    return values


def _matching(gram: GramLike, teachers: Sequence[str]) -> Matrix:
    G = checked(gram)
    if len(G) != len(teachers) + 1:
        raise ValueError(f"telemetry: Gram matrix of {len(G)} rows for teachers {list(teachers)}")
    return G


def ratio(part: SupportsFloat, whole: SupportsFloat) -> float | None:
    """A quotient, None where it has no meaning."""
    return float(part) / float(whole) if float(whole) > 0 else None


def of_stage1(
    before: Matrix, after: Matrix, fired: NDArray[np.bool_], teachers: Sequence[str]
) -> dict[str, float]:
    """Where stage 1 acted and how much of a gradient it took, from squared norms [K]."""
    if not teachers:
        return {}
    return {"grad/stage1_rate": float(fired.mean())} | {
        f"grad/stage1_removed/{name}": 1.0 - float(np.sqrt(after[t] / before[t]))
        for t, name in enumerate(teachers)
        if before[t] > 0
    }


def of_stage2(
    projected: Matrix, M: Matrix, fired: NDArray[np.bool_], names: Sequence[str]
) -> dict[str, float]:
    """Where stage 2 acted, how far it moved each m_i, and which conflicts it left.

    Args:
        projected: m̃_i as combinations of m_1 … m_K [K, K].
        M: Gram matrix of m_1 … m_K [K, K].
        fired: ordered pairs (i, j) on which it acted [K, K].
        names: of the K rows; with fewer than two there is no stage 2.
    """
    K = len(names)
    if K < 2:
        return {}
    dots = projected @ M
    moved = projected - np.eye(K)
    lengths = np.sqrt(np.einsum("ij,ij->i", dots, projected).clip(0.0))
    # A dot that projection made zero is zero up to rounding only.
    left = dots < -1e-12 * np.outer(lengths, np.sqrt(np.diag(M).clip(0.0)))
    np.fill_diagonal(left, False)
    pairs = K * (K - 1)
    values = {
        "grad/stage2_rate": float(fired.sum()) / pairs,
        "grad/residual_conflict": float(left.sum()) / pairs,
    }
    change = np.sqrt(np.einsum("ij,jk,ik->i", moved, M, moved).clip(0.0))
    for t, name in enumerate(names):
        if M[t, t] > 0:
            values[f"grad/stage2_removed/{name}"] = float(change[t] / np.sqrt(M[t, t]))
    return values
