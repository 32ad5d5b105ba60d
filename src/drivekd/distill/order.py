"""In which order a run sees its data, and every random draw of it, as pure functions of a seed.

Nothing here keeps a state: the permutation of an epoch follows from `(seed, "data", epoch)` and
the projection order of an optimizer step from `(seed, "projection", step)`. A resumed run draws
what the uninterrupted one would have drawn, and switching one thing never moves another's draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drivekd.data.sample import Sample
from drivekd.models.batch import Row

POOL = 50
"""Windows among which rows of like length are brought together, at most a quarter of an epoch's."""


def stream(seed: int, name: str, *counters: int) -> np.random.Generator:
    """The random stream `name` of a run, at the place given by counters (epoch, step, …).

    Streams of different names or counters are independent. [ours]
    """
    word = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.default_rng(np.random.SeedSequence([seed, word, *counters]))


def select(
    samples: Sequence[Sample], *, seed: int, max_scenes: int | None, max_samples: int | None
) -> list[Sample]:
    """A seed's draw of scenes and then of samples, in the order of the file.

    [ours] A sample without a scene token counts as a scene by its frame, or else by its pictures.
    """
    kept = list(samples)
    if max_scenes is not None:
        scenes = sorted({scene_of(sample) for sample in kept})
        drawn = stream(seed, "scenes").permutation(len(scenes))[:max_scenes]
        chosen = {scenes[i] for i in drawn}
        kept = [sample for sample in kept if scene_of(sample) in chosen]
    if max_samples is not None and len(kept) > max_samples:
        places = stream(seed, "samples").permutation(len(kept))[:max_samples]
        kept = [kept[i] for i in sorted(places)]
    return kept


def scene_of(sample: Sample) -> str:
    """What a sample counts as a scene by: its token, its frame, or else its pictures."""
    return sample.scene or sample.frame or "|".join(str(path) for path in sample.images.values())


@dataclass(frozen=True)
class Portion:
    """The rows of one capability, and how much of an epoch goes to them.

    Attributes:
        name: of the capability.
        rows: their numbers.
        visits: of an epoch.
    """

    name: str
    rows: tuple[int, ...]
    visits: int


def portions(owners: Sequence[str | None], shares: Mapping[str, float]) -> tuple[Portion, ...]:
    """Divide an epoch, which has as many visits as there are rows, by shares.

    [ours] Of N visits capability c gets N·s_c / Σ s, cut down; what is left of N goes, one each, to
    the largest remainders, of equal ones to the first by name.

    Args:
        owners: capability of each row.
        shares: of each of these capabilities, in any scale.

    Raises:
        ValueError: a share has no row, or is less than one visit.
    """
    names, total, N = sorted(shares), sum(shares.values()), len(owners)
    exact = [N * shares[name] / total for name in names]
    visits = [int(each) for each in exact]
    by_rest = sorted(range(len(names)), key=lambda k: visits[k] - exact[k])
    for k in by_rest[: N - sum(visits)]:
        visits[k] += 1
    found = []
    for name, count in zip(names, visits, strict=True):
        rows = tuple(place for place, owner in enumerate(owners) if owner == name)
        if not rows or not count:
            fault = f"is less than one of {N} rows" if rows else "no training sample has it"
            raise ValueError(
                f"data.mixture.{name}: {shares[name]:g} of {total:g}: {fault}; there are "
                f"{', '.join(sorted(set(map(str, owners))))}. Change the share, or leave it out"
            )
        found.append(Portion(name, rows, count))
    return tuple(found)


@dataclass(frozen=True)
class Order:
    """The order of a whole run.

    Attributes:
        rows: the samples of every row; the row is what a batch counts.
        seed: of the run.
        rows_per_batch: rows of one forward pass.
        batches_per_step: forward passes of each process between two optimizer steps.
        questions_per_row: at most so many samples of a row per visit, drawn anew each time.
        processes: that train together, see parallel.py.
        portions: of an epoch, by capability; none: every row is visited once.
        sizes: of each sample, tokens that it shares with its row and tokens of its own.
        by_length: rows of like length meet in a window.
        ordered: how many things each projection takes in a random order.
        by_batch: each batch is projected by itself.
    """

    rows: tuple[Row, ...]
    seed: int
    rows_per_batch: int
    batches_per_step: int
    questions_per_row: int | None = None
    processes: int = 1
    portions: tuple[Portion, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    by_length: bool = False
    ordered: int = 0
    by_batch: bool = False

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimizer step, over all processes."""
        return self.rows_per_batch * self.batches_per_step * self.processes

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the rows; the last one may be short."""
        return -(-len(self.rows) // self.rows_per_step)


@dataclass(frozen=True)
class Window:
    """What one optimizer step sees.

    Attributes:
        step: 0-based number of the optimizer step.
        epoch: passes over the data completed once the step is done, as a fraction.
        batches: the rows of each forward pass of any process. Process r of n runs the batches r,
            r + n, r + 2n, …: so a short window leaves out as few processes as it can.
        seeds: of dropout, one per process.
        orders: of each unit (the window, or each batch) the random order for its projection.
    """

    step: int
    epoch: float
    batches: tuple[tuple[Row, ...], ...]
    seeds: tuple[int, ...]
    orders: tuple[tuple[int, ...], ...]


def windows(order: Order, start: int, stop: int) -> Iterator[Window]:
    """The optimizer steps `start … stop-1`.

    Epochs never share a step, so the last window of an epoch may be short; no visit is dropped.
    Rows are cut into windows before windows are cut into batches: 1 × 8 and 8 × 1 see the same, and
    two processes with one batch each what one process with two batches sees.
    """
    per_window = order.rows_per_step
    epoch, visits = -1, []
    for step in range(start, stop):
        if step // order.steps_per_epoch != epoch:
            epoch = step // order.steps_per_epoch
            visits = _visits(order, epoch)
        place = step - epoch * order.steps_per_epoch
        window = visits[place * per_window : (place + 1) * per_window]
        batches = tuple(map(tuple, _cut(window, order.rows_per_batch)))
        units, ranks = range(len(batches) if order.by_batch else 1), range(order.processes)
        yield Window(
            step,
            epoch + (place + 1) / order.steps_per_epoch,
            batches,
            tuple(int(stream(order.seed, "dropout", step, r).integers(2**63)) for r in ranks),
            tuple(projection_order(order.seed, (step, unit), order.ordered) for unit in units),
        )


def _cut(rows: Sequence[Row], size: int) -> list[Sequence[Row]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _visits(order: Order, epoch: int) -> list[Row]:
    """Every row once, or as often as its portion has visits; each with the questions of this one.

    Shuffled, and then by length where asked for.
    """
    if order.portions:
        places = _mixed(order, epoch)
    else:
        places = stream(order.seed, "data", epoch).permutation(len(order.rows)).tolist()
    visits = [_questions(order, epoch, place) for place in places]
    return _alike(order, epoch, visits) if order.by_length else visits


def _mixed(order: Order, epoch: int) -> list[int]:
    """The rows that an epoch visits: whose turn it is, and which of theirs comes next."""
    drawn = [_drawn(order, portion, epoch) for portion in order.portions]
    turns = np.repeat(np.arange(len(drawn)), [portion.visits for portion in order.portions])
    return [next(drawn[k]) for k in stream(order.seed, "mixture", epoch).permutation(turns)]


def _drawn(order: Order, portion: Portion, epoch: int) -> Iterator[int]:
    """Rows of a portion: all of them in random order, then again; epochs go on where one ended."""
    shuffled: list[int] = []
    for visit in range(epoch * portion.visits, (epoch + 1) * portion.visits):
        turn, place = divmod(visit, len(portion.rows))
        if place == 0 or not shuffled:
            draw = stream(order.seed, f"mixture of {portion.name}", turn)
            shuffled = draw.permutation(portion.rows).tolist()
        yield shuffled[place]


def _alike(order: Order, epoch: int, visits: list[Row]) -> list[Row]:
    """The same visits with rows of like length in one window.

    [ours] As transformers' sampler does: shuffled rows are sorted by length within pools, and the
    longest comes first, so that memory runs out at once or never. Besides, the windows are
    shuffled: the lengths of a pool would fall from step to step, and the kinds of questions with
    them. A short window stays the last, of rows that were sorted with others.
    """
    size = order.rows_per_step
    pools = _cut(visits, size * max(1, min(POOL, len(visits) // (4 * size))))
    if len(pools) > 1 and len(pools[-1]) < size:
        pools[-2:] = [[*pools[-2], *pools[-1]]]
    sorted_ = [row for pool in pools for row in sorted(pool, key=lambda row: -length(order, row))]
    windows = _cut(sorted_, size)
    short = [windows.pop()] if len(windows[-1]) < size else []
    places = stream(order.seed, "lengths", epoch).permutation(len(windows)).tolist()
    longest = max(places, key=lambda place: length(order, windows[place][0]), default=None)
    places.sort(key=lambda place: place != longest)
    return [row for window in (*(windows[k] for k in places), *short) for row in window]


def length(order: Order, row: Row) -> int:
    """Tokens of a row: the shared ones once."""
    return order.sizes[row[0]][0] + sum(order.sizes[index][1] for index in row)


def padding(order: Order) -> float:
    """The share of positions of the first epoch's batches that are padding."""
    used = positions = 0
    for window in _cut(_visits(order, 0), order.rows_per_step):
        for batch in _cut(window, order.rows_per_batch):
            lengths = [length(order, row) for row in batch]
            used += sum(lengths)
            positions += len(lengths) * max(lengths)
    return 1 - used / positions


def _questions(order: Order, epoch: int, place: int) -> Row:
    row, limit = order.rows[place], order.questions_per_row
    if limit is None or len(row) <= limit:
        return row
    drawn = stream(order.seed, "questions", epoch, place).permutation(len(row))[:limit]
    return tuple(row[i] for i in sorted(drawn))


def projection_order(seed: int, unit: tuple[int, int], count: int) -> tuple[int, ...]:
    """Draw a random order of `count` things for one unit (optimizer step, batch within it).

    [paper] A stream of its own, so that switching a combiner does not move the data order.
    """
    return tuple(stream(seed, "projection", *unit).permutation(count).tolist())
