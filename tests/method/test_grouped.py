"""AGP with an anchor per capability: Gram form against vectors, and what is provable of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

import properties
from drivekd.method.combine.grouped import agp_grouped_coefficients, solve_grouped
from drivekd.method.combine.projection import agp_coefficients
from matrices import NASTY, Vectors, conflicting, gram_of, random


@dataclass(frozen=True)
class Case:
    """Vectors with the capability of each anchor and of each teacher."""

    vectors: Vectors
    anchors: tuple[int, ...]
    teachers: tuple[int, ...]

    @property
    def capabilities(self) -> int:
        return len({*self.anchors, *self.teachers})

    def solve(self, order: Sequence[int]) -> Vectors:
        return agp_grouped_coefficients(
            gram_of(self.vectors), self.anchors, self.teachers, order
        ).numpy()


def drawn(kind: str, seed: int, anchors: tuple[int, ...], teachers: tuple[int, ...]) -> Case:
    """Anchors that differ, and teachers that oppose their own anchor and each other."""
    rows = len(anchors) + len(teachers)
    g = (random if kind == "random" else conflicting)(seed, rows - 1)
    return Case(g, anchors, teachers)


FULL = ((0, 1, 2), (0, 1, 2))
PARTS = [
    FULL,
    ((0, 1, 2), (1,)),  # capabilities without a teacher
    ((1,), (0, 1, 2)),  # teachers whose capability has no samples
    ((2, 0), (1, 2)),
    ((0,), (0,)),
    ((0,), (1,)),
    ((0, 1), ()),
]
ORDINARY = {
    f"{kind} {seed} {anchors} {teachers}": drawn(kind, seed, anchors, teachers)
    for kind in ("random", "conflicting")
    for seed in range(3)
    for anchors, teachers in PARTS
}


def _nasty() -> dict[str, Case]:
    """The nasty vectors of the other combiners, shared out among two anchors and their teachers."""
    cases = {
        name: Case(g[[0, 1, 2, 3]], (0, 1), (0, 1)) for name, g in NASTY.items() if len(g) >= 4
    }
    cases |= {
        f"{name}, teachers first": Case(g[[2, 3, 0, 1]], (0, 1), (1, 0))
        for name, g in NASTY.items()
        if len(g) >= 4
    }
    g = random(0, 5)
    opposed = np.stack([g[0], g[1], -1e12 * g[0], -1e-12 * g[1]])
    return {**cases, "each against its own anchor": Case(opposed, (0, 1), (0, 1))}


ALL = ORDINARY | _nasty()


def update_of(case: Case, order: Sequence[int]) -> Vectors:
    """The plain twin, on vectors."""
    zero = np.zeros(case.vectors.shape[1])
    anchor = dict(zip(case.anchors, case.vectors, strict=False))
    teacher = dict(zip(case.teachers, case.vectors[len(case.anchors) :], strict=True))
    rows = []
    for c in range(case.capabilities):
        a, f = anchor.get(c, zero), teacher.get(c, zero)
        rows.append(a + (f if f @ a >= 0 else f - (f @ a) / (a @ a) * a))
    projected = [row.copy() for row in rows]
    for i, v in enumerate(projected):
        for j in order if case.teachers else ():
            if i != j and v @ rows[j] < 0:
                v -= (v @ rows[j]) / (rows[j] @ rows[j]) * rows[j]
    return np.sum(projected, axis=0)


@pytest.mark.parametrize("name", ALL)
def test_gram_form_equals_vector_form(name: str) -> None:
    case = ALL[name]
    for order in itertools.permutations(range(case.capabilities)):
        properties.assert_same_update(case.solve(order), case.vectors, update_of(case, order))


@pytest.mark.parametrize("name", ALL)
def test_every_coefficient_is_at_least_one_and_one_exactly_where_nothing_fired(name: str) -> None:
    """So the cross-entropy is counted once, where AGP counts it once per teacher."""
    case = ALL[name]
    order = list(range(case.capabilities))
    found = solve_grouped(gram_of(case.vectors), case.anchors, case.teachers, order)
    properties.assert_finite(found.coefficients, case.vectors)
    assert (found.coefficients >= 1).all()
    stages = [stage for stage in (found.stage1, found.stage2) if stage is not None]
    if not any(stage.fired.any() for stage in stages):
        assert (found.coefficients == 1).all()
    elif name in ORDINARY:
        assert (found.coefficients > 1).any()


@pytest.mark.parametrize("name", ALL)
def test_scale_changes_nothing(name: str) -> None:
    case = ALL[name]
    order = list(range(case.capabilities))

    def combine(G: Vectors, order: Sequence[int]) -> Vectors:
        return agp_grouped_coefficients(G, case.anchors, case.teachers, order).numpy()

    rtol = 1e-9 if name in ORDINARY else 1e-3
    properties.assert_scale_invariant(combine, case.vectors, order, rtol)


@pytest.mark.parametrize("kind", ["random", "conflicting"])
def test_renaming_capabilities_renames_coefficients(kind: str) -> None:
    for seed in range(5):
        case = drawn(kind, seed, *FULL)
        for new in itertools.permutations(range(3)):  # old capability c is now new[c]
            renamed = Case(case.vectors, new, new)
            order = [new[c] for c in (2, 0, 1)]
            np.testing.assert_allclose(renamed.solve(order), case.solve((2, 0, 1)), rtol=1e-9)


def test_no_teacher_against_its_own_anchor_after_stage_1() -> None:
    for seed in range(20):
        case = drawn("conflicting", seed, *FULL)
        found = solve_grouped(gram_of(case.vectors), *FULL, [0, 1, 2])
        own = [case.vectors[3 + c] @ case.vectors[c] for c in range(3)]
        assert found.stage1 is not None
        assert found.stage1.fired.tolist() == [dot < 0 for dot in own]
        assert (found.stage1.after <= found.stage1.before).all()


def test_one_capability_is_agp_with_one_teacher() -> None:
    for seed in range(10):
        g = conflicting(seed, 1)
        grouped = agp_grouped_coefficients(gram_of(g), [0], [0], [0])
        np.testing.assert_allclose(grouped, agp_coefficients(gram_of(g), [0]), rtol=1e-12)


def test_without_teachers_it_is_the_cross_entropy() -> None:
    g = np.stack([random(0, 0)[0], -random(0, 0)[0], random(1, 0)[0]])
    assert agp_grouped_coefficients(gram_of(g), [0, 1, 2], [], [2, 0, 1]).tolist() == [1, 1, 1]


def test_by_hand() -> None:
    """A teacher without samples keeps its gradient; an anchor without teacher takes part."""
    g = np.array([[1.0, 0.0], [-1.0, 2.0]])  # the anchor of capability 0, the teacher of 1
    # m_0 = (1,0), m_1 = (-1,2), dot -1, squares 1 and 5: m̃_0 = m_0 + m_1/5, m̃_1 = m_1 + m_0.
    assert agp_grouped_coefficients(gram_of(g), [0], [1], [0, 1]).tolist() == pytest.approx(
        [2, 1.2]
    )
    # As its own teacher it is projected off the anchor in stage 1, and there is no stage 2.
    assert agp_grouped_coefficients(gram_of(g), [0], [0], [0]).tolist() == pytest.approx([2, 1])


def test_what_is_refused() -> None:
    G = gram_of(random(0, 2))
    for anchors, teachers in (([0], [0]), ([0, 0], [1]), ([0, 2], [0]), ([0], [1, 1])):
        with pytest.raises(ValueError, match=r"agp_grouped: .*3 rows"):
            agp_grouped_coefficients(G, anchors, teachers, [0, 1])
    with pytest.raises(ValueError, match=r"permutation of range\(2\)"):
        agp_grouped_coefficients(G, [0, 1], [1], [0])
