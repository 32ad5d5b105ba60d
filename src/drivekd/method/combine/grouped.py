"""AGP with an anchor per capability: the other reading of the paper's figure.

The figure draws a separate supervised gradient in each capability's panel. Here capability c is
anchored by the cross-entropy of its own samples, so cross-entropy is counted once, not once per
teacher. The Gram matrix has a row per anchor, then a row per teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from drivekd.method.combine.projection import (
    ROUNDING,
    Flags,
    GramLike,
    Matrix,
    Order,
    Solution,
    Stage1,
    Stage2,
    checked,
    permutation,
    project,
)


def agp_grouped_coefficients(
    gram: GramLike, anchors: Sequence[int], teachers: Sequence[int], order: Order
) -> Float[Tensor, " k"]:
    """Coefficients of AGP with one anchor per capability [ours; another reading of the figure].

    For each capability c: g_0^c = gradient of (w_ce/N) Σ CE_b over the samples of c;
    f_c = g_c if ⟨g_c,g_0^c⟩ ≥ 0, else g_c − ⟨g_c,g_0^c⟩/‖g_0^c‖² g_0^c; m_c = g_0^c + f_c; then
    stage 2 as in AGP over m_1 … m_C, and U = Σ_c m̃_c.

    What a unit lacks is zero: a teacher whose capability has no samples is not projected off any
    anchor, m_c = g_c; a capability without active teacher takes part with m_c = g_0^c. Without
    any teacher nothing is projected: U = Σ_c g_0^c = g_0.

    Every coefficient is ≥ 1, and all are 1 exactly where nothing fired: cross-entropy is counted
    once. With a single capability this is AGP with one teacher. There is no guarantee for
    ⟨U,g_0⟩ or ⟨U,g_0^c⟩: capabilities may oppose each other's anchors.

    Args:
        gram: inner products [A+K, A+K], the A anchors first.
        anchors: capability, 0 … C−1, of each anchor; none twice.
        teachers: capability of each teacher; none twice.
        order: permutation of range(C) over the capabilities, used for every i.

    Returns:
        float64 [A+K] on the CPU.

    Raises:
        ValueError: the matrix is not square or not finite, rows and capabilities do not match, or
            `order` is no permutation.
    """
    return torch.from_numpy(solve_grouped(gram, anchors, teachers, order).coefficients)


def solve_grouped(
    gram: GramLike, anchors: Sequence[int], teachers: Sequence[int], order: Order
) -> Solution:
    """Solve `agp_grouped_coefficients`; stage 2 has a row per capability, also without anchor."""
    G = checked(gram)
    C = _count(len(G), anchors, teachers)
    A, places = np.array(anchors, dtype=int), np.array(teachers, dtype=int)
    E = np.zeros((2 * C, 2 * C))  # an anchor and a teacher for each capability; absent ones are 0
    rows = np.concatenate([A, C + places])
    E[np.ix_(rows, rows)] = G
    F, added, fired = _stage1(E, C)
    M = F[:C, :C] + F[:C, C:] + F[C:, :C] + F[C:, C:]
    squares, ranks = np.diag(F), permutation(order, C)
    projected, pairs = np.eye(C), np.zeros((C, C), dtype=bool)
    if len(teachers):
        projected, pairs = project(M, ranks, squares[:C] + squares[C:])
    total = projected.sum(axis=0)
    before, after = np.diag(E)[C:][places], squares[C:][places]
    return Solution(
        np.concatenate([(total * (1.0 + added))[A], total[places]]),
        gram,
        Stage1(added[places], fired[places], before, after),
        Stage2(projected, M, pairs) if len(teachers) else None,
    )


def _count(rows: int, anchors: Sequence[int], teachers: Sequence[int]) -> int:
    present = sorted({*anchors, *teachers})
    repeated = len(set(anchors)) < len(anchors) or len(set(teachers)) < len(teachers)
    if rows != len(anchors) + len(teachers) or repeated or present != list(range(len(present))):
        raise ValueError(
            f"agp_grouped: Gram matrix of {rows} rows for anchors of capabilities {list(anchors)} "
            f"and teachers of {list(teachers)}; expected a row each, every capability from 0 on "
            "with at most one of both"
        )
    return len(present)


def _stage1(E: Matrix, C: int) -> tuple[Matrix, Matrix, Flags]:
    """Gram matrix of (g_0^1 … g_0^C, f_1 … f_C), the added shares of the anchors, where it fired.

    As in projection.py: what remains of a nearly opposed teacher is a difference of large numbers;
    below rounding it is zero, and Cauchy-Schwarz bounds the rest.
    """
    squares, own = np.diag(E)[:C], np.diag(E[:C, C:])
    fired = (own < 0) & (squares > 0)
    added = np.where(fired, -own / np.where(fired, squares, 1.0), 0.0)
    basis = np.eye(2 * C)
    basis[C:, :C] = np.diag(added)
    F = basis @ E @ basis.T
    before = np.diag(E)[C:]
    after = np.where(fired, before - added**2 * squares, before)
    after[fired & (after <= ROUNDING * before)] = 0.0
    bound = np.sqrt(np.outer(*2 * [np.concatenate([squares, after])]))
    F = np.clip(F, -bound, bound)
    index = np.arange(C)
    F[C + index, C + index] = after
    F[index, C + index] = F[C + index, index] = np.maximum(own, 0.0)
    return F, added, fired
