"""From the gradients of one unit to one update: Gram matrix, weights λ, coefficients, sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from drivekd.distill import combination, gradients, objective
from drivekd.distill.combination import Problem
from drivekd.distill.gradients import Reading, Unit
from drivekd.distill.order import projection_order
from drivekd.distill.plan import Plan
from drivekd.method.combine import refresh, weighting
from drivekd.recipe import Recipe

Place = tuple[int, int]
"""Number of the optimizer step, and of the unit within it."""


@dataclass(frozen=True)
class Method:
    """What a recipe chose, made once before the loop: how λ is set, how gradients are combined."""

    weigh: weighting.Weigh
    combine: combination.Combination


def method_of(recipe: Recipe, groups: tuple[str, ...]) -> Method:
    """The weighting and the combiner that a recipe asks for; `groups` as in `Unit`."""
    return Method(_weighting_of(recipe), combination.combination_of(recipe, groups))


def _weighting_of(recipe: Recipe) -> weighting.Weigh:
    part = recipe.weighting
    if part.mode == "grad_norm":
        rho = {name: capability.rho for name, capability in recipe.capabilities.items()}
        return weighting.grad_norm(rho, w_ce=part.w_ce, decay=part.decay, cap=part.cap)
    static = weighting.fixed if part.mode == "fixed" else weighting.online
    return static(part.fixed, w_ce=part.w_ce)


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
    inner = reading.grams / n**2
    carried = np.sum([t[1 + len(plan.terms) :].sum(axis=1) for t in reading.tables], axis=0)
    carriers = [t for t in range(len(plan.terms)) if carried[t] > 0]
    names = [plan.capabilities[t] for t in carriers]
    anchors = _anchors(plan, unit)
    shares = [float(carried[t]) / n for t in carriers]
    whole = _cut(inner.sum(axis=0)[None], _rows(unit, anchors, carriers))[0]
    pooled = torch.from_numpy(combination.pool(whole, len(carriers)))
    weights, memory = method.weigh(memory, pooled, names, shares)

    rows = _rows(unit, anchors, [t for t in carriers if weights.teachers[plan.capabilities[t]]])
    diagonal = np.array([weights.ce] * len(anchors) + [weights.teachers[t] for t in weights.active])
    problem = Problem(
        diagonal[:, None] * _cut(inner, rows) * diagonal,
        reading.reached[:, rows],
        tuple(unit.groups[k] for k in anchors) if unit.groups else (),
        tuple(weights.active),
    )
    found = method.combine(problem, lambda count: projection_order(plan.recipe.seed, place, count))
    a = np.zeros((len(reading.patterns), len(unit.slots)))
    a[:, rows] = found.coefficients * diagonal / n
    logged = found.logged | {f"lambda/{name}": weights.teachers[name] for name in weights.active}
    logged |= {f"weak/{name}": 1.0 for name in weights.weak}
    kept: refresh.Kept = {}
    if plan.recipe.combine.refresh > 1:
        logged["grad/exact"] = 1.0
        kept = _kept(plan, unit, rows, found.coefficients[0].tolist(), diagonal.tolist())
    return Solved(gradients.combination(unit, reading, a), logged, reading.tables, memory, kept)


def reuse(plan: Plan, unit: Unit, kept: refresh.Kept) -> Solved:
    """U = (1/N) ∇ Σ_k a_k D_k Σ_b … of a unit whose only gradient is that of this sum [ours].

    Raises:
        RuntimeError: a loss or the gradient is not finite.
    """
    reading = _checked(plan, unit)
    mean = np.zeros((len(reading.patterns), len(unit.slots)))
    mean[:, 0] = 1 / len(unit.indices)
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
    if not np.isfinite(reading.grams).all():
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


def _cut(grams: NDArray[np.float64], rows: Sequence[int]) -> NDArray[np.float64]:
    return grams[:, rows][:, :, rows]
