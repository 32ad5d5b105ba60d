"""The training loop: one gradient per loss, one Gram matrix, one update.

`step` is the method; everything it calls was chosen before the first step (plan.py). Plain
cross-entropy is the same step with no teachers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from drivekd.data.lock import locked
from drivekd.data.progress import track
from drivekd.distill import (
    bridges,
    checkpoint,
    launch,
    log,
    parallel,
    projection,
    sharding,
    teacher,
    update,
)
from drivekd.distill import plan as plans
from drivekd.distill import run as runs
from drivekd.distill.checkpoint import State
from drivekd.distill.gradients import accumulate, clear, exchange
from drivekd.distill.objective import batch_of, held_out_loss, learn, losses, tally
from drivekd.distill.order import Window, stream, windows
from drivekd.distill.parallel import ALONE, Ranks
from drivekd.distill.plan import Plan
from drivekd.distill.run import Run, prepare
from drivekd.models import vlm as vlms
from drivekd.recipe import Recipe


def train(
    recipe: Recipe,
    *,
    resume: bool | Path = False,
    student: vlms.Vlm | None = None,
    teachers: Mapping[str, vlms.Vlm] | None = None,
) -> Path:
    """Train a student by a recipe.

    `output_dir` receives `log.jsonl`, `run.json` (what was trained, by whom), checkpoints and
    `final/`, the model as plain transformers loads it.

    Started by `torchrun` or `accelerate launch`, several processes train one student together: an
    optimizer step then sees per_device_train_batch_size × gradient_accumulation_steps × processes
    rows, and the run is, up to rounding, that of one process with so many times the accumulation.
    What accelerate's configuration asks for and the recipe leaves open is taken, see launch.py.
    The first process writes everything; `output_dir` must be the same folder for all. [ours]

    Args:
        recipe: of the run.
        resume: go on from the latest checkpoint of `output_dir` if there is one, or from the
            checkpoint named, which removes what was saved after it; a finished run is not
            repeated. Start, data and teachers must be those of the run.
        student: used instead of loading `recipe.student`, and trained in place (with train.fsdp it
            is left in pieces); on resuming, with the weights that the run started from.
        teachers: used instead of loading them, by the name that the recipe gives them.

    Returns:
        The folder of the final model.

    Raises:
        ValueError: recipe, data, models or checkpoint do not fit together.
        RuntimeError: a loss or gradient is not finite; the step and the samples are named. Or
            another process ended.
        OSError: the disk is full, or another process writes to `output_dir`.
    """
    folder, recipe = Path(recipe.output_dir), launch.honoured(recipe)
    with parallel.joined() as ranks, _held(folder, ranks.first), _settings(recipe):
        found = checkpoint.starting_point(folder, resume)
        if student is None:
            student = vlms.load(recipe.student, device=plans.device(), dtype=torch.float32)
        start = teacher.fingerprint([student.model])
        if found is not None:
            runs.restore(found, student)
        run = prepare(plans.build(recipe, student, teachers, ranks))
        state = runs.initial_state(run, start)
        if found is not None:
            state = runs.resume(run, state, found)
        parallel.agree(ranks, "the run", found, state)
        parallel.agree(ranks, "the start", *run.plan.replicated)
        if found is None or found.resolve() != (folder / checkpoint.FINAL).resolve():
            _loop(run, state, folder)
        parallel.wait(ranks)
        run.plan.student.model.train(False)
        return folder / checkpoint.FINAL


def step(run: Run, window: Window) -> None:
    """One optimizer step.

    [paper] For each unit: g_0 = ∇CE and g_t = ∇ of teacher t's attention loss; project; sum.
    [ours] K+1 sums, one gradient each, one Gram matrix, one linear combination. The unit is all
    batches of the step (granularity: step) or each of them (micro_batch; their updates are
    averaged by their number of samples). Several processes share the batches of a unit.
    """
    plan = run.plan
    by_batch = plan.recipe.combine.granularity == "micro_batch"
    units = [[batch] for batch in window.batches] if by_batch else [list(window.batches)]
    total = sum(len(batch) for batch in window.batches)
    drawn = stream(plan.recipe.seed, "dropout", window.step, plan.ranks.rank)
    torch.manual_seed(int(drawn.integers(2**63)))
    run.update.zero_()
    bridges.clear(plan.bridges)
    for number, batches in enumerate(units):
        samples = [index for batch in batches for index in batch]
        factors = update.factors(plan, run.unit, run.kept, samples)
        _collect(run, window, batches, factors)
        with _located(plan, window, samples):
            if factors is None:
                place = (window.step, number)
                solved = update.solve(plan, run.unit, run.method, run.memory, place)
            else:
                solved = update.reuse(plan, run.unit, run.kept)
        run.update.add_(solved.update, alpha=len(samples) / total)
        _remember(run, solved)
    with _located(plan, window, [index for batch in window.batches for index in batch]):
        bridges.settle(plan.bridges, plan.ranks)
    sharding.let_go(plan.shards)
    norm = clip(run.update, plan.recipe.train.max_grad_norm, plan.ranks if plan.shards else ALONE)
    log.add(run.totals, "grad_norm", norm)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(plan.recipe, window.step, plan.total_steps)
    run.optimizer.step()


def _collect(
    run: Run, window: Window, batches: Sequence[Sequence[int]], factors: Sequence[float] | None
) -> None:
    """The gradients of one unit, from the batches of all processes."""
    plan, unit = run.plan, run.unit
    beside = [index for batch in batches for index in batch] if plan.shards else []
    clear(unit)
    for indices, own in sharding.turns(plan.shards, plan.ranks, batches):
        with _located(plan, window, indices), losses(plan, batch_of(plan, indices)) as found:
            if own:
                learn(plan, found)
            accumulate(unit, plan, found, indices if own else (), factors, beside)
    exchange(unit, plan, batches)


def _remember(run: Run, solved: update.Solved) -> None:
    """Keep what later units go by, and count what is logged."""
    run.memory.update(solved.memory)
    run.kept.update(solved.kept)
    for table in solved.tables:
        tally(run.totals, run.plan, table)
    log.add_all(run.totals, solved.logged)


@contextmanager
def _located(plan: Plan, window: Window, indices: Sequence[int]) -> Iterator[None]:
    """Say in which step and on which samples something failed; nothing was updated by then."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        ids = [plan.encoded[index].sample.id for index in indices]
        more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
        where = f"step {window.step + 1}, samples {', '.join(ids[:8])}{more}"
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        raise kind(f"{where}: {error}") from error


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
    parallel.sum_(holders, [square])
    norm = square[0, 0].sqrt()
    if limit is not None:
        flat.mul_((limit / norm).clamp(max=1.0))
    return norm


def learning_rate(recipe: Recipe, step: int, total_steps: int) -> float:
    """The learning rate of a 0-based step: linear warm-up, then cosine to `lr_end` at the last.

    [release] The cosine; [ours] its length follows from the data. A function of the step alone,
    so that a resumed run needs no state of a scheduler.
    """
    settings = recipe.train
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / (settings.warmup_steps + 1)
    if settings.lr_scheduler_type == "constant":
        return settings.learning_rate
    through = (step - settings.warmup_steps) / max(1, total_steps - 1 - settings.warmup_steps)
    height = 0.5 * (1.0 + math.cos(math.pi * min(1.0, through)))
    return settings.learning_rate * (settings.lr_end + (1.0 - settings.lr_end) * height)


# ---------------------------------------------------------------------------------- before it


def _held(folder: Path, first: bool) -> AbstractContextManager[None]:
    """Keep other runs out of a folder; the first process does it for all."""
    return locked(folder) if first else nullcontext()


@contextmanager
def _settings(recipe: Recipe) -> Iterator[None]:
    """Threads and random state of a run; what was set before is restored afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.train.num_threads)
    try:
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        with torch.random.fork_rng([] if device is None else [device]):
            yield
    finally:
        torch.set_num_threads(threads)


# ---------------------------------------------------------------------------------- around it


def _loop(run: Run, state: State, folder: Path) -> None:
    """All remaining steps with log and checkpoints, then the final model."""
    plan = run.plan
    plans.fill_caches(plan)
    journal = _begin(plan, state, folder) if plan.ranks.first else log.nowhere()
    try:
        remaining = windows(plan.order, state.step, plan.total_steps)
        left, label = plan.total_steps - state.step, f"training {plan.recipe.name}"
        for window in track(remaining, total=left, label=label):
            started = time.monotonic()
            step(run, window)
            state = _advanced(run, state, window, time.monotonic() - started)
            _report(run, state, window, journal, folder)
    finally:
        log.close(journal)
    runs.save_final(run, state, folder)


def _begin(plan: Plan, state: State, folder: Path) -> log.Journal:
    """Describe the run, remove what a lost one left after this step, and open the record."""
    plans.describe(plan, state.teachers, folder)
    checkpoint.drop_after(folder, state.step)
    board = plan.recipe.train.report_to == "tensorboard"
    return log.start(folder, tensorboard=board, after=state.step)


def _advanced(run: Run, state: State, window: Window, seconds: float) -> State:
    samples = sum(len(batch) for batch in window.batches)
    log.add(run.totals, "seconds_per_question", seconds / samples, samples)
    return replace(
        state,
        step=window.step + 1,
        seconds=state.seconds + seconds,
        questions=state.questions + samples,
    )


def _report(run: Run, state: State, window: Window, journal: log.Journal, folder: Path) -> None:
    """What is due after a step: a line of the record, the held-out loss, a checkpoint."""
    plan, settings = run.plan, run.plan.recipe.train
    last, saves = state.step == plan.total_steps, state.step % settings.save_steps == 0
    if last or state.step % settings.logging_steps == 0:
        log.write(journal, _record(run, state, window))
    if plan.held_out and (last or saves):
        log.write(journal, {"step": state.step, "eval/loss/ce": held_out_loss(plan)})
    if saves and not last:
        runs.save(run, state, folder)


def _record(run: Run, state: State, window: Window) -> dict[str, float]:
    """One line: means since the last line, learning rate of this step, and how fast it went."""
    means = log.means(run.totals)
    run.totals.clear()
    speed = 1.0 / means.pop("seconds_per_question")
    return {
        "step": state.step,
        "epoch": window.epoch,
        **means,
        "lr": learning_rate(run.plan.recipe, window.step, run.plan.total_steps),
        "questions_per_second": speed,
        "seconds": state.seconds,
    }
