"""From the gradients of one unit to one update: Gram matrix, weights λ, coefficients, sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from drivekd.distill import gradients, objective
from drivekd.distill.gradients import Reading, Unit
from drivekd.distill.order import projection_order
from drivekd.distill.plan import Plan
from drivekd.method.combine import refresh, telemetry, weighting
from drivekd.method.combine.grouped import solve_grouped
from drivekd.method.combine.projection import SOLVERS, Matrix, Solution, Solver
from drivekd.method.combine.torchjd import PREFIX, torchjd_solver
from drivekd.recipe import Recipe

Place = tuple[int, int]
"""Number of the optimizer step, and of the unit within it."""


@dataclass(frozen=True)
class Method:
    """What a recipe chose, made once before the loop: how λ is set, how gradients are combined.

    Attributes:
        weigh: sets λ.
        solver: combines; not used where cross-entropy has a row per capability.
        ordered: what its random order is over: all teachers' capabilities, with None the anchor.
    """

    weigh: weighting.Weigh
    solver: Solver
    ordered: tuple[str | None, ...]


def method_of(recipe: Recipe, groups: tuple[str, ...]) -> Method:
    """Make the weighting and the combiner that a recipe asks for; `groups` as in `Unit`.

    Raises:
        ValueError: it needs a package that is not installed, or names no weighting of it.
    """
    name, teachers = recipe.combine.combiner, tuple(recipe.capabilities)
    weigh = _weighting_of(recipe)
    if name == "agp_grouped":  # without teachers nobody has an anchor to tell apart
        return Method(weigh, SOLVERS["sum"], tuple(dict.fromkeys((*teachers, *groups))))
    if name.startswith(PREFIX):
        return Method(weigh, torchjd_solver(name), (None, *teachers))
    return Method(weigh, SOLVERS[name], (None, *teachers) if name == "pcgrad" else teachers)


def _weighting_of(recipe: Recipe) -> weighting.Weigh:
    part = recipe.weighting
    if part.mode == "fixed":
        return weighting.fixed(part.fixed, w_ce=part.w_ce)
    rho = {name: capability.rho for name, capability in recipe.capabilities.items()}
    return weighting.grad_norm(rho, w_ce=part.w_ce, decay=part.decay, cap=part.cap)


@dataclass(frozen=True)
class Solved:
    """The update of one unit and what came with it.

    Attributes:
        update: U.
        logged: of the gradients and of what was made of them.
        tables: the losses of each batch, on the host, see `Losses.table`.
        memory: what the weighting remembers.
        kept: what steps with kept coefficients go by, see refresh.py; {} where there are none.
    """

    update: Float[Tensor, " P"]
    logged: dict[str, float]
    tables: tuple[NDArray[np.float64], ...]
    memory: weighting.State = field(default_factory=dict)
    kept: refresh.Kept = field(default_factory=dict)


def solve(plan: Plan, unit: Unit, method: Method, memory: weighting.State, place: Place) -> Solved:
    """Ĝ → λ → G = D Ĝ D → coefficients a → U = Σ_k a_k D_k ĝ_k, over the active teachers only.

    [paper, release] the projection; [ours] by the Gram matrix. A teacher is active if a sample of
    the unit carries it and its weight is not 0; the others are cut out of the matrix.

    Args:
        plan: of the run.
        unit: the gradients.
        method: sets λ and a.
        memory: what `method.weigh` remembers of earlier units.
        place: optimizer step and number of the unit within it, for the random order.

    Raises:
        RuntimeError: a loss or a gradient is not finite.
    """
    reading, n = _checked(plan, unit), len(unit.indices)
    inner = reading.gram / n**2
    carried = np.sum([t[1 + len(plan.terms) :].sum(axis=1) for t in reading.tables], axis=0)
    carriers = [t for t in range(len(plan.terms)) if carried[t] > 0]
    names = [plan.capabilities[t] for t in carriers]
    anchors = _anchors(plan, unit)
    shares = [float(carried[t]) / n for t in carriers]
    pooled = telemetry.pool(_cut(inner, _rows(unit, anchors, carriers)), len(carriers))
    weights, memory = method.weigh(memory, torch.from_numpy(pooled), names, shares)

    rows = _rows(unit, anchors, [t for t in carriers if weights.teachers[plan.capabilities[t]]])
    diagonal = np.array([weights.ce] * len(anchors) + [weights.teachers[t] for t in weights.active])
    weighted = diagonal[:, None] * _cut(inner, rows) * diagonal
    owners = tuple(unit.groups[k] for k in anchors) if unit.groups else ()
    solution, logged = _combined(plan, method, weighted, owners, weights.active, place)
    a = np.zeros(len(unit.slots))
    a[rows] = solution.coefficients * diagonal / n
    logged |= {f"lambda/{name}": weights.teachers[name] for name in weights.active}
    logged |= {f"weak/{name}": 1.0 for name in weights.weak}
    kept: refresh.Kept = {}
    if plan.recipe.combine.refresh > 1:
        logged["grad/exact"] = 1.0
        kept = _kept(plan, unit, rows, solution.coefficients.tolist(), diagonal.tolist())
    return Solved(gradients.combination(unit, reading, a), logged, reading.tables, memory, kept)


def _combined(
    plan: Plan,
    method: Method,
    gram: Matrix,
    anchors: tuple[str, ...],
    teachers: tuple[str, ...],
    place: Place,
) -> tuple[Solution, dict[str, float]]:
    """Solve the unit once; `anchors`: capabilities with a cross-entropy of their own, if any."""
    drawn = projection_order(plan.recipe.seed, place, len(method.ordered))
    if anchors:
        present = [name for name in method.ordered if name in {*anchors, *teachers}]
        solution = solve_grouped(
            gram,
            [present.index(name) for name in anchors],
            [present.index(name) for name in teachers],
            restrict(method.ordered, present, drawn),
        )
        return solution, telemetry.telemetry(solution, teachers, anchors, present)
    active: list[str | None] = [None, *teachers] if None in method.ordered else list(teachers)
    order = restrict(method.ordered, active, drawn)
    solution = method.solver(gram, order, plan.recipe.combine.ce_count)
    return solution, telemetry.telemetry(solution, teachers)


def restrict(
    known: Sequence[str | None], present: Sequence[str | None], drawn: Sequence[int]
) -> list[int]:
    """Cut an order of all that is known down to what is present: the absent move nothing."""
    return [present.index(known[i]) for i in drawn if known[i] in present]


def reuse(plan: Plan, unit: Unit, kept: refresh.Kept) -> Solved:
    """U = (1/N) ∇ Σ_k a_k D_k Σ_b … of a unit whose only gradient is that of this sum [ours].

    Raises:
        RuntimeError: a loss or the gradient is not finite.
    """
    reading = _checked(plan, unit)
    mean = np.zeros(len(unit.slots))
    mean[0] = 1 / len(unit.indices)
    update = gradients.combination(unit, reading, mean)
    return Solved(update, refresh.logged(kept), reading.tables, {}, refresh.aged(kept))


def factors(
    plan: Plan, unit: Unit, kept: refresh.Kept, indices: Sequence[int]
) -> list[float] | None:
    """Factors of the unit's losses by kept coefficients; None where the unit must be exact."""
    every = plan.recipe.combine.refresh
    return refresh.kept_factors(kept, every, _present(plan, unit, indices)) if every > 1 else None


def _kept(
    plan: Plan, unit: Unit, rows: Sequence[int], a: Sequence[float], diagonal: Sequence[float]
) -> refresh.Kept:
    names = gradients.names(unit, plan)
    return refresh.keep(
        _present(plan, unit, unit.indices),
        {names[row]: value for row, value in zip(rows, a, strict=True)},
        {names[row]: value for row, value in zip(rows, diagonal, strict=True)},
    )


def _present(plan: Plan, unit: Unit, indices: Sequence[int]) -> dict[str, bool]:
    found = gradients.members(unit, plan, indices)
    return dict(zip(gradients.names(unit, plan), found, strict=True))


def _checked(plan: Plan, unit: Unit) -> Reading:
    """The numbers of a unit, all of them finite."""
    reading = gradients.read(unit, plan)
    for (indices, _), table in zip(unit.batches, reading.tables, strict=True):
        objective.check_finite(plan, indices, table)
    if not np.isfinite(reading.gram).all():
        raise RuntimeError(
            "a gradient is not a finite number although its loss is; nothing was updated. Lower "
            "train.learning_rate or set train.max_grad_norm"
        )
    return reading


def _anchors(plan: Plan, unit: Unit) -> list[int]:
    """Rows of the cross-entropy that have samples in the unit."""
    found = gradients.members(unit, plan, unit.indices)
    return [k for k in range(max(1, len(unit.groups))) if found[k]]


def _rows(unit: Unit, anchors: Sequence[int], teachers: Sequence[int]) -> list[int]:
    return [*anchors, *(max(1, len(unit.groups)) + t for t in teachers)]


def _cut(gram: Matrix, rows: Sequence[int]) -> Matrix:
    return gram[np.ix_(rows, rows)]
