"""A whole training: where it begins, all of its steps (step.py), what it leaves."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from drivekd.distill import corpus, held_out, out_of_memory, reading
from drivekd.distill import plan as plans
from drivekd.distill import run as runs
from drivekd.distill.order import Window, windows
from drivekd.distill.plan import Plan
from drivekd.distill.processes import launch, parallel
from drivekd.distill.run import Run, prepare
from drivekd.distill.saving import checkpoint, interrupt, log
from drivekd.distill.saving.card import HELD_OUT
from drivekd.distill.saving.trainer_state import FINAL, State
from drivekd.distill.step import learning_rate, step
from drivekd.distill.teachers import teacher
from drivekd.distill.trained import load_student
from drivekd.files.lock import locked
from drivekd.files.progress import track
from drivekd.models import vlm as vlms
from drivekd.models.batch import flat
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
        parallel.agree(ranks, "the start", *runs.replicated(run.plan))
        final = folder / FINAL
        if found is None or found.resolve() != final.resolve():
            _loop(run, state, folder)
        parallel.wait(ranks)
        runs.leave(run.plan, final)
        return final


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
    journal = _begin(plan, state, folder) if plan.trained.ranks.first else log.nowhere()
    remaining = windows(plan.schedule.order, state.step, plan.schedule.total_steps)
    total, label, before = plan.schedule.total_steps, f"training {plan.recipe.name}", state.step
    try:
        state = replace(state, log_history=journal.history)
        shown = partial(log.status, journal.history)
        with interrupt.requests() as request, reading.steps(plan, remaining) as coming:
            for window in track(coming, total, label, shown, before):
                started = time.monotonic()
                step(run, window)
                state = _advanced(run, state, window, time.monotonic() - started)
                state = _report(run, state, window, journal, folder)
                if (number := interrupt.asked(request, plan.trained.ranks)) is not None:
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
    if run.plan.trained.ranks.first:
        logger.warning(
            "stopped after step %d of %d; %s is saved, and the same command with --resume goes on",
            state.step, state.total_steps, folder / f"checkpoint-{state.step}",
        )  # fmt: skip
    interrupt.end(number)


def _begin(plan: Plan, state: State, folder: Path) -> log.Journal:
    """Describe the run, remove what a lost one left after this step, and open the record."""
    runs.describe(plan, state.teachers, folder)
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
    last, saves = state.step == plan.schedule.total_steps, state.step % settings.save_steps == 0
    if last or state.step % settings.logging_steps == 0:
        log.write(journal, _record(run, state, window))
    if held_out.is_due(plan, state.step):
        loss = held_out.held_out_loss(plan)
        log.write(journal, {"step": state.step, HELD_OUT: loss})
        least = math.inf if state.best_metric is None else state.best_metric
        if settings.load_best_model_at_end and (last or saves) and loss < least:
            state = replace(state, best_metric=loss, best_global_step=state.step)
    if saves and not last:
        runs.save(run, state, folder)
    return state


def _record(run: Run, state: State, window: Window) -> dict[str, float]:
    """One line: means since the last line, learning rate of this step, and how fast it went."""
    means = log.means(run.totals)
    run.totals.clear()
    speed = 1.0 / means.pop("seconds_per_question")
    return {
        "step": state.step,
        "epoch": window.epoch,
        **means,
        "lr": learning_rate(run.plan.recipe, window.step, run.plan.schedule.total_steps),
        "questions_per_second": speed,
        "seconds": state.seconds,
    }
