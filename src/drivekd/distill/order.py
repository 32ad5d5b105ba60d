"""In which order a run sees its data, and every random draw of it, as pure functions of a seed.

Nothing here keeps a state: the permutation of an epoch follows from `(seed, "data", epoch)` and
the projection order of an optimizer step from `(seed, "projection", step)`. A resumed run draws
what the uninterrupted one would have drawn, and switching one thing never moves another's draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from drivekd.data.sample import Sample

Row = tuple[int, ...]
"""Indices of the samples that share one row of a batch."""


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


def group_rows(keys: Sequence[Hashable]) -> tuple[Row, ...]:
    """Indices with equal keys together, in order of first appearance: the rows of packed data."""
    rows: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        rows.setdefault(key, []).append(index)
    return tuple(tuple(row) for row in rows.values())


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
    """

    rows: tuple[Row, ...]
    seed: int
    rows_per_batch: int
    batches_per_step: int
    questions_per_row: int | None = None
    processes: int = 1

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
        batches: for each forward pass of any process, the indices of its samples. Process r of n
            runs the batches r, r + n, r + 2n, …: so a short window leaves out as few processes as
            it can.
    """

    step: int
    epoch: float
    batches: tuple[tuple[int, ...], ...]


def windows(order: Order, start: int, stop: int) -> Iterator[Window]:
    """The optimizer steps `start … stop-1`.

    Epochs never share a step, so the last window of an epoch may be short; nothing is dropped.
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
        cuts = range(0, len(window), order.rows_per_batch)
        batches = (window[cut : cut + order.rows_per_batch] for cut in cuts)
        yield Window(
            step,
            epoch + (place + 1) / order.steps_per_epoch,
            tuple(tuple(index for row in batch for index in row) for batch in batches),
        )


def _visits(order: Order, epoch: int) -> list[Row]:
    """Every row once, shuffled, each with the questions of this visit."""
    places = stream(order.seed, "data", epoch).permutation(len(order.rows))
    return [_questions(order, epoch, int(place)) for place in places]


def _questions(order: Order, epoch: int, place: int) -> Row:
    row, limit = order.rows[place], order.questions_per_row
    if limit is None or len(row) <= limit:
        return row
    drawn = stream(order.seed, "questions", epoch, place).permutation(len(row))[:limit]
    return tuple(row[i] for i in sorted(drawn))


def projection_order(seed: int, unit: tuple[int, int], count: int) -> list[int]:
    """A random order of `count` things for one unit (optimizer step, batch within it).

    [paper] A stream of its own, so that switching a combiner does not move the data order.
    """
    return [int(i) for i in stream(seed, "projection", *unit).permutation(count)]
