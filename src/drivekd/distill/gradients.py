"""The gradients of one unit: collected batch by batch, read by the host once, then combined.

The unit is what one projection sees: all batches between two optimizer steps, or one batch. Its
rows are flat vectors, the cross-entropy's first (`agp_grouped` has one for each capability of the
samples), then one per teacher. A loss that reaches one layer writes to that layer's part only, and
nobody reads the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from drivekd.distill.objective import Losses
from drivekd.distill.processes import parallel, sharding
from drivekd.distill.processes.parallel import ALONE, Ranks
from drivekd.distill.processes.sharding import Shards
from drivekd.method.combine import projection


@dataclass(frozen=True)
class Unit:
    """Gradients of sums over the samples of one unit.

    Attributes:
        groups: capabilities whose cross-entropy has a row of its own; () = one row for all.
        gradients: of Σ CE_b (of each group), then of each Σ Π L_{t,b}; flat, tied parameters once,
            in the parameters' dtype. What is not `reached` is left over from earlier units.
        slots: views of `gradients`, per row and parameter.
        reached: which rows have a gradient of which parameters [rows, parameters].
        batches: of each batch the indices of its samples and its `Losses.table`, still on the
            device.
    """

    groups: tuple[str, ...]
    gradients: Float[Tensor, "rows P"]
    slots: tuple[tuple[Tensor, ...], ...]
    reached: NDArray[np.bool_]
    batches: list[tuple[tuple[int, ...], Tensor]] = field(default_factory=list)

    @property
    def indices(self) -> list[int]:
        """The samples seen so far."""
        return [index for indices, _ in self.batches for index in indices]


def new_unit(parameters: Sequence[nn.Parameter], rows: int, groups: tuple[str, ...]) -> Unit:
    """Make room for one gradient per row, once per run."""
    first = parameters[0]
    size = sum(parameter.numel() for parameter in parameters)
    gradients = torch.zeros(rows, size, device=first.device, dtype=first.dtype)
    slots = tuple(views(row, parameters) for row in gradients)
    return Unit(groups, gradients, slots, np.zeros((rows, len(parameters)), dtype=bool))


def views(flat: Float[Tensor, " P"], parameters: Sequence[nn.Parameter]) -> tuple[Tensor, ...]:
    """A flat vector as one tensor per parameter, sharing its memory."""
    parts = torch.split(flat, [parameter.numel() for parameter in parameters])
    return tuple(part.view_as(p) for part, p in zip(parts, parameters, strict=True))


def clear(unit: Unit) -> None:
    """Empty a unit for the next one; not with zeros, the first gradient overwrites."""
    unit.reached[:] = False
    unit.batches.clear()


def accumulate(
    unit: Unit,
    parameters: Sequence[nn.Parameter],
    losses: Losses,
    indices: Sequence[int],
    possible: Sequence[bool],
    factors: Sequence[float] | None = None,
    shards: Shards | None = None,
) -> None:
    """Add the gradients of one batch: one backward pass per loss over one graph.

    Args:
        unit: receives them.
        parameters: the trained ones, or this process's pieces of them.
        losses: of the batch; call this while their block is open.
        indices: the samples of the batch; none where it is another process's, see sharding.turns.
        possible: the rows that these samples, or with pieces those of any process, can have a
            gradient in: the others are not differentiated.
        factors: one per row: a single backward pass of the sum with these factors, into the first
            row; None: one pass per row.
        shards: the student's.
    """
    sums = losses.sums(unit.groups, possible)
    if not indices:
        sums = [None if total is None else 0.0 * total for total in sums]
    if factors is not None:
        pairs = [(a, total) for a, total in zip(factors, sums, strict=True) if total is not None]
        terms = [a * total for a, total in pairs if a] or [a * total for a, total in pairs]
        sums = [torch.stack(terms).sum()]
    last = max(k for k, total in enumerate(sums) if total is not None)
    for k, total in enumerate(sums):
        if total is not None:
            _add(unit, k, _gradient(shards, total, parameters, last=k == last))
    if indices:
        unit.batches.append((tuple(indices), losses.table()))


def _gradient(
    shards: Shards | None, total: Tensor, parameters: Sequence[nn.Parameter], *, last: bool
) -> Sequence[Tensor | None]:
    """The gradient of one loss; None for parameters that it does not reach."""
    if shards is None:
        return torch.autograd.grad(total, parameters, retain_graph=not last, allow_unused=True)
    return sharding.gradients(shards, total, last=last)


def _add(unit: Unit, row: int, gradients: Sequence[Tensor | None]) -> None:
    for p, (slot, gradient) in enumerate(zip(unit.slots[row], gradients, strict=True)):
        if gradient is not None:
            if unit.reached[row, p]:
                slot.add_(gradient)
            else:
                slot.copy_(gradient)
            unit.reached[row, p] = True


def exchange(
    unit: Unit, terms: int, ranks: Ranks, shards: Shards | None, batches: Sequence[Sequence[int]]
) -> None:
    """Make of this process's share of a unit the whole unit, the same in all processes [ours].

    Gradients are summed before anything is made of them: the inner product of sums is not the sum
    of inner products. A loss that is absent here counts as zero. A student in pieces has summed
    gradients already.

    Args:
        unit: holds this process's batches, and receives the sums and the losses of all.
        terms: how many there are.
        ranks: the processes.
        shards: the student's.
        batches: all batches of the unit, see `Window.batches`.
    """
    sizes = [len(batch) for batch in batches]
    shape = (1 + 2 * terms, sum(sizes))
    numbers = torch.zeros(shape, device=unit.gradients.device, dtype=torch.float64)
    tables = numbers.split(sizes, dim=1)
    for table, (_, mine) in zip(ranks.share(tables), unit.batches, strict=True):
        table.copy_(mine)
    counts = torch.from_numpy(unit.reached).to(numbers)
    parallel.sum_(ranks, [numbers, counts])
    reached = counts.cpu().numpy() > 0
    if shards is None:
        _sum_rows(unit, ranks, reached)
    unit.reached[:] = reached
    unit.batches[:] = [(tuple(b), table) for b, table in zip(batches, tables, strict=True)]


def _sum_rows(unit: Unit, ranks: Ranks, reached: NDArray[np.bool_]) -> None:
    """Sum each row over processes, from the first to the last parameter that any of them reach."""
    stops = list(itertools.accumulate(slot.numel() for slot in unit.slots[0]))
    for row, slots, here, anywhere in zip(
        unit.gradients, unit.slots, unit.reached, reached, strict=True
    ):
        places = np.flatnonzero(anywhere).tolist()
        if places:
            for place in range(places[0], places[-1] + 1):
                if not here[place]:
                    slots[place].zero_()  # what an earlier unit left
            start = stops[places[0]] - slots[places[0]].numel()
            parallel.sum_(ranks, [row[start : stops[places[-1]]]])


@dataclass(frozen=True)
class Stretch:
    """Neighbouring entries of the flat vectors that the same rows reach."""

    start: int
    stop: int
    rows: tuple[int, ...]


def stretches(unit: Unit) -> tuple[Stretch, ...]:
    """Cut the flat vectors where the rows that reach a parameter change; leave out what none do."""
    sizes = [slot.numel() for slot in unit.slots[0]]
    stops = list(itertools.accumulate(sizes))
    found = []
    patterns = (tuple(np.flatnonzero(column).tolist()) for column in unit.reached.T)
    for rows, group in itertools.groupby(enumerate(patterns), key=lambda pair: pair[1]):
        places = [place for place, _ in group]
        if rows:
            found.append(Stretch(stops[places[0]] - sizes[places[0]], stops[places[-1]], rows))
    return tuple(found)


@dataclass(frozen=True)
class Reading:
    """What the host learns of a unit.

    Attributes:
        gram: inner products of the sums' gradients, in float64 [rows, rows].
        tables: `Losses.table` of each batch.
        stretches: of the flat vectors.
    """

    gram: NDArray[np.float64]
    tables: tuple[NDArray[np.float64], ...]
    stretches: tuple[Stretch, ...]


def read(unit: Unit, ranks: Ranks = ALONE, shards: Shards | None = None) -> Reading:
    """Fetch Gram matrix and losses, the unit's only transfer from device to host [ours].

    Rows that do not reach a parameter are zero there and are not multiplied. All processes go by
    the numbers of the first.
    """
    cut = stretches(unit)
    parts = [
        projection.gram([unit.gradients[row, each.start : each.stop] for row in each.rows])
        for each in cut
    ]
    tensors = [*parts, *(table for _, table in unit.batches)]
    if shards is not None:  # the inner product of pieces is a piece of the inner product
        parallel.sum_(ranks, parts)
    joined = torch.cat([tensor.flatten() for tensor in tensors])
    if ranks.size > 1:
        parallel.of_first(ranks, joined)
    numbers = joined.cpu().numpy()
    cuts = np.split(numbers, np.cumsum([tensor.numel() for tensor in tensors])[:-1])
    shaped = [cut.reshape(tensor.shape) for cut, tensor in zip(cuts, tensors, strict=True)]
    gram = np.zeros((len(unit.slots), len(unit.slots)))
    for each, part in zip(cut, shaped, strict=False):
        gram[np.ix_(each.rows, each.rows)] += part
    return Reading(gram, tuple(shaped[len(parts) :]), cut)


def combination(
    unit: Unit, reading: Reading, coefficients: NDArray[np.float64]
) -> Float[Tensor, " P"]:
    """Sum U = Σ_k a_k g_k over all rows [rows]."""
    update = torch.zeros_like(unit.gradients[0])
    used = [[row for row in each.rows if coefficients[row]] for each in reading.stretches]
    joined = torch.from_numpy(np.concatenate([coefficients[rows] for rows in used]))
    parts = joined.to(update.device).split([len(rows) for rows in used])
    for each, rows, a in zip(reading.stretches, used, parts, strict=True):
        if rows:
            block = [unit.gradients[row, each.start : each.stop] for row in rows]
            projection.linear_combination(block, a, update[each.start : each.stop])
    return update
