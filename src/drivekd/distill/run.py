"""A run: a plan with the state that training changes; how it begins, is saved and goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from drivekd.distill import corpus
from drivekd.distill.gradients import Unit, new_unit, views
from drivekd.distill.order import padding
from drivekd.distill.plan import Models, Plan
from drivekd.distill.processes import parallel, sharding
from drivekd.distill.saving import card, checkpoint, log, lora
from drivekd.distill.saving.log import Totals
from drivekd.distill.saving.trainer_state import FINAL, State, place_of, read_state
from drivekd.distill.teachers import bridges, teacher
from drivekd.distill.trained import training_mode
from drivekd.files.progress import tell
from drivekd.files.writing import write_json
from drivekd.method.combine import weighting
from drivekd.method.combine.projection import SOLVERS, Solver
from drivekd.method.combine.torchjd import PREFIX, torchjd_solver
from drivekd.models import vlm as vlms
from drivekd.recipe import Recipe, to_yaml


@dataclass(frozen=True)
class Method:
    """What a recipe chose: how λ is set, how gradients are combined.

    Attributes:
        weigh: sets λ.
        solver: combines; not used where cross-entropy has a row per capability.
    """

    weigh: weighting.Weigh
    solver: Solver


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
    method: Method
    unit: Unit
    update: Float[Tensor, " P"]
    memory: dict[str, Mapping[str, float]] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)
    totals: Totals = field(default_factory=dict)


@contextmanager
def settings(recipe: Recipe) -> Iterator[None]:
    """Threads and random state of a run; what was set before is restored afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.train.num_threads)
    try:
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        with torch.random.fork_rng([] if device is None else [device]):
            yield
    finally:
        torch.set_num_threads(threads)


def prepare(plan: Plan) -> Run:
    """Optimizer, weighting and buffers of a run; training modes of the student's parts."""
    settings = plan.recipe.train
    training_mode(plan.recipe, plan.models.student)
    if settings.gradient_checkpointing:
        # transformers 5.23 renames the method and warns about the old name.
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
        model = plan.models.student.model
        enable: Any = next(getattr(model, name) for name in names if hasattr(model, name))
        enable({"use_reentrant": False})
    parameters, learned = plan.trained.parameters, bridges.parameters(plan.models.bridges)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if learned:
        groups.append({"params": list(learned.values())})
    optimizer = torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    unit = new_unit(parameters, len(plan.schedule.rows), plan.schedule.groups)
    flat = torch.zeros_like(unit.gradients[0])
    for parameter, view in zip(parameters, views(flat, parameters), strict=True):
        parameter.grad = view
    return Run(plan, optimizer, method_of(plan.recipe), unit, flat)


def method_of(recipe: Recipe) -> Method:
    """Make the weighting and the combiner that a recipe asks for.

    Raises:
        ValueError: it needs a package that is not installed, or names no weighting of it.
    """
    name, part = recipe.combine.combiner, recipe.weighting
    if name == "agp_grouped":  # without teachers nobody has an anchor to tell apart
        solver = SOLVERS["sum"]
    else:
        solver = torchjd_solver(name) if name.startswith(PREFIX) else SOLVERS[name]
    if part.mode == "fixed":
        return Method(weighting.fixed(part.fixed, w_ce=part.w_ce), solver)
    rho = {name: capability.rho for name, capability in recipe.capabilities.items()}
    return Method(weighting.grad_norm(rho, w_ce=part.w_ce, decay=part.decay, cap=part.cap), solver)


def initial_state(run: Run, start: str) -> State:
    """What a run is before its first step; `start`: sha256 of the student's weights."""
    plan, models = run.plan, run.plan.models
    who = {id(each): teacher.identity(each.vlm) for each in models.teachers}
    live = {t.capability: who[id(each)] for each in models.teachers for t in each.terms}
    total, order = plan.schedule.total_steps, plan.schedule.order
    return State(
        step=0,
        total_steps=total,
        recipe=plan.recipe.model_dump(mode="json"),
        teachers=models.stored.who if models.stored else live,
        data=corpus.digests(plan.schedule.encoded, plan.schedule.order.rows),
        start=start,
        trained=[*plan.trained.names, *bridges.parameters(models.bridges)],
        processes=plan.trained.ranks.size,
        num_train_epochs=ceil(total / order.steps_per_epoch),
    )


def describe(plan: Plan, teachers: Mapping[str, Mapping[str, str]], folder: Path) -> None:
    """Write `run.json`: what is trained, on what, by whom; and `recipe.yaml`."""
    models, order = plan.models, plan.schedule.order
    model = models.student.model
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    padded = padding(order)
    if order.by_length:
        mixed = padding(replace(order, by_length=False))
        tell(
            f"batches of rows of like length: {100 * padded:.1f} % of their positions are padding, "
            f"{100 * mixed:.1f} % without train.group_by_length"
        )
    about = {
        "student": models.student.source,
        "teachers": teachers,
        "trained_parameters": sum(trained),
        "embeddings_trained": bool(model.get_input_embeddings().weight.requires_grad),
        "samples": len(plan.schedule.encoded),
        "rows": len(order.rows),
        "processes": plan.trained.ranks.size,
        "rows_per_step": order.rows_per_step,
        "steps_per_epoch": order.steps_per_epoch,
        "total_steps": plan.schedule.total_steps,
        "padding": padded,
        "see_alike": _seeing_alike(models),
        "layers": {term.capability: dict(term.matches) for term in models.terms},
    }
    write_json(folder / "run.json", about)
    (folder / "recipe.yaml").write_text(to_yaml(plan.recipe), encoding="utf-8")


def _seeing_alike(models: Models) -> list[list[str]]:
    """Names of models of which one runs its vision tower for all, group by group."""
    groups: dict[int, list[str]] = {}
    users = [(models.student, models.features), *((t.vlm, t.features) for t in models.teachers)]
    for vlm, cache in users:
        if cache is not None and cache.alike:
            groups.setdefault(id(cache), []).append(vlm.source)
    return list(groups.values())


def replicated(plan: Plan) -> tuple[Tensor, ...]:
    """What is trained and equal in all processes."""
    learned = bridges.parameters(plan.models.bridges).values()
    return (*learned, *(plan.trained.parameters if plan.models.shards is None else ()))


def restore(found: Path, student: vlms.Vlm, recipe: Recipe) -> None:
    """Give the student the weights of a checkpoint.

    A student with adapters starts again from what it started from; `resume` reads the adapters.

    Raises:
        ValueError: the checkpoint is of another architecture or size.
    """
    if recipe.train.trainable == "lora" and found.name != FINAL:
        return
    saved = vlms.load(found, device=student.device, dtype=torch.float32)
    try:
        student.model.load_state_dict(saved.model.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"{found} belongs to another run and cannot be resumed: student: its weights do not "
            f"fit {student.source}, which is another model. Restore the student, choose another "
            f"output_dir, or remove the folder {found.parent}"
        ) from error


def resume(run: Run, now: State, found: Path) -> State:
    """Continue where a checkpoint stopped, if it belongs to this run."""
    saved = read_state(found)
    checkpoint.check_resumable(saved, now, found)
    if found.name != FINAL:
        _check_best(run, saved, found)
        if run.plan.recipe.train.trainable == "lora":
            lora.read(run.plan.models.student, found / lora.FOLDER)
        checkpoint.read_bridges(found, bridges.parameters(run.plan.models.bridges))
        try:
            read = checkpoint.read_optimizer(found)
        except (RuntimeError, EOFError, UnpicklingError) as error:
            raise ValueError(
                f"{found / 'optimizer.pt'} is damaged or cut off; resume an earlier checkpoint"
            ) from error
        state = sharding.pieces_of_state(run.plan.models.shards, run.optimizer, read)
        run.optimizer.load_state_dict(state)
        run.memory.update(saved.weighting)
        run.kept.update(saved.kept)
        run.totals.update({name: list(pair) for name, pair in saved.totals.items()})
    return replace(
        now,
        step=saved.step,
        seconds=saved.seconds,
        questions=saved.questions,
        epoch=saved.epoch,
        log_history=saved.log_history,
        best_metric=saved.best_metric,
        best_global_step=saved.best_global_step,
    )


def _check_best(run: Run, saved: State, found: Path) -> None:
    """The best checkpoint so far must be at hand: it may become the final model."""
    if saved.best_global_step is not None:
        best = place_of(saved, saved.best_global_step, Path(run.plan.recipe.output_dir))
        if not best.exists():
            raise ValueError(
                f"{found} names {best.name} as the best so far, but there is no {best}: copy it "
                "there, or resume a checkpoint from before it"
            )


def save(run: Run, state: State, folder: Path) -> None:
    """A checkpoint of what all processes have."""
    plan, totals = run.plan, log.fetched(run.totals)
    parallel.agree(plan.trained.ranks, f"the student after step {state.step}", *replicated(plan))
    weights = _weights(plan)
    optimizer = sharding.optimizer_state(plan.models.shards, run.optimizer)
    if plan.trained.ranks.first:
        checkpoint.save(
            folder,
            vlm=plan.models.student,
            weights=weights,
            optimizer=optimizer,
            bridges=bridges.parameters(plan.models.bridges),
            state=replace(state, weighting=run.memory, kept=run.kept, totals=totals),
            keep=plan.recipe.train.save_total_limit,
            card=_card(plan, state, folder / f"checkpoint-{state.step}"),
        )


def save_final(run: Run, state: State, folder: Path) -> None:
    """The finished model, which may be an earlier checkpoint; all processes must call this."""
    plan, described = run.plan, _card(run.plan, state, folder / FINAL)
    if state.best_global_step not in (None, state.step):
        if plan.trained.ranks.first:
            checkpoint.save_best(folder, state=state, card=described)
        return
    weights = _weights(plan)
    if plan.trained.ranks.first:
        checkpoint.save_final(
            folder, vlm=plan.models.student, weights=weights, state=state, card=described
        )


def _weights(plan: Plan) -> dict[str, Tensor] | None:
    """The weights to be written, where the student does not hold them as they are."""
    if plan.recipe.train.trainable == "lora":
        return lora.merged(plan.models.student)
    return sharding.state_dict(plan.models.shards, plan.models.student)


def _card(plan: Plan, state: State, folder: Path) -> str:
    counts = Counter(each.sample.capability or "none" for each in plan.schedule.encoded)
    return card.text(state, folder, counts, len(plan.schedule.held_out))


def leave(plan: Plan, final: Path) -> None:
    """Leave the student as the plain model in `final`, in evaluation mode."""
    recipe, student = plan.recipe, plan.models.student
    if recipe.train.trainable == "lora":
        lora.fold(student)
    if recipe.train.load_best_model_at_end and plan.models.shards is None:
        restore(final, student, recipe)
    student.model.train(False)
