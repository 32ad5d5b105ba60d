"""The training loop: one gradient per loss, one Gram matrix, one update.

`step` is the method; everything it calls was chosen before the first step (plan.py). Plain
cross-entropy is the same step with no teachers.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from drivekd.distill import corpus, out_of_memory, reading, update
from drivekd.distill import plan as plans
from drivekd.distill import run as runs
from drivekd.distill.gradients import accumulate, clear, exchange
from drivekd.distill.objective import batch_of, held_out_loss, learn, losses, tally
from drivekd.distill.order import Window, flat, stream, windows
from drivekd.distill.plan import Plan
from drivekd.distill.processes import launch, parallel, sharding
from drivekd.distill.processes.parallel import ALONE, Ranks
from drivekd.distill.run import Run, prepare
from drivekd.distill.saving import checkpoint, interrupt, log
from drivekd.distill.saving.card import HELD_OUT
from drivekd.distill.saving.trainer_state import FINAL, State
from drivekd.distill.teachers import bridges, teacher
from drivekd.distill.trained import load_student
from drivekd.files.lock import locked
from drivekd.files.progress import track
from drivekd.method.combine import projection
from drivekd.models import vlm as vlms
from drivekd.models.batch import Row
from drivekd.recipe import Recipe

logger = logging.getLogger(__name__)


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
    with parallel.joined() as ranks, _held(folder, ranks.first), runs.settings(recipe):
        found = checkpoint.starting_point(folder, resume)
        corpus.refuse_missing(recipe)
        log.uses_tensorboard(recipe.train.report_to)  # refuses early
        if student is None:
            student = load_student(recipe)
        start = teacher.fingerprint([student.model])
        if found is not None:
            runs.restore(found, student, recipe)
        with out_of_memory.before_the_first_step(recipe):
            run = prepare(plans.build(recipe, student, teachers, ranks))
        state = runs.initial_state(run, start)
        if found is not None:
            state = runs.resume(run, state, found)
        parallel.agree(ranks, "the run", found, state)
        parallel.agree(ranks, "the start", *run.plan.replicated)
        final = folder / FINAL
        if found is None or found.resolve() != final.resolve():
            _loop(run, state, folder)
        parallel.wait(ranks)
        runs.leave(run.plan, final)
        return final


def step(run: Run, window: Window) -> None:
    """One optimizer step.

    [paper] For each unit: g_0 = ∇CE and g_t = ∇ of teacher t's attention loss; project; sum.
    [ours] K+1 sums, one gradient each, one Gram matrix, one linear combination. The unit is all
    batches of the step (granularity: step) or each of them (micro_batch; their updates are
    averaged by their number of samples). Several processes share the batches of a unit.
    """
    plan, settings = run.plan, run.plan.recipe.train
    by_batch = plan.recipe.combine.granularity == "micro_batch"
    units = [[batch] for batch in window.batches] if by_batch else [list(window.batches)]
    total = len(flat(window.batches))
    drawn = stream(plan.recipe.seed, "dropout", window.step, plan.ranks.rank)
    torch.manual_seed(int(drawn.integers(2**63)))
    run.update.zero_()
    bridges.clear(plan.bridges)
    for number, batches in enumerate(units):
        samples = flat(batches)
        factors = update.factors(plan, run.unit, run.kept, samples)
        _collect(run, window, batches, factors)
        with _located(plan, window, batches):
            if factors is None:
                place = (window.step, number)
                solved = update.solve(plan, run.unit, run.method, run.memory, place)
            else:
                solved = update.reuse(plan, run.unit, run.kept)
        run.update.add_(solved.update, alpha=len(samples) / total)
        _remember(run, solved)
    with _located(plan, window, window.batches):
        bridges.settle(plan.bridges, plan.ranks)
        sharding.let_go(plan.shards)
        holders = plan.ranks if plan.shards else ALONE
        log.add(run.totals, "grad_norm", clip(run.update, settings.max_grad_norm, holders))
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(plan.recipe, window.step, plan.total_steps)
        run.optimizer.step()


def _collect(
    run: Run, window: Window, batches: Sequence[Sequence[Row]], factors: Sequence[float] | None
) -> None:
    """The gradients of one unit, from the batches of all processes."""
    plan, unit = run.plan, run.unit
    beside = flat(batches) if plan.shards else []
    clear(unit)
    for rows, own in sharding.turns(plan.shards, plan.ranks, batches):
        with _located(plan, window, [rows]), losses(plan, batch_of(plan, rows)) as found:
            if own:
                learn(plan, found)
            accumulate(unit, plan, found, flat([rows]) if own else (), factors, beside)
    exchange(unit, plan, [flat([rows]) for rows in batches])


def _remember(run: Run, solved: update.Solved) -> None:
    """Keep what later units go by, and count what is logged."""
    run.memory.update(solved.memory)
    run.kept.update(solved.kept)
    for table in solved.tables:
        tally(run.totals, run.plan, table)
    log.add_all(run.totals, solved.logged)


@contextmanager
def _located(plan: Plan, window: Window, batches: Sequence[Sequence[Row]]) -> Iterator[None]:
    """Say in which step and on which samples something failed; no later step was begun."""
    try:
        yield
    except (ValueError, RuntimeError, MemoryError) as error:
        reason = (
            out_of_memory.of_a_batch(plan, batches) if out_of_memory.happened(error) else str(error)
        )
        ids = [plan.encoded[index].sample.id for index in flat(batches)]
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
    parallel.sum_(holders, [square])
    norm = square[0, 0].sqrt()
    if limit is not None:
        flat.mul_((limit / norm).clamp(max=1.0))
    return norm


def learning_rate(recipe: Recipe, step: int, total_steps: int) -> float:
    """The learning rate of a 0-based step: linear warm-up, then down to `lr_end` at the last.

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


# ---------------------------------------------------------------------------------- before it


def _held(folder: Path, first: bool) -> AbstractContextManager[None]:
    """Keep other runs out of a folder; the first process does it for all."""
    return locked(folder) if first else nullcontext()


# ---------------------------------------------------------------------------------- around it


def _loop(run: Run, state: State, folder: Path) -> None:
    """All remaining steps with log and checkpoints, then the final model."""
    plan = run.plan
    with out_of_memory.before_the_first_step(plan.recipe):
        plans.fill_caches(plan)
    journal = _begin(plan, state, folder) if plan.ranks.first else log.nowhere()
    remaining = windows(plan.order, state.step, plan.total_steps)
    total, label, before = plan.total_steps, f"training {plan.recipe.name}", state.step
    try:
        state = replace(state, log_history=journal.history)
        shown = partial(log.status, journal.history)
        with interrupt.requests() as request, reading.steps(plan, remaining) as coming:
            for window in track(coming, total, label, shown, before):
                started = time.monotonic()
                step(run, window)
                state = _advanced(run, state, window, time.monotonic() - started)
                state = _report(run, state, window, journal, folder)
                if (number := interrupt.asked(request, plan.ranks)) is not None:
                    _end_early(run, state, folder, number)
    finally:
        log.close(journal)
    runs.save_final(run, state, folder)


def _end_early(run: Run, state: State, folder: Path, number: int) -> None:
    """Save what was reached and end; a finished run is finished properly instead."""
    if state.step == state.total_steps:
        return
    if state.step % run.plan.recipe.train.save_steps != 0:  # else it was saved just now
        runs.save(run, state, folder)
    if run.plan.ranks.first:
        logger.warning(
            "stopped after step %d of %d; %s is saved, and the same command with --resume goes on",
            state.step, state.total_steps, folder / f"checkpoint-{state.step}",
        )  # fmt: skip
    interrupt.end(number)


def _begin(plan: Plan, state: State, folder: Path) -> log.Journal:
    """Describe the run, remove what a lost one left after this step, and open the record."""
    plans.describe(plan, state.teachers, folder)
    checkpoint.drop_after(folder, state.step)
    board = log.uses_tensorboard(plan.recipe.train.report_to)
    return log.start(folder, tensorboard=board, after=state.step, history=state.log_history)


def _advanced(run: Run, state: State, window: Window, seconds: float) -> State:
    samples = len(flat(window.batches))
    log.add(run.totals, "seconds_per_question", seconds / samples, samples)
    return replace(
        state,
        step=window.step + 1,
        epoch=window.epoch,
        seconds=state.seconds + seconds,
        questions=state.questions + samples,
    )


def _report(run: Run, state: State, window: Window, journal: log.Journal, folder: Path) -> State:
    """What is due after a step: a line of the record, the held-out loss, a checkpoint."""
    plan, settings = run.plan, run.plan.recipe.train
    last, saves = state.step == plan.total_steps, state.step % settings.save_steps == 0
    if last or state.step % settings.logging_steps == 0:
        log.write(journal, _record(run, state, window))
    if _evaluates(plan, state.step):
        loss = held_out_loss(plan)
        log.write(journal, {"step": state.step, HELD_OUT: loss})
        least = math.inf if state.best_metric is None else state.best_metric
        if settings.load_best_model_at_end and (last or saves) and loss < least:
            state = replace(state, best_metric=loss, best_global_step=state.step)
    if saves and not last:
        runs.save(run, state, folder)
    return state


def _evaluates(plan: Plan, step: int) -> bool:
    """Whether the held-out loss is due after so many steps."""
    settings = plan.recipe.train
    if not plan.held_out or settings.eval_strategy == "no":
        return False
    epoch = settings.eval_strategy == "epoch"
    every = plan.order.steps_per_epoch if epoch else settings.evaluation_steps
    return step == plan.total_steps or step % every == 0


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
