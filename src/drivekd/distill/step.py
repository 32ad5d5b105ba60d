"""One optimizer step, the method itself: a gradient per loss, one Gram matrix, one update.

All that a step reads was decided before the first one (plan.py), its random draws included: they
come with its window. Plain cross-entropy is the same step with no teachers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from drivekd.distill import gradients, out_of_memory, record
from drivekd.distill.gradients import Reading, Unit
from drivekd.distill.objective import batch_of, learn, losses
from drivekd.distill.order import Window
from drivekd.distill.plan import Plan, Schedule
from drivekd.distill.processes import parallel, sharding
from drivekd.distill.processes.parallel import ALONE, Ranks
from drivekd.distill.record import Combined
from drivekd.distill.run import Method, Run
from drivekd.distill.saving import log
from drivekd.distill.teachers import bridges
from drivekd.distill.teachers.teacher import Term
from drivekd.method.combine import projection, refresh, telemetry, weighting
from drivekd.method.combine.grouped import solve_grouped
from drivekd.method.combine.projection import Matrix
from drivekd.models.batch import Row, flat
from drivekd.recipe import Recipe


@dataclass(frozen=True)
class Left:
    """What the update of one unit leaves beside itself.

    Attributes:
        values: for the log.
        tables: the losses of each batch, on the host, see `Losses.table`.
        combined: how the gradients were combined; None with kept coefficients.
        memory: what the weighting remembers.
        kept: what steps with kept coefficients go by, see refresh.py; {} where there are none.
    """

    values: dict[str, float]
    tables: tuple[NDArray[np.float64], ...]
    combined: Combined | None = None
    memory: weighting.State = field(default_factory=dict)
    kept: refresh.Kept = field(default_factory=dict)


def step(run: Run, window: Window) -> None:
    """Take one optimizer step.

    [paper] For each unit: g_0 = ∇CE and g_t = ∇ of teacher t's attention loss; project; sum.
    [ours] K+1 sums, one gradient each, one Gram matrix, one linear combination. The unit is all
    batches of the step (granularity: step) or each of them (micro_batch; their updates are
    averaged by their number of samples). Several processes share the batches of a unit.
    """
    plan, models, ranks = run.plan, run.plan.models, run.plan.trained.ranks
    by_batch = plan.schedule.order.by_batch
    units = [[batch] for batch in window.batches] if by_batch else [list(window.batches)]
    total = len(flat(window.batches))
    torch.manual_seed(window.seeds[ranks.rank])
    run.update.zero_()
    if models.bridges.layers:
        bridges.clear(models.bridges)
    left = []
    for drawn, batches in zip(window.orders, units, strict=True):
        samples = flat(batches)
        factors = kept_factors(plan, run.kept, samples)
        _collect(run, window, batches, factors)
        with _located(plan, window, batches):
            if factors is None:
                update, one = solve(plan, run.unit, run.method, run.memory, drawn)
            else:
                update, one = reuse(plan, run.unit, run.kept)
        run.update.add_(update, alpha=len(samples) / total)
        run.memory.update(one.memory)
        run.kept.update(one.kept)
        left.append(one)
    with _located(plan, window, window.batches):
        norm = _apply(run, window)
    log.add(run.totals, "grad_norm", norm)
    for one in left:
        record.add_unit(run.totals, models.terms, one.tables, one.values, one.combined)


def _collect(
    run: Run, window: Window, batches: Sequence[Sequence[Row]], factors: Sequence[float] | None
) -> None:
    """Collect the gradients of one unit, from the batches of all processes."""
    plan, unit, shards = run.plan, run.unit, run.plan.models.shards
    trained = plan.trained
    beside = flat(batches) if shards else []
    turns = [(batch, True) for batch in batches]
    if trained.ranks.size > 1:
        turns = sharding.turns(shards, trained.ranks, batches)
    gradients.clear(unit)
    for rows, own in turns:
        with _located(plan, window, [rows]), losses(plan.models, batch_of(plan, rows)) as found:
            if own and plan.models.bridges.layers:
                learn(plan.models, found)
            mine = flat([rows]) if own else []
            possible = possible_rows(plan.schedule, [*mine, *beside])
            gradients.accumulate(unit, trained.parameters, found, mine, possible, factors, shards)
    if trained.ranks.size > 1:
        indices = [flat([rows]) for rows in batches]
        gradients.exchange(unit, len(plan.models.terms), trained.ranks, shards, indices)


def _apply(run: Run, window: Window) -> Tensor:
    """Clip the update and hand it to the optimizer; returns the norm that it had."""
    plan, models, ranks = run.plan, run.plan.models, run.plan.trained.ranks
    if models.bridges.layers:
        bridges.settle(models.bridges, ranks)
    if models.shards:
        sharding.let_go(models.shards)
    norm = clip(run.update, plan.recipe.train.max_grad_norm, ranks if models.shards else ALONE)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(plan.recipe, window.step, plan.schedule.total_steps)
    run.optimizer.step()
    return norm


@contextmanager
def _located(plan: Plan, window: Window, batches: Sequence[Sequence[Row]]) -> Iterator[None]:
    """Say in which step and on which samples something failed; no later step was begun."""
    try:
        yield
    except (ValueError, RuntimeError, MemoryError) as error:
        reason = (
            out_of_memory.of_a_batch(plan, batches) if out_of_memory.happened(error) else str(error)
        )
        ids = [plan.schedule.encoded[index].sample.id for index in flat(batches)]
        more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
        where = f"step {window.step + 1}, samples {', '.join(ids[:8])}{more}"
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        raise kind(f"{where}: {reason}") from error


def clip(
    flat: Float[Tensor, " P"], limit: float | None, holders: Ranks = ALONE
) -> Float[Tensor, ""]:
    """Scale an update down to a norm in place; returns the norm it had, on its device.

    The norm is summed in float64: in float32 it errs by 1e-6 for a mere 50,000 numbers.

    Args:
        flat: the update, or what this process holds of it.
        limit: the largest norm; None for any.
        holders: the processes among which it is spread.
    """
    square = projection.gram([flat])
    if holders.size > 1:
        parallel.sum_(holders, [square])
    norm = square[0, 0].sqrt()
    if limit is not None:
        flat.mul_((limit / norm).clamp(max=1.0))
    return norm


def learning_rate(recipe: Recipe, step: int, total_steps: int) -> float:
    """Compute the learning rate of a 0-based step: linear warm-up, then down to `lr_end`.

    [release] The cosine; [ours] its length follows from the data. A function of the step alone,
    so that a resumed run needs no state of a scheduler.
    """
    settings = recipe.train
    warmup = settings.warmup_steps or math.ceil(settings.warmup_ratio * total_steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    if settings.lr_scheduler_type == "constant":
        return settings.learning_rate
    through = min(1.0, (step - warmup) / max(1, total_steps - 1 - warmup))
    linear = settings.lr_scheduler_type == "linear"
    height = 1.0 - through if linear else 0.5 * (1.0 + math.cos(math.pi * through))
    return settings.learning_rate * (settings.lr_end + (1.0 - settings.lr_end) * height)


# ------------------------------------------------------------------------ from a unit to its update


def solve(
    plan: Plan, unit: Unit, method: Method, memory: weighting.State, drawn: Sequence[int]
) -> tuple[Float[Tensor, " P"], Left]:
    """Ĝ → λ → G = D Ĝ D → coefficients a → U = Σ_k a_k D_k ĝ_k, over the active teachers only.

    [paper, release] the projection; [ours] by the Gram matrix. A teacher is active if a sample of
    the unit carries it and its weight is not 0; the others are cut out of the matrix.

    Args:
        plan: of the run.
        unit: the gradients.
        method: sets λ and a.
        memory: what `method.weigh` remembers of earlier units.
        drawn: random order of `schedule.ordered`.

    Raises:
        RuntimeError: a loss or a gradient is not finite.
    """
    reading, n, terms = _checked(plan, unit), len(unit.indices), plan.models.terms
    K, A = len(terms), len(unit.slots) - len(terms)
    inner = reading.gram / n**2
    present = possible_rows(plan.schedule, unit.indices)
    anchors = [k for k in range(A) if present[k]]
    carried = np.sum([table[1 + K :].sum(axis=1) for table in reading.tables], axis=0)
    carriers = np.flatnonzero(carried > 0).tolist()
    names, shares = [terms[t].capability for t in carriers], (carried[carriers] / n).tolist()
    pooled = _cut(inner, [*anchors, *(A + t for t in carriers)])
    if len(anchors) > 1:
        pooled = telemetry.pool(pooled, len(carriers))
    weights, memory = method.weigh(memory, torch.from_numpy(pooled), names, shares)

    rows = [*anchors, *(A + t for t in carriers if weights.teachers[terms[t].capability] != 0)]
    active = [name for name in names if weights.teachers[name] != 0]
    diagonal = np.array([weights.ce] * len(anchors) + [weights.teachers[name] for name in active])
    weighted = diagonal[:, None] * _cut(inner, rows) * diagonal
    owners = [unit.groups[k] for k in anchors] if unit.groups else []
    combined = _combine(plan, method, weighted, owners, active, drawn)
    a = np.zeros(len(unit.slots))
    a[rows] = combined.solution.coefficients * diagonal / n
    values = {f"lambda/{name}": weights.teachers[name] for name in active}
    values |= {f"weak/{name}": 1.0 for name in weights.weak}
    kept: refresh.Kept = {}
    if plan.recipe.combine.refresh > 1:
        values["grad/exact"] = 1.0
        labels = [plan.schedule.rows[row] for row in rows]
        kept = refresh.keep(
            dict(zip(plan.schedule.rows, present, strict=True)),
            dict(zip(labels, combined.solution.coefficients.tolist(), strict=True)),
            dict(zip(labels, diagonal.tolist(), strict=True)),
        )
    update = gradients.combination(unit, reading, a)
    return update, Left(values, reading.tables, combined, memory, kept)


def _combine(
    plan: Plan,
    method: Method,
    gram: Matrix,
    anchors: Sequence[str],
    teachers: Sequence[str],
    drawn: Sequence[int],
) -> Combined:
    """Solve the unit; `anchors`: capabilities with a cross-entropy of their own, if any."""
    known = plan.schedule.ordered
    if anchors:
        present = [str(name) for name in known if name in {*anchors, *teachers}]
        solution = solve_grouped(
            gram,
            [present.index(name) for name in anchors],
            [present.index(name) for name in teachers],
            _restricted(known, present, drawn),
        )
        return Combined(solution, teachers, anchors, present)
    order = _restricted(known, [*([None] if None in known else ()), *teachers], drawn)
    solution = method.solver(gram, order, plan.recipe.combine.ce_count)
    return Combined(solution, teachers, ("ce",), teachers)


def _restricted(
    known: Sequence[str | None], present: Sequence[str | None], drawn: Sequence[int]
) -> list[int]:
    """Cut an order of all that is known down to what is present: the absent move nothing."""
    return [present.index(known[i]) for i in drawn if known[i] in present]


def possible_rows(schedule: Schedule, samples: Sequence[int]) -> list[bool]:
    """Which rows these samples can have a gradient in, by the data alone."""
    flags: list[bool] = np.logical_or.reduce(schedule.carriers[list(samples)], axis=0).tolist()
    return flags


def kept_factors(plan: Plan, kept: refresh.Kept, samples: Sequence[int]) -> list[float] | None:
    """Factors of the unit's losses by kept coefficients; None where the unit must be exact."""
    every, schedule = plan.recipe.combine.refresh, plan.schedule
    if every == 1:
        return None
    present = possible_rows(schedule, samples)
    return refresh.kept_factors(kept, every, dict(zip(schedule.rows, present, strict=True)))


def reuse(plan: Plan, unit: Unit, kept: refresh.Kept) -> tuple[Float[Tensor, " P"], Left]:
    """U = (1/N) ∇ Σ_k a_k D_k Σ_b … of a unit whose only gradient is that of this sum [ours]."""
    reading, mean = _checked(plan, unit), np.zeros(len(unit.slots))
    mean[0] = 1 / len(unit.indices)
    left = Left(refresh.logged(kept), reading.tables, kept=refresh.aged(kept))
    return gradients.combination(unit, reading, mean), left


def _cut(gram: Matrix, rows: Sequence[int]) -> Matrix:
    return gram[np.ix_(rows, rows)]


def _checked(plan: Plan, unit: Unit) -> Reading:
    """Read the numbers of a unit, and refuse them if any is not finite."""
    reading = gradients.read(unit, plan.trained.ranks, plan.models.shards)
    terms = plan.models.terms
    for (indices, _), table in zip(unit.batches, reading.tables, strict=True):
        if not np.isfinite(table[: 1 + len(terms)]).all():
            ids = [plan.schedule.encoded[index].sample.id for index in indices]
            raise RuntimeError(not_finite(terms, ids, table))
    if not np.isfinite(reading.gram).all():
        raise RuntimeError(
            "a gradient is not a finite number although its loss is; nothing was updated. Lower "
            "train.learning_rate or set train.max_grad_norm"
        )
    return reading


def not_finite(terms: Sequence[Term], ids: Sequence[str], table: NDArray[np.float64]) -> str:
    """Name the losses and samples of a table that are no numbers."""
    bad, samples = np.nonzero(~np.isfinite(table[: 1 + len(terms)]))
    names = ("ce", *(record.loss_name(term) for term in terms))
    which = ", ".join(names[k] for k in sorted(set(bad.tolist())))
    where = ", ".join([ids[s] for s in sorted(set(samples.tolist()))][:5])
    return (
        f"the loss {which} of samples {where} is not a finite number; lower train.learning_rate "
        "or look at these samples"
    )
