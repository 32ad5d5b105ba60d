"""What every combination of gradients must satisfy, as functions that a test calls on any input.

Tolerances are relative to the lengths involved: a dot of two vectors is known to about 1e-16 of
the product of their lengths, whatever its own size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import matrices
from matrices import Vectors, gram_of

Combine = Callable[..., Vectors]

EPS = 1e-9


def lengths(vectors: Vectors) -> Vectors:
    return np.linalg.norm(vectors, axis=-1)


def assert_finite(a: Vectors, vectors: Vectors) -> None:
    assert a.dtype == np.float64
    assert a.shape == (len(vectors),)
    assert np.isfinite(a).all()


def assert_at_least_the_sum(a: Vectors, anchor: float) -> None:
    """METHOD §5 (i): a_0 ≥ K (`once`: ≥ 1), a_t ≥ 1; exactly, not up to rounding."""
    assert a[0] >= anchor
    assert (a[1:] >= 1).all()


def assert_anchor_guarantee(a: Vectors, vectors: Vectors, times: float) -> None:
    """METHOD §5 (ii): ⟨U,g_0⟩ ≥ K‖g_0‖² (`once`: ≥ ‖g_0‖²)."""
    anchor = vectors[0]
    rounding = EPS * float(np.abs(a) @ lengths(vectors)) * lengths(anchor)
    assert a @ vectors @ anchor >= times * (anchor @ anchor) - rounding


def assert_no_conflict_with_the_anchor(follower: Vectors, before: Vectors, anchor: Vectors) -> None:
    """After stage 1 no teacher opposes the anchor, and none grew."""
    assert follower @ anchor >= -EPS * lengths(before) * lengths(anchor)
    assert lengths(follower) <= lengths(before) * (1 + EPS)


def assert_scale_invariant(
    combine: Combine, vectors: Vectors, order: list[int], rtol: float
) -> None:
    """a(s²G) = a(G): bit for bit for powers of two, to `rtol` where scaling rounds."""
    a = combine(gram_of(vectors), order)
    for scale in (2.0**-9, 2.0**17):
        if matrices.fits(scale, vectors):
            assert np.array_equal(combine(gram_of(vectors) * scale**2, order), a)
    for scale in (1e-12, 0.7, 1e12):
        if matrices.fits(scale, vectors):
            scaled = combine(gram_of(vectors) * scale**2, order)
            np.testing.assert_allclose(scaled, a, rtol=rtol)


def assert_permutation_equivariant(
    combine: Combine, vectors: Vectors, order: list[int], *, anchor_in_order: bool
) -> None:
    """Renaming the teachers, and the order with them, renames the coefficients."""
    K = len(vectors) - 1
    rename = np.random.default_rng(3).permutation(K)  # new teacher i is old teacher rename[i]
    rows = np.concatenate([[0], 1 + rename])
    place = {int(old): new for new, old in enumerate(rows if anchor_in_order else rename)}
    renamed = combine(gram_of(vectors[rows]), [place[i] for i in order])
    np.testing.assert_allclose(renamed, combine(gram_of(vectors), order)[rows], rtol=1e-9)


def assert_same_update(a: Vectors, vectors: Vectors, update: Vectors, rtol: float = 1e-9) -> None:
    """Gram form = vector form."""
    scale = float(np.abs(a) @ lengths(vectors))
    np.testing.assert_allclose(a @ vectors, update, rtol=0, atol=rtol * max(scale, 1e-300))
