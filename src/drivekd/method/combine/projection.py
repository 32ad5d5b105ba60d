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
Flags = NDArray[np.bool_]
GramLike = Tensor | NDArray[Any]
Order = Sequence[SupportsIndex] | Tensor | NDArray[np.integer]
Combiner = Callable[[GramLike, Order, CeCount], Tensor]
Solver = Callable[[GramLike, Order, CeCount], "Solution"]

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


@dataclass(frozen=True)
class Stage1:
    """Teachers projected off the anchor.

    Attributes:
        added: share of its anchor that was added to each g_t [K], ≥ 0.
        fired: teachers on which it acted [K].
        before: ‖g_t‖² [K], up to one common factor.
        after: ‖f_t‖² [K], up to the same factor.
    """

    added: Matrix
    fired: Flags
    before: Matrix
    after: Matrix


@dataclass(frozen=True)
class Stage2:
    """Rows m_1 … m_r projected off each other.

    Attributes:
        projected: m̃_i as combinations of m_1 … m_r [r, r].
        M: Gram matrix of m_1 … m_r [r, r], up to one factor.
        fired: ordered pairs (i, j) on which it acted [r, r].
    """

    projected: Matrix
    M: Matrix
    fired: Flags


@dataclass(frozen=True)
class Solution:
    """What a combiner made of one Gram matrix: the update needs it, telemetry reads it.

    Attributes:
        coefficients: a, one per row.
        gram: the inner products, as given.
        stage1: None for a combiner without it.
        stage2: None for a combiner without it.
    """

    coefficients: Matrix
    gram: GramLike
    stage1: Stage1 | None = None
    stage2: Stage2 | None = None


def agp(gram: GramLike, order: Order, ce_count: CeCount = "per_capability") -> Solution:
    """Project asymmetrically: the AGP update U = Σ_k a_k g_k [paper, release; Gram form: ours].

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

    Raises:
        ValueError: the matrix is not square or not finite, or `order` is no permutation.
    """
    return _capabilities(gram, order, ce_count, first=True, second=True)


def agp_coefficients(
    gram: GramLike, order: Order, ce_count: CeCount = "per_capability"
) -> Float[Tensor, " k"]:
    """Solve AGP for its coefficients alone: float64 [1+K] on the CPU; see `agp`."""
    return COMBINERS["agp"](gram, order, ce_count)


def _stage1_only(gram: GramLike, order: Order, ce_count: CeCount) -> Solution:
    """AGP without stage 2, U = Σ_t m_t, whatever the order [ours: a control]."""
    return _capabilities(gram, order, ce_count, first=True, second=False)


def _pcgrad_caps(gram: GramLike, order: Order, ce_count: CeCount) -> Solution:
    """AGP without stage 1: m_t = g_0 + g_t, stage 2, sum [ours: our reading of the paper's G2]."""
    return _capabilities(gram, order, ce_count, first=False, second=True)


def _pcgrad(gram: GramLike, order: Order, ce_count: CeCount) -> Solution:
    """Project every row, the anchor too, off the original others [ours: our reading of G1].

    The order is a permutation of all 1+K rows; `ce_count` has no meaning here.
    """
    G = checked(gram)
    rows, _ = project(G, permutation(order, len(G)), np.diag(G))
    return Solution(rows.sum(axis=0), gram)


def _sum(gram: GramLike, order: Order, ce_count: CeCount) -> Solution:
    """U = Σ_k g_k, no projection, cross-entropy once."""
    return Solution(np.ones(len(checked(gram))), gram)


def _sum_ceK(gram: GramLike, order: Order, ce_count: CeCount) -> Solution:  # noqa: N802
    """U = K g_0 + Σ_t g_t: no projection, cross-entropy counted as by AGP [ours: a control]."""
    K = len(checked(gram)) - 1
    return Solution(np.array([max(1.0, K), *[1.0] * K]), gram)


SOLVERS: dict[str, Solver] = {
    "agp": agp,
    "stage1_only": _stage1_only,
    "pcgrad_caps": _pcgrad_caps,
    "pcgrad": _pcgrad,
    "sum": _sum,
    "sum_ceK": _sum_ceK,
}
"""Name to f(gram, order, ce_count) → `Solution`."""


def _only_coefficients(solver: Solver) -> Combiner:
    def coefficients(
        gram: GramLike, order: Order, ce_count: CeCount = "per_capability"
    ) -> Float[Tensor, " k"]:
        return torch.from_numpy(solver(gram, order, ce_count).coefficients)

    return coefficients


COMBINERS: dict[str, Combiner] = {n: _only_coefficients(solver) for n, solver in SOLVERS.items()}
"""Name to f(gram, order, ce_count) → coefficients, float64 [1+K] on the CPU."""


def _capabilities(
    gram: GramLike, order: Order, ce_count: CeCount, *, first: bool, second: bool
) -> Solution:
    """Run the stages on the rows m_t = g_0 + f_t and add up what they leave."""
    if ce_count not in ("per_capability", "once"):
        raise ValueError(f"ce_count: expected 'per_capability' or 'once', got {ce_count!r}")
    G = checked(gram)
    K = len(G) - 1
    F, added, fired = stage_1(G) if first else (G, np.zeros(K), np.zeros(K, dtype=bool))
    stage1 = Stage1(added, fired, np.diag(G)[1:], np.diag(F)[1:]) if first else None
    projected, stage2 = np.eye(K), None
    if second:
        cross = F[1:, 0]
        M = F[0, 0] + cross[:, None] + cross[None, :] + F[1:, 1:]
        projected, pairs = project(M, permutation(order, K), F[0, 0] + np.diag(F)[1:])
        stage2 = Stage2(projected, M, pairs)
    if K == 0:
        return Solution(np.ones(1), gram, stage1, stage2)
    teachers = projected.sum(axis=0)
    anchor = float(teachers @ (1.0 + added)) - (K - 1 if ce_count == "once" else 0)
    return Solution(np.concatenate([[anchor], teachers]), gram, stage1, stage2)


def stage_1(G: Matrix) -> tuple[Matrix, Matrix, Flags]:
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


def project(M: Matrix, order: Sequence[int], terms: Matrix) -> tuple[Matrix, Flags]:
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


def permutation(order: Order, length: int) -> list[int]:
    """The order as plain numbers, checked."""
    given = [int(i) for i in order]
    if sorted(given) != list(range(length)):
        raise ValueError(f"order: expected a permutation of range({length}), got {given}")
    return given
