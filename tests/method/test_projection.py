"""Gradient combination: proved properties × nasty inputs, and the Gram form against vectors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import properties
from drivekd.method.combine import projection
from drivekd.method.combine.projection import (
    COMBINERS,
    SOLVERS,
    agp_coefficients,
    gram,
    linear_combination,
)
from drivekd.method.combine.telemetry import telemetry
from matrices import NASTY, ORDINARY, Vectors, conflicting, gram_of, order_of, random

ALL = NASTY | ORDINARY
COUNTS = ("per_capability", "once")
CAPABILITY_ROWS = ("agp", "stage1_only", "pcgrad_caps")

# --- the plain twin: METHOD §5 on explicit vectors -------------------------------------------


def stage1(g: Vectors) -> list[Vectors]:
    followers = []
    for t in range(1, len(g)):
        dot = g[t] @ g[0]
        followers.append(g[t] if dot >= 0 else g[t] - dot / (g[0] @ g[0]) * g[0])
    return followers


def stage2(rows: Sequence[Vectors], order: Sequence[int]) -> list[Vectors]:
    projected = []
    for i, start in enumerate(rows):
        v = start.copy()
        for j in order:
            dot = v @ rows[j]
            if j != i and dot < 0:
                v -= dot / (rows[j] @ rows[j]) * rows[j]
        projected.append(v)
    return projected


def update_of(name: str, g: Vectors, order: Sequence[int], ce_count: str) -> Vectors:
    """The update of a combiner, computed on vectors."""
    K = len(g) - 1
    if K == 0:
        return g[0]
    if name == "sum":
        return g.sum(0)
    if name == "sum_ceK":
        return g.sum(0) + (K - 1) * g[0]
    if name == "pcgrad":
        return np.sum(stage2(list(g), order), axis=0)
    followers = list(g[1:]) if name == "pcgrad_caps" else stage1(g)
    rows = [g[0] + f for f in followers]
    rows = rows if name == "stage1_only" else stage2(rows, order)
    return np.sum(rows, axis=0) - (K - 1 if ce_count == "once" else 0) * g[0]


def bound(name: str, ce_count: str = "per_capability") -> Callable[..., Vectors]:
    return lambda G, order: COMBINERS[name](torch.from_numpy(G), order, ce_count).numpy()


# --- the Gram form -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMBINERS)
@pytest.mark.parametrize("case", ALL)
def test_gram_form_equals_vector_form(case: str, name: str) -> None:
    """Nasty inputs too: to 1e-9 of Σ |a_k| ‖g_k‖, what vectors themselves lose by cancelling."""
    g = ALL[case]
    for seed, ce_count in itertools.product(range(3), COUNTS):
        order = order_of(g, name, seed)
        a = COMBINERS[name](gram_of(g), order, ce_count).numpy()
        properties.assert_same_update(a, g, update_of(name, g, order, ce_count))


@given(
    seed=st.integers(0, 2**32 - 1),
    teachers=st.integers(0, 5),
    width=st.integers(1, 11),
    exponents=st.lists(st.floats(-6, 6), min_size=6, max_size=6),
    name=st.sampled_from(sorted(COMBINERS)),
    ce_count=st.sampled_from(COUNTS),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_drawn_gradients(
    seed: int, teachers: int, width: int, exponents: list[float], name: str, ce_count: str
) -> None:
    """Any directions, lengths over twelve decades: finite, and the guarantees where promised."""
    g = random(seed, teachers, width) * 10.0 ** np.array(exponents[: teachers + 1])[:, None]
    a = COMBINERS[name](gram_of(g), order_of(g, name, seed), ce_count).numpy()
    properties.assert_finite(a, g)
    if name in ("agp", "stage1_only"):
        least = max(1, teachers) if ce_count == "per_capability" else 1
        properties.assert_at_least_the_sum(a, least)
        properties.assert_anchor_guarantee(a, g, least)


# --- properties × nasty inputs -----------------------------------------------------------------


@pytest.mark.parametrize("name", COMBINERS)
@pytest.mark.parametrize("case", ALL)
def test_coefficients_are_finite(case: str, name: str) -> None:
    g = ALL[case]
    for ce_count in COUNTS:
        properties.assert_finite(bound(name, ce_count)(gram_of(g), order_of(g, name)), g)


@pytest.mark.parametrize("name", COMBINERS)
@pytest.mark.parametrize("case", ALL)
def test_scale_changes_nothing(case: str, name: str) -> None:
    g = ALL[case]
    # Rounding the Gram matrix of nearly opposed rows moves their tiny sum by up to 1e-5 of itself.
    rtol = 1e-9 if case in ORDINARY else 1e-4
    properties.assert_scale_invariant(bound(name), g, order_of(g, name), rtol)


@pytest.mark.parametrize("name", COMBINERS)
@pytest.mark.parametrize("case", ORDINARY)
def test_renaming_teachers_renames_coefficients(case: str, name: str) -> None:
    g = ORDINARY[case]
    properties.assert_permutation_equivariant(
        bound(name), g, order_of(g, name), anchor_in_order=name == "pcgrad"
    )


@pytest.mark.parametrize("ce_count", COUNTS)
@pytest.mark.parametrize("name", ["agp", "stage1_only"])
@pytest.mark.parametrize("case", ALL)
def test_at_least_the_sum(case: str, name: str, ce_count: str) -> None:
    """(i), and (ii) for the anchor."""
    g = ALL[case]
    K = len(g) - 1
    least = max(1, K) if ce_count == "per_capability" else 1
    a = bound(name, ce_count)(gram_of(g), order_of(g, name))
    properties.assert_at_least_the_sum(a, least)
    properties.assert_anchor_guarantee(a, g, least)


@pytest.mark.parametrize("name", ["pcgrad_caps", "pcgrad", "sum", "sum_ceK"])
@pytest.mark.parametrize("case", ALL)
def test_projections_only_add(case: str, name: str) -> None:
    """(i) holds for the rivals as well: what they subtract are negative multiples."""
    g = ALL[case]
    K = len(g) - 1
    for ce_count in COUNTS:
        counted = name in ("pcgrad_caps", "sum_ceK") and (ce_count, name) != ("once", "pcgrad_caps")
        a = bound(name, ce_count)(gram_of(g), order_of(g, name))
        properties.assert_at_least_the_sum(a, max(1, K) if counted else 1)


@pytest.mark.parametrize("case", ALL)
def test_small_followers_never_trigger_stage_2_on_nasty_inputs(case: str) -> None:
    """(iii) wherever its premise holds, by itself or because the teachers are scaled down."""
    g = ALL[case]
    for scale in (1.0, 1e-3, 1e-12, 1e-24):
        scaled = np.concatenate([g[:1], scale * g[1:]])
        G, order = gram_of(scaled), order_of(g, "agp")
        solved = projection.agp(G, order)
        assert solved.stage1 is not None
        assert solved.stage2 is not None
        followers = np.sort(np.sqrt(solved.stage1.after))[::-1]
        anchor = float(projection.checked(G)[0, 0])
        if len(followers) > 1 and followers[0] * followers[1] <= anchor * (1 - 1e-9):
            assert not solved.stage2.fired.any()
        assert (solved.stage1.after <= solved.stage1.before).all()  # ‖f_t‖ ≤ ‖g_t‖


# Orthogonal only up to rounding: a dot of -1e-17 fires and adds nothing that float64 can hold.
@pytest.mark.parametrize("case", sorted(set(ALL) - {"orthogonal"}))
def test_equality_exactly_where_nothing_fired(case: str) -> None:
    g = ALL[case]
    K = len(g) - 1
    G, order = gram_of(g), order_of(g, "agp")
    solved = projection.agp(G, order)
    assert solved.stage1 is not None
    assert solved.stage2 is not None
    fired = bool(solved.stage1.fired.any() or solved.stage2.fired.any())
    assert (not np.array_equal(solved.coefficients, [max(1, K)] + [1] * K)) == fired


@pytest.mark.parametrize("case", ORDINARY)
def test_no_conflict_with_the_anchor_after_stage_1(case: str) -> None:
    g = ORDINARY[case]
    G = projection.checked(gram_of(g))
    F, shares, _ = projection.stage_1(G)
    for t, (added, f) in enumerate(zip(shares, stage1(g), strict=True)):
        follower = g[1 + t] + added * g[0]
        np.testing.assert_allclose(follower, f, atol=1e-12)
        properties.assert_no_conflict_with_the_anchor(follower, g[1 + t], g[0])
    scale = gram_of(g)[0, 0] / G[0, 0]
    basis = np.stack([g[0], *stage1(g)])
    np.testing.assert_allclose(F * scale, gram_of(basis), atol=1e-10)


@pytest.mark.parametrize("name", CAPABILITY_ROWS)
def test_one_teacher_has_no_stage_2_and_counts_the_anchor_once(name: str) -> None:
    for seed in range(20):
        g = random(seed, 1) if seed % 2 else conflicting(seed, 1)
        per_capability, once = (bound(name, c)(gram_of(g), [0]) for c in COUNTS)
        assert np.array_equal(per_capability, once)
        if name != "pcgrad_caps":
            assert np.array_equal(per_capability, bound("stage1_only")(gram_of(g), []))


def test_small_followers_never_trigger_stage_2() -> None:
    """(iii): max_{i≠j} ‖f_i‖‖f_j‖ ≤ ‖g_0‖² ⇒ AGP is stage 1 alone, whatever the order."""
    met = 0
    for seed in range(200):
        g = conflicting(seed, 3)
        norms = sorted(properties.lengths(np.stack(stage1(g))))
        g[1:] *= properties.lengths(g[0]) / (norms[-1] * norms[-2]) ** 0.5 * (1 - 1e-12)
        for order in itertools.permutations(range(3)):
            solved = projection.agp(gram_of(g), order)
            assert solved.stage2 is not None
            assert not solved.stage2.fired.any()
            met += 1
        g[1:] *= 4  # and beyond the bound it does fire for these
        beyond = projection.agp(gram_of(g), order).stage2
        assert beyond is not None
        assert beyond.fired.any()
    assert met == 1200


def test_the_order_matters_only_to_stage_2() -> None:
    g = conflicting(0, 3)
    orders = list(itertools.permutations(range(3)))
    assert len({tuple(bound("agp")(gram_of(g), list(o)).round(9)) for o in orders}) > 1
    assert len({tuple(bound("stage1_only")(gram_of(g), list(o))) for o in orders}) == 1


def test_by_hand() -> None:
    """g_0 = (1,0), g_1 = (-1,2), g_2 = (0,-3): one stage 1, both pairs of stage 2."""
    g = np.array([[1.0, 0.0], [-1.0, 2.0], [0.0, -3.0]])
    # m_1 = (1,2), m_2 = (1,-3), ⟨m_1,m_2⟩ = -5, squares 5 and 10:
    # m̃_1 = m_1 + ½ m_2, m̃_2 = m_2 + m_1, sum 2 m_1 + 1.5 m_2
    # = 2 (2 g_0 + g_1) + 1.5 (g_0 + g_2) = 5.5 g_0 + 2 g_1 + 1.5 g_2.
    assert agp_coefficients(gram_of(g), [0, 1]).tolist() == pytest.approx([5.5, 2.0, 1.5])
    assert agp_coefficients(gram_of(g), [0, 1], "once").tolist() == pytest.approx([4.5, 2.0, 1.5])
    assert COMBINERS["stage1_only"](gram_of(g), []).tolist() == pytest.approx([3.0, 1.0, 1.0])
    assert COMBINERS["sum_ceK"](gram_of(g), []).tolist() == [2.0, 1.0, 1.0]


def test_opposed_teacher_of_any_length_leaves_the_anchor() -> None:
    for scale in (1e-12, 1.0, 1e12):
        g = np.stack([NASTY["no teacher"][0], -scale * NASTY["no teacher"][0]])
        a = bound("agp")(gram_of(g), [0])
        np.testing.assert_allclose(a, [1 + scale, 1.0], rtol=1e-12)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, lambda G: torch.tensor(G).float()])
def test_any_kind_of_matrix_gives_float64_tensors(kind: Callable[..., object]) -> None:
    a = agp_coefficients(kind(gram_of(random(0, 3))), (2, 0, 1))
    assert isinstance(a, torch.Tensor)
    assert a.dtype == torch.float64
    assert a.shape == (4,)
    assert agp_coefficients(kind(np.array([[2.0]])), []).tolist() == [1.0]


@pytest.mark.parametrize("kind", [tuple, list, np.asarray, torch.tensor])
def test_any_kind_of_order(kind: Callable[..., object]) -> None:
    G = gram_of(conflicting(0, 3))
    assert torch.equal(agp_coefficients(G, kind([2, 0, 1])), agp_coefficients(G, [2, 0, 1]))
    drawn = list(np.random.default_rng(0).permutation(3))
    assert torch.equal(agp_coefficients(G, drawn), agp_coefficients(G, [int(i) for i in drawn]))


def test_the_matrix_is_left_alone() -> None:
    G = gram_of(conflicting(1, 3))
    before = G.copy()
    for name in COMBINERS:
        COMBINERS[name](G, order_of(before, name))
    assert np.array_equal(G, before)


def test_what_is_refused() -> None:
    G = gram_of(random(0, 2))
    with pytest.raises(ValueError, match=r"permutation of range\(2\)"):
        agp_coefficients(G, [0, 0])
    with pytest.raises(ValueError, match=r"permutation of range\(2\)"):
        agp_coefficients(G, [0, 1, 2])
    with pytest.raises(ValueError, match=r"permutation of range\(3\)"):
        COMBINERS["pcgrad"](G, [0, 1])
    with pytest.raises(ValueError, match=r"\[1\+K, 1\+K\]"):
        agp_coefficients(np.ones((2, 3)), [0])
    with pytest.raises(ValueError, match="3 rows"):
        telemetry(projection.agp(G, [0, 1]), ["planning"])
    with pytest.raises(ValueError, match="finite"):
        agp_coefficients(np.array([[1.0, np.nan], [np.nan, 1.0]]), [0])
    with pytest.raises((ValueError, TypeError), match="ce_count"):  # TypeError: checked by pytest
        COMBINERS["stage1_only"](G, [], "twice")


# --- vectors in and out ------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_gram_and_combination_in_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "CHUNK", chunk)
    g = torch.randn(4, 29)
    G = gram(list(g))
    assert G.dtype == torch.float64
    torch.testing.assert_close(G, g.double() @ g.double().T, rtol=1e-14, atol=1e-14)
    a = torch.randn(4, dtype=torch.float64)
    U = linear_combination(list(g), a)
    assert U.dtype == torch.float32
    torch.testing.assert_close(U, (a @ g.double()).float(), rtol=0, atol=1e-7)


def test_gram_keeps_small_gradients_beside_large_ones() -> None:
    """Norms 1e4 apart, the teacher nearly opposed to the anchor: float32 sums would be noise."""
    anchor = torch.randn(100_003) * 1e4
    g = [anchor, torch.randn(100_003) - 1e-4 * anchor]
    exact = torch.stack(g).double() @ torch.stack(g).double().T
    torch.testing.assert_close(gram(g), exact, rtol=1e-12, atol=0)
    U = linear_combination(g, agp_coefficients(gram(g), [0]))
    assert U.double() @ anchor.double() >= exact[0, 0] * (1 - 1e-6)


def test_vectors_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="length"):
        gram([torch.zeros(3), torch.zeros(4)])
    with pytest.raises((ValueError, TypeError), match=r"flat|'P'"):  # TypeError: checked by pytest
        gram([torch.zeros(3, 2)])
    with pytest.raises(ValueError, match="coefficient"):
        linear_combination([torch.zeros(3)], torch.ones(2, dtype=torch.float64))


# --- telemetry ---------------------------------------------------------------------------------


def test_telemetry_by_hand() -> None:
    g = np.array([[1.0, 0.0], [-1.0, 2.0], [0.0, -3.0]])
    values = telemetry(projection.agp(gram_of(g), [0, 1]), ["reasoning", "planning"])
    assert values == pytest.approx(
        {
            "grad/norm/ce": 1.0,
            "grad/norm/reasoning": 5**0.5,
            "grad/norm/planning": 3.0,
            "grad/cos/ce_reasoning": -1 / 5**0.5,
            "grad/cos/ce_planning": 0.0,
            "grad/cos/reasoning_planning": -2 / 5**0.5,
            "grad/ce_multiplier": 5.5,
            "grad/update_dot_ce": 3.5,
            "grad/conflict_rate": 0.5,
            "grad/stage1_rate": 0.5,
            "grad/stage1_removed/reasoning": 1 - 2 / 5**0.5,
            "grad/stage1_removed/planning": 0.0,
            "grad/stage2_rate": 1.0,
            "grad/residual_conflict": 0.0,
            # m̃_1 − m_1 = ½ m_2 and m̃_2 − m_2 = m_1
            "grad/stage2_removed/reasoning": 0.5 * 10**0.5 / 5**0.5,
            "grad/stage2_removed/planning": 5**0.5 / 10**0.5,
        }
    )


def test_telemetry_against_vectors_shows_what_stage_2_leaves() -> None:
    """METHOD §5: conflicts remain in a part of the draws where it fired; nobody promises none."""
    left = 0
    for seed in range(60):
        g = conflicting(seed, 3)
        order = order_of(g, "agp", seed)
        values = telemetry(projection.agp(gram_of(g), order), ["a", "b", "c"])
        rows = [g[0] + f for f in stage1(g)]
        projected = stage2(rows, order)
        dots = [projected[i] @ rows[j] for i in range(3) for j in range(3) if i != j]
        assert values["grad/residual_conflict"] == pytest.approx(np.mean(np.array(dots) < -1e-9))
        for name, m, v in zip("abc", rows, projected, strict=True):
            moved = properties.lengths(v - m) / properties.lengths(m)
            assert values[f"grad/stage2_removed/{name}"] == pytest.approx(moved, abs=1e-7)
        left += values["grad/residual_conflict"] > 0
    assert 0 < left < 60


@pytest.mark.parametrize("name", COMBINERS)
@pytest.mark.parametrize("case", NASTY)
def test_telemetry_is_finite_and_silent_about_what_is_undefined(case: str, name: str) -> None:
    g = NASTY[case]
    names = [f"t{i}" for i in range(1, len(g))]
    values = telemetry(SOLVERS[name](gram_of(g), order_of(g, name), "per_capability"), names)
    assert np.isfinite(list(values.values())).all()
    norms = dict(zip(["ce", *names], np.diag(gram_of(g)) > 0, strict=True))
    for pair in itertools.combinations(norms, 2):
        defined = norms[pair[0]] and norms[pair[1]]
        assert (f"grad/cos/{pair[0]}_{pair[1]}" in values) == defined
    assert ("grad/conflict_rate" in values) == (len(g) > 1)
    assert ("grad/stage2_rate" in values) == (len(g) > 2 and name in ("agp", "pcgrad_caps"))
