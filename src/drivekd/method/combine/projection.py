"""Combining one gradient per loss into one update: asymmetric gradient projection and its rivals.

Row 0 is the cross-entropy, the anchor g_0; rows 1 … K are the active teachers. Every update here
lies in the span of the gradients, and its coefficients depend on their Gram matrix alone, so:
K+1 gradients → one (1+K)×(1+K) Gram matrix → coefficients → one linear combination. The Gram
matrix is accumulated and solved in float64: a float32 one errs 0.5 at norm ratios of 1e4.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

CeCount = Literal["per_capability", "once"]
Matrix = NDArray[np.float64]
GramLike = Tensor | NDArray[Any]
Order = Sequence[SupportsIndex] | Tensor | NDArray[np.integer]
Combiner = Callable[[GramLike, Order, CeCount], Tensor]

CHUNK = 2**14
"""Entries of each gradient [float64] held at a time, a cache full; a GPU gets 256 times as many."""

ROUNDING = 64 * float(np.finfo(np.float64).eps)
"""A squared norm below this share of the terms it is the difference of counts as zero."""


def gram(gradients: Sequence[Float[Tensor, " P"]]) -> Float[Tensor, "k k"]:
    """All inner products of flat gradients, accumulated in float64 chunk by chunk [ours].

    Args:
        gradients: flat vectors of equal length, the cross-entropy's first; missing parameters are
            zeros, tied parameters occur once.
    """
    _check_vectors(gradients)
    total = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    total = total.to(gradients[0].device)
    for _, block in _blocks(gradients):
        total += block @ block.T
    return total


def linear_combination(
    gradients: Sequence[Float[Tensor, " P"]],
    coefficients: Float[Tensor, " k"],
    out: Float[Tensor, " P"] | None = None,
) -> Float[Tensor, " P"]:
    """U = Σ_k a_k g_k in the gradients' dtype, each entry summed in float64 [ours].

    Coefficients can be large and cancel, so the sum is rounded once, at the end. `out` receives
    it where given.
    """
    _check_vectors(gradients)
    if len(gradients) != len(coefficients):
        raise ValueError(
            f"linear_combination: {len(gradients)} gradients, {len(coefficients)} coefficients; "
            "expected one coefficient per gradient"
        )
    weights = coefficients.to(gradients[0].device, torch.float64)
    update = torch.empty_like(gradients[0], requires_grad=False) if out is None else out
    for place, block in _blocks(gradients):
        update[place] = weights @ block
    return update


def _blocks(gradients: Sequence[Float[Tensor, " P"]]) -> Iterator[tuple[slice, Tensor]]:
    size = CHUNK if gradients[0].is_cpu else 256 * CHUNK
    for start in range(0, gradients[0].numel(), size):
        place = slice(start, start + size)
        yield place, torch.stack([g.detach()[place] for g in gradients]).double()


def _check_vectors(gradients: Sequence[Tensor]) -> None:
    shapes = {tuple(g.shape) for g in gradients}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(
            f"gradients: expected flat vectors of one length, got shapes {sorted(shapes)}; flatten "
            "all parameters in one order, with zeros where a loss does not reach"
        )


def agp_coefficients(
    gram: GramLike, order: Order, ce_count: CeCount = "per_capability"
) -> Float[Tensor, " k"]:
    """Coefficients a of the AGP update U = Σ_k a_k g_k [paper, release; Gram form: ours].

    Stage 1, per teacher: f_t = g_t if ⟨g_t,g_0⟩ ≥ 0, else g_t − ⟨g_t,g_0⟩/‖g_0‖² g_0;
    m_t = g_0 + f_t. Stage 2, per i with v = m_i, over j ≠ i in `order`: if ⟨v,m_j⟩ < 0 then
    v −= ⟨v,m_j⟩/‖m_j‖² m_j, always with the original m_j. U = Σ_i v_i.

    a_0 ≥ K (`once`: ≥ 1), a_t ≥ 1, and ⟨U,g_0⟩ ≥ K‖g_0‖² (`once`: ‖g_0‖²). Stage 2 may leave
    conflicts behind.

    Args:
        gram: inner products [1+K, 1+K], cross-entropy first.
        order: permutation of range(K) over the active teachers, used for every i.
        ce_count: `per_capability` counts g_0 once in every m_t [release]; `once` subtracts
            (K−1) g_0 [ours].

    Returns:
        float64 [1+K] on the CPU; [1] for K = 0.

    Raises:
        ValueError: the matrix is not square or not finite, or `order` is no permutation.
    """
    solved = capability_rows(gram, order, stage1=True, stage2=True)
    return _summed(solved, ce_count)


def stage1_only(
    gram: GramLike, order: Order = (), ce_count: CeCount = "per_capability"
) -> Float[Tensor, " k"]:
    """AGP without stage 2, U = Σ_t m_t, whatever the order [ours: a control]."""
    del order
    return _summed(capability_rows(gram, None, stage1=True, stage2=False), ce_count)


def pcgrad_caps(
    gram: GramLike, order: Order, ce_count: CeCount = "per_capability"
) -> Float[Tensor, " k"]:
    """AGP without stage 1: m_t = g_0 + g_t, stage 2, sum [ours: our reading of the paper's G2]."""
    return _summed(capability_rows(gram, order, stage1=False, stage2=True), ce_count)


def pcgrad(
    gram: GramLike, order: Order, ce_count: CeCount = "per_capability"
) -> Float[Tensor, " k"]:
    """Project every row, the anchor too, off the original others [ours: our reading of G1].

    The order is a permutation of all 1+K rows; `ce_count` has no meaning here.
    """
    del ce_count
    G = checked(gram)
    rows, _ = project(G, permutation(order, len(G)), np.diag(G))
    return torch.from_numpy(rows.sum(axis=0))


def plain_sum(
    gram: GramLike, order: Order = (), ce_count: CeCount = "per_capability"
) -> Float[Tensor, " k"]:
    """U = Σ_k g_k, no projection, cross-entropy once."""
    del order, ce_count
    return torch.ones(len(checked(gram)), dtype=torch.float64)


def sum_ceK(  # noqa: N802  the method's own name
    gram: GramLike, order: Order = (), ce_count: CeCount = "per_capability"
) -> Float[Tensor, " k"]:
    """U = K g_0 + Σ_t g_t: no projection, cross-entropy counted as by AGP [ours: a control]."""
    a = plain_sum(gram, order, ce_count)
    a[0] = max(1, len(a) - 1)
    return a


COMBINERS: dict[str, Combiner] = {
    "agp": agp_coefficients,
    "stage1_only": stage1_only,
    "pcgrad_caps": pcgrad_caps,
    "pcgrad": pcgrad,
    "sum": plain_sum,
    "sum_ceK": sum_ceK,
    "sum_ce3": sum_ceK,
}
"""Name to f(gram, order, ce_count) → coefficients."""


def combine(
    gram: GramLike,
    combiner: str,
    order: Order,
    ce_count: CeCount = "per_capability",
) -> Float[Tensor, " k"]:
    """Coefficients by the combiner of this name.

    Raises:
        ValueError: there is none of this name.
    """
    if combiner not in COMBINERS:
        raise ValueError(f"combiner {combiner!r}: expected one of {', '.join(COMBINERS)}")
    return COMBINERS[combiner](gram, order, ce_count)


@dataclass(frozen=True)
class Solution:
    """What the projection of capability rows did, for the update and for telemetry.

    Rows are coefficients over (g_0, f_1 … f_K), the basis in which nothing cancels.

    Attributes:
        G: Gram matrix of the gradients [1+K, 1+K].
        F: Gram matrix of (g_0, f_1 … f_K).
        anchor: how much of g_0 stage 1 added to each g_t [K], ≥ 0.
        fired1: teachers on which stage 1 acted [K].
        projected: m̃_i as combinations of m_1 … m_K [K, K].
        M: Gram matrix of m_1 … m_K [K, K].
        fired2: ordered pairs (i, j) on which stage 2 acted [K, K].
    """

    G: Matrix
    F: Matrix
    anchor: Matrix
    fired1: NDArray[np.bool_]
    projected: Matrix
    M: Matrix
    fired2: NDArray[np.bool_]


def capability_rows(gram: GramLike, order: Order | None, *, stage1: bool, stage2: bool) -> Solution:
    """Run the stages on the rows m_t = g_0 + f_t."""
    G = checked(gram)
    K = len(G) - 1
    F, anchor, fired1 = stage_1(G) if stage1 else (G, np.zeros(K), np.zeros(K, dtype=bool))
    cross = F[1:, 0]
    M = F[0, 0] + cross[:, None] + cross[None, :] + F[1:, 1:]
    projected, fired2 = np.eye(K), np.zeros((K, K), dtype=bool)
    if stage2:
        projected, fired2 = project(M, permutation(order, K), F[0, 0] + np.diag(F)[1:])
    return Solution(G, F, anchor, fired1, projected, M, fired2)


def stage_1(G: Matrix) -> tuple[Matrix, Matrix, NDArray[np.bool_]]:
    """Gram matrix of (g_0, f_1 … f_K), the added shares of g_0, and where it fired.

    With d_t = ⟨g_t,g_0⟩ and d⁺ = max(d, 0): ⟨f_s,f_t⟩ = G_st − (d_s d_t − d⁺_s d⁺_t)/‖g_0‖², where
    a pair of which neither fired keeps G_st. What remains of a nearly opposed teacher is a
    difference of large numbers: below rounding it is zero, and Cauchy-Schwarz bounds the rest.
    """
    d, anchor_square = G[1:, 0], G[0, 0]
    fired = (d < 0) & (anchor_square > 0)
    anchor = np.where(fired, -d / anchor_square if anchor_square > 0 else 0.0, 0.0)
    F = G.copy()
    F[1:, 0] = F[0, 1:] = np.where(fired, 0.0, np.maximum(d, 0.0))
    either = fired[:, None] | fired[None, :]
    removed = np.outer(d, d) / anchor_square if anchor_square > 0 else np.zeros_like(either, float)
    F[1:, 1:] -= np.where(either, removed, 0.0)
    squares = np.diag(F)[1:].copy()
    squares[fired & (squares <= ROUNDING * np.diag(G)[1:])] = 0.0
    bound = np.sqrt(np.outer(squares, squares))
    F[1:, 1:] = np.clip(F[1:, 1:], -bound, bound)
    F[np.arange(1, len(F)), np.arange(1, len(F))] = squares
    return F, anchor, fired


def project(M: Matrix, order: Sequence[int], terms: Matrix) -> tuple[Matrix, NDArray[np.bool_]]:
    """Project each row off the original others in the order, where they conflict.

    Args:
        M: Gram matrix of the originals [r, r].
        order: permutation of the r rows.
        terms: the squares that each ‖m_j‖² is a sum of; what is below their rounding is zero.

    Returns:
        The projected rows as combinations of the originals, and the pairs where it fired.
    """
    rows, fired = np.eye(len(M)), np.zeros(M.shape, dtype=bool)
    squares = np.diag(M)
    for i, j in itertools.product(range(len(M)), order):
        dot = rows[i] @ M[:, j]
        if i != j and dot < 0 and squares[j] > ROUNDING * terms[j]:
            rows[i, j] -= dot / squares[j]
            fired[i, j] = True
    return rows, fired


def _summed(solved: Solution, ce_count: CeCount) -> Float[Tensor, " k"]:
    """Coefficients of Σ_i m̃_i over g_0 … g_K, with the cross-entropy counted as asked."""
    if ce_count not in ("per_capability", "once"):
        raise ValueError(f"ce_count: expected 'per_capability' or 'once', got {ce_count!r}")
    K = len(solved.anchor)
    if K == 0:
        return torch.ones(1, dtype=torch.float64)
    teachers = solved.projected.sum(axis=0)
    anchor = float(teachers @ (1.0 + solved.anchor)) - (K - 1 if ce_count == "once" else 0)
    return torch.from_numpy(np.concatenate([[anchor], teachers]))


def checked(gram: GramLike) -> Matrix:
    """The matrix in float64 on the CPU, scaled by a power of two so that no product overflows."""
    G = gram.detach().cpu().double().numpy() if isinstance(gram, Tensor) else np.asarray(gram)
    G = G.astype(np.float64)
    if G.ndim != 2 or G.shape[0] != G.shape[1] or len(G) == 0:
        raise ValueError(f"Gram matrix: expected [1+K, 1+K], got shape {list(G.shape)}")
    if not np.isfinite(G).all():
        raise ValueError(
            "Gram matrix: expected finite numbers; a gradient is infinite or not a number, so the "
            "loss has diverged or overflowed: stop before the update and look at this batch"
        )
    largest = float(np.abs(np.diag(G)).max())
    exponent = -int(np.frexp(largest)[1]) if largest > 0 else 0
    scaled: Matrix = np.ldexp(G + G.T, exponent - 1)
    return scaled


def permutation(order: Order | None, length: int) -> list[int]:
    given = [] if order is None else [int(i) for i in order]
    if sorted(given) != list(range(length)):
        raise ValueError(f"order: expected a permutation of range({length}), got {given}")
    return given
