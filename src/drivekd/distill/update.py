"""From the gradients of one unit to one update: Gram matrix, weights λ, coefficients, sum.

The unit is what one projection sees: all batches between two optimizer steps, or one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drivekd.distill import projection, weighting
from drivekd.distill.objective import Losses
from drivekd.distill.order import projection_order
from drivekd.distill.plan import Plan
from drivekd.recipe import Recipe

Place = tuple[int, int]
"""Number of the optimizer step, and of the unit within it."""


@dataclass(frozen=True)
class Unit:
    """Sums over the samples of one unit, filled batch by batch.

    Attributes:
        gradients: of Σ CE_b and of each Σ Π L_{t,b}, flat, tied parameters once, zeros where a
            loss does not reach.
        slots: views of `gradients`, per loss and parameter.
        carried: Σ_b Π[c_b,t] over the samples that have term t.
    """

    gradients: Float[Tensor, "losses P"]
    slots: tuple[tuple[Tensor, ...], ...]
    carried: list[float]
    samples: list[int] = field(default_factory=lambda: [0])


def new_unit(parameters: Sequence[nn.Parameter], capabilities: int) -> Unit:
    """Room for the gradients of 1 + K losses, made once per run."""
    sizes = [parameter.numel() for parameter in parameters]
    gradients = torch.zeros(1 + capabilities, sum(sizes), device=parameters[0].device)
    slots = tuple(views(row, parameters) for row in gradients)
    return Unit(gradients, slots, [0.0] * capabilities)


def views(flat: Float[Tensor, " P"], parameters: Sequence[nn.Parameter]) -> tuple[Tensor, ...]:
    """A flat vector as one tensor per parameter, sharing its memory."""
    parts = torch.split(flat, [parameter.numel() for parameter in parameters])
    return tuple(part.view_as(p) for part, p in zip(parts, parameters, strict=True))


def clear(unit: Unit) -> None:
    """Empty a unit for the next one."""
    unit.gradients.zero_()
    unit.carried[:] = [0.0] * len(unit.carried)
    unit.samples[0] = 0


def accumulate(unit: Unit, losses: Losses, parameters: Sequence[nn.Parameter]) -> None:
    """Add the gradients of one batch: one backward pass per loss over one graph."""
    sums = losses.sums()
    last = max(k for k, total in enumerate(sums) if total is not None)
    for k, total in enumerate(sums):
        if total is not None:
            found = torch.autograd.grad(total, parameters, retain_graph=k < last, allow_unused=True)
            for slot, gradient in zip(unit.slots[k], found, strict=True):
                if gradient is not None:
                    slot.add_(gradient)
    unit.samples[0] += len(losses.answers)
    for t, carried in enumerate(losses.carried.sum(1).tolist()):
        unit.carried[t] += carried


def mean_gram(unit: Unit) -> Float[Tensor, "losses losses"]:
    """Ĝ: inner products of the mean gradients (1/N) Σ, before any weight, in float64 [ours].

    Raises:
        RuntimeError: a gradient is not finite.
    """
    inner = projection.gram(list(unit.gradients)) / unit.samples[0] ** 2
    if not bool(inner.isfinite().all()):
        raise RuntimeError(
            "a gradient is not a finite number although its loss is; nothing was updated. Lower "
            "train.learning_rate or set train.max_grad_norm"
        )
    return inner


@dataclass(frozen=True)
class Solved:
    """The update of one unit, what is logged about it, and what the weighting remembers."""

    update: Float[Tensor, " P"]
    logged: dict[str, float]
    memory: weighting.State


def weighting_of(recipe: Recipe) -> weighting.Weigh:
    """The weighting that a recipe asks for, made once before the loop."""
    part = recipe.weighting
    if part.mode == "grad_norm":
        rho = {name: capability.rho for name, capability in recipe.capabilities.items()}
        return weighting.grad_norm(rho, w_ce=part.w_ce, decay=part.decay, cap=part.cap)
    static = weighting.fixed if part.mode == "fixed" else weighting.online
    return static(part.fixed, w_ce=part.w_ce)


def solve(
    plan: Plan, unit: Unit, weigh: weighting.Weigh, memory: weighting.State, place: Place
) -> Solved:
    """Ĝ → λ → G = D Ĝ D → coefficients a → U = Σ_k a_k D_k ĝ_k, over the active teachers only.

    [paper, release] the projection; [ours] by the Gram matrix. A teacher is active if a sample of
    the unit carries it and its weight is not 0; the others are cut out of the matrix.

    Args:
        plan: names the combiner.
        unit: the gradients.
        weigh: sets λ.
        memory: what `weigh` remembers of earlier units.
        place: optimizer step and number of the unit within it, for the random order.

    Raises:
        RuntimeError: a gradient is not finite.
    """
    settings, n = plan.recipe.combine, unit.samples[0]
    carried = [t for t, total in enumerate(unit.carried) if total > 0]
    names = [plan.capabilities[t] for t in carried]
    inner = mean_gram(unit)
    weights, memory = weigh(
        memory, _cut(inner, carried), names, [unit.carried[t] / n for t in carried]
    )
    active = [t for t in carried if weights.teachers[plan.capabilities[t]] != 0]
    diagonal = [weights.ce, *(weights.teachers[name] for name in weights.active)]
    scaled = projection.rescale(_cut(inner, active), diagonal)
    order = _order(plan, settings.combiner, active, place)
    a = projection.combine(scaled, settings.combiner, order, settings.ce_count)
    factors = a * torch.tensor(diagonal, dtype=torch.float64) / n
    flat = projection.linear_combination([unit.gradients[k] for k in _rows(active)], factors)
    logged = projection.telemetry(
        scaled, weights.active, order, combiner=settings.combiner, ce_count=settings.ce_count
    )
    logged |= {f"lambda/{name}": weights.teachers[name] for name in weights.active}
    return Solved(flat, logged | {f"weak/{name}": 1.0 for name in weights.weak}, memory)


def _rows(teachers: Sequence[int]) -> list[int]:
    """Rows of the Gram matrix: the cross-entropy and these teachers."""
    return [0, *(1 + t for t in teachers)]


def _cut(inner: Tensor, teachers: Sequence[int]) -> Tensor:
    kept = _rows(teachers)
    return inner[kept][:, kept]


def _order(plan: Plan, combiner: str, active: Sequence[int], place: Place) -> list[int]:
    """The unit's random order, drawn over all teachers and restricted to the active ones."""
    whole = projection.order_length(combiner, len(plan.terms))
    kept = _rows(active) if whole > len(plan.terms) else active  # `pcgrad` orders the anchor too
    rank = {k: i for i, k in enumerate(kept)}
    drawn = projection_order(plan.recipe.seed, place, whole)
    return [rank[k] for k in drawn if k in rank]
