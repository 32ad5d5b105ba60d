"""The training loop: one gradient per loss, one Gram matrix, one update.

`step` is the method; everything it calls was chosen before the first step (plan.py). Plain
cross-entropy is the same step with no teachers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from drivekd.data.lock import locked
from drivekd.data.progress import track
from drivekd.distill import (
    bridges,
    checkpoint,
    log,
    parallel,
    projection,
    sharding,
    teacher,
    update,
)
from drivekd.distill import plan as plans
from drivekd.distill.checkpoint import State
from drivekd.distill.gradients import Unit, accumulate, clear, exchange, new_unit, views
from drivekd.distill.log import Totals
from drivekd.distill.objective import batch_of, held_out_loss, learn, losses, tally
from drivekd.distill.order import Window, stream, windows
from drivekd.distill.parallel import ALONE, Ranks
from drivekd.distill.plan import Plan
from drivekd.models import vlm as vlms
from drivekd.recipe import Recipe


@dataclass(frozen=True)
class Run:
    """A plan with the state that training changes.

    Attributes:
        plan: what was decided beforehand.
        optimizer: AdamW over the trained parameters and the bridges.
        method: gradients → λ and coefficients.
        memory: what the weighting remembers of earlier units.
        kept: coefficients for the steps between exact ones, see refresh.py.
        unit: the gradients being collected.
        update: the flat update; the parameters' `grad` are views of it.
        totals: for the log, since the last logged step.
    """

    plan: Plan
    optimizer: torch.optim.Optimizer
    method: update.Method
    unit: Unit
    update: Float[Tensor, " P"]
    memory: dict[str, Mapping[str, float]] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)
    totals: Totals = field(default_factory=dict)


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
    The first process writes everything; `output_dir` must be the same folder for all. [ours]

    Args:
        recipe: of the run.
        resume: go on from the latest checkpoint of `output_dir` if there is one, or from the
            checkpoint named, which removes what was saved after it; a finished run is not
            repeated. Start, data and teachers must be those of the run.
        student: used instead of loading `recipe.student`, and trained in place; on resuming, with
            the weights that the run started from.
        teachers: used instead of loading them, by the name that the recipe gives them.

    Returns:
        The folder of the final model.

    Raises:
        ValueError: recipe, data, models or checkpoint do not fit together.
        RuntimeError: a loss or gradient is not finite; the step and the samples are named. Or
            another process ended.
        OSError: the disk is full, or another process writes to `output_dir`.
    """
    folder = Path(recipe.output_dir)
    with parallel.joined() as ranks, _held(folder, ranks.first), _settings(recipe):
        found = checkpoint.starting_point(folder, resume)
        if student is None:
            student = vlms.load(recipe.student, device=plans.device(), dtype=torch.float32)
        start = teacher.fingerprint([student.model])
        if found is not None:
            _restore(found, student)
        run = prepare(plans.build(recipe, student, teachers, ranks))
        state = _initial_state(run, start)
        if found is not None:
            state = _resume(run, state, found)
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
    plan, unit = run.plan, run.unit
    by_batch = plan.recipe.combine.granularity == "micro_batch"
    units = [[batch] for batch in window.batches] if by_batch else [list(window.batches)]
    total = sum(len(batch) for batch in window.batches)
    drawn = stream(plan.recipe.seed, "dropout", window.step, plan.ranks.rank)
    torch.manual_seed(int(drawn.integers(2**63)))
    run.update.zero_()
    bridges.clear(plan.bridges)
    for number, batches in enumerate(units):
        samples = [index for batch in batches for index in batch]
        factors = update.factors(plan, unit, run.kept, samples)
        clear(unit)
        beside = samples if plan.shards else []
        for indices, own in sharding.turns(plan.shards, plan.ranks, batches):
            with _located(plan, window, indices), losses(plan, batch_of(plan, indices)) as found:
                if own:
                    learn(plan, found)
                accumulate(unit, plan, found, indices if own else (), factors, beside)
        exchange(unit, plan, batches)
        with _located(plan, window, samples):
            if factors is None:
                solved = update.solve(plan, unit, run.method, run.memory, (window.step, number))
            else:
                solved = update.reuse(plan, unit, run.kept)
        run.update.add_(solved.update, alpha=len(samples) / total)
        _remember(run, solved)
    with _located(plan, window, [index for batch in window.batches for index in batch]):
        bridges.settle(plan.bridges, plan.ranks)
    sharding.part(plan.shards)
    norm = clip(run.update, plan.recipe.train.max_grad_norm, plan.ranks if plan.shards else ALONE)
    log.add(run.totals, "grad_norm", norm)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(plan.recipe, window.step, plan.total_steps)
    run.optimizer.step()


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


def prepare(plan: Plan) -> Run:
    """Optimizer, weighting and buffers of a run; training modes of the student's parts."""
    settings = plan.recipe.train
    _set_modes(plan)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in plan.parameters if p.ndim > 1]},
        {"params": [p for p in plan.parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if plan.bridges.layers:
        groups.append({"params": list(bridges.parameters(plan.bridges).values())})
    optimizer = torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    unit = new_unit(plan)
    flat = torch.zeros_like(unit.gradients[0])
    for parameter, view in zip(plan.parameters, views(flat, plan.parameters), strict=True):
        parameter.grad = view
    return Run(plan, optimizer, update.method_of(plan.recipe, unit.groups), unit, flat)


def _set_modes(plan: Plan) -> None:
    """Dropout only in what is trained; frozen parts stay in evaluation mode."""
    model, settings = plan.student.model, plan.recipe.train
    model.train(False)
    trained = model if settings.trainable == "everything" else vlms.language_model(plan.student)
    trained.train()
    if settings.gradient_checkpointing:
        # transformers 5.23 renames the method and warns about the old name.
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
        enable: Any = next(getattr(model, name) for name in names if hasattr(model, name))
        enable({"use_reentrant": False})


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


def _initial_state(run: Run, start: str) -> State:
    plan = run.plan
    who = {id(each): teacher.identity(each.vlm) for each in plan.teachers}
    return State(
        step=0,
        total_steps=plan.total_steps,
        recipe=plan.recipe.model_dump(mode="json"),
        teachers={t.capability: who[id(each)] for each in plan.teachers for t in each.terms},
        data=plan.data,
        start=start,
        trained=[*plan.names, *bridges.parameters(plan.bridges)],
        processes=plan.ranks.size,
    )


def _restore(found: Path, student: vlms.Vlm) -> None:
    """Give the student the weights of a checkpoint.

    Raises:
        ValueError: the checkpoint is of another architecture or size.
    """
    saved = vlms.load(found, device=student.device, dtype=torch.float32)
    try:
        student.model.load_state_dict(saved.model.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"{found} belongs to another run and cannot be resumed: student: its weights do not "
            f"fit {student.source}, which is another model. Restore the student, choose another "
            f"output_dir, or remove the folder {found.parent}"
        ) from error


def _resume(run: Run, now: State, found: Path) -> State:
    """Continue where a checkpoint stopped, if it belongs to this run."""
    saved = checkpoint.read_state(found)
    checkpoint.check_resumable(saved, now, found)
    if found.name != checkpoint.FINAL:
        checkpoint.read_bridges(found, bridges.parameters(run.plan.bridges))
        read = checkpoint.read_optimizer(found)
        state = sharding.pieces_of_state(run.plan.shards, run.optimizer, read)
        run.optimizer.load_state_dict(state)
        run.memory.update(saved.weighting)
        run.kept.update(saved.kept)
        run.totals.update({name: list(pair) for name, pair in saved.totals.items()})
    return replace(now, step=saved.step, seconds=saved.seconds, questions=saved.questions)


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
    weights = sharding.state_dict(plan.shards, plan.student)
    if plan.ranks.first:
        checkpoint.save_final(folder, vlm=plan.student, weights=weights, state=state)


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
        _save(run, state, folder)


def _save(run: Run, state: State, folder: Path) -> None:
    """A checkpoint of what all processes have."""
    plan, totals = run.plan, log.fetched(run.totals)
    parallel.agree(plan.ranks, f"the student after step {state.step}", *plan.replicated)
    weights = sharding.state_dict(plan.shards, plan.student)
    optimizer = sharding.optimizer_state(plan.shards, run.optimizer)
    if plan.ranks.first:
        checkpoint.save(
            folder,
            vlm=plan.student,
            weights=weights,
            optimizer=optimizer,
            bridges=bridges.parameters(plan.bridges),
            state=replace(state, weighting=run.memory, kept=run.kept, totals=totals),
            keep=plan.recipe.train.save_total_limit,
        )


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
