"""Runs of several processes: what each of them does, and how a test starts them.

The functions named `in_…` run in every process, joined by gloo; a test gets what they return.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import runs
from drivekd.distill import gradients
from drivekd.distill import plan as plans
from drivekd.distill import step as steps
from drivekd.distill import train as training
from drivekd.distill.objective import Losses
from drivekd.distill.order import Window, windows
from drivekd.distill.processes import parallel, sharding
from drivekd.distill.processes.parallel import Ranks
from drivekd.distill.run import Run, prepare
from drivekd.distill.saving import log
from drivekd.distill.targets import store
from drivekd.distill.teachers import bridges
from drivekd.models.vlm import Vlm
from drivekd.recipe import Recipe

SIZE, PATIENCE = 2, 60

#: Of each case the optimizer steps, and what differs from `runs.recipe`. There is one row per
#: batch; of three packed rows the second step leaves process 1 none.
CASES: Mapping[str, tuple[int, dict[str, Any]]] = {
    "agp": (2, {}),
    "accumulated": (2, {"data": {"pack": False}, "train": {"gradient_accumulation_steps": 2}}),
    "absent": (5, {"data": {"pack": False}, "mixing": {c: {c: 1.0} for c in runs.CAPABILITIES}}),
    "agp_grouped": (3, {"combine": {"combiner": "agp_grouped"}}),
    "refresh": (5, {"combine": {"refresh": 4}}),
    "signals": (3, {"capabilities": runs.three_signals()}),
    "plain": (3, {"capabilities": {}}),
    "mixed": (
        3,
        {
            "capabilities": {},
            "data": {"pack": False, "mixture": {"perception": 3, "reasoning": 2, "planning": 1}},
            "train": {"group_by_length": True},
        },
    ),
    "checkpointed": (2, {"train": {"gradient_checkpointing": True}}),
    "adapters": (3, {"train": {"trainable": "lora", "lora": {"r": 2, "lora_alpha": 8}}}),
}
#: Cases of which the recipe refuses pieces.
WHOLE = ("adapters",)


def run_of(
    data: Path, case: str, ranks: Ranks, teachers: Mapping[str, Vlm], **settings: Any
) -> Run:
    """The run of a case, before its first step; alone it accumulates what the others share."""
    steps, changes = CASES[case]
    train = {"gradient_accumulation_steps": 1, **changes.get("train", {}), **settings}
    train["gradient_accumulation_steps"] *= SIZE // ranks.size
    train |= {"per_device_train_batch_size": 1, "max_steps": steps}
    recipe = runs.recipe(data, Path("unused"), **{**changes, "train": train})
    return prepare(plans.build(recipe, runs.tiny_student(), teachers, ranks))


def stepped(
    data: Path, case: str, ranks: Ranks, teachers: Mapping[str, Vlm], **settings: Any
) -> dict[str, Any]:
    """What the steps of a case lead to: every update, the weights, the means of the log."""
    run, updates = run_of(data, case, ranks, teachers, **settings), []
    for window in windows(run.plan.schedule.order, 0, run.plan.schedule.total_steps):
        steps.step(run, window)
        updates.append(whole(run, gradients.views(run.update, run.plan.trained.parameters)))
    return {
        "updates": updates,
        "weights": whole(run, run.plan.trained.parameters),
        "bridges": [p.detach() for p in bridges.parameters(run.plan.models.bridges).values()],
        "means": log.means(run.totals),
        "dropout": torch.initial_seed(),
    }


def whole(run: Run, pieces: Sequence[Tensor]) -> Tensor:
    """One flat vector of what lies in pieces."""
    shards = run.plan.models.shards
    if shards is not None:
        pieces = [sharding.put_together(w, p) for w, p in zip(shards.weights, pieces, strict=True)]
    return torch.cat([piece.detach().flatten() for piece in pieces])


def in_steps(ranks: Ranks, data: Path) -> dict[str, Any]:
    """All cases, whole and in pieces, and one of them again without the sum over processes."""
    teachers, found = runs.tiny_teachers(), dict[str, Any]()
    for case in CASES:
        found[case] = stepped(data, case, ranks, teachers)
        if case not in WHOLE:
            found[f"{case} in pieces"] = stepped(data, case, ranks, teachers, fsdp=True)
    whole, gradients._sum_rows = gradients._sum_rows, lambda *_: None
    found["unsummed"] = stepped(data, "agp", ranks, teachers)
    gradients._sum_rows = whole
    return found


def in_all(ranks: Ranks, data: Path, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Both kinds of work in one go: starting processes takes longer."""
    return in_steps(ranks, data), in_whole_runs(ranks, data, folder)


def stepped_from_store(data: Path, cache: Path, ranks: Ranks) -> dict[str, Any]:
    """The weights after two steps with stored targets, and the shards that this process wrote."""
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": SIZE // ranks.size}
    stored = {"dir": str(cache), "dtype": "float32"}
    recipe = runs.recipe(data, Path("unused"), train={**settings, "max_steps": 2}, cache=stored)
    write, wrote = store.write_shard, list[str]()

    def noted(*args: Any) -> Path:
        wrote.append(write(*args).name)
        return cache / wrote[-1]

    store.write_shard, store.SHARD_BYTES = noted, 1
    try:
        plan = plans.build(recipe, runs.tiny_student(), runs.tiny_teachers(), ranks)
    finally:
        store.write_shard, store.SHARD_BYTES = write, 256_000_000
    run = prepare(plan)
    for window in windows(plan.schedule.order, 0, plan.schedule.total_steps):
        steps.step(run, window)
    return {"weights": whole(run, plan.trained.parameters), "wrote": wrote}


def in_store(ranks: Ranks, data: Path, cache: Path) -> dict[str, Any]:
    """A store that the processes fill together, and steps from it."""
    return stepped_from_store(data, cache, ranks)


def held_out(data: Path) -> Path:
    """The file of other scenes beside the training data."""
    return data.parent / "held_out" / data.name


def recipe_of(data: Path, folder: Path, size: int, **train: Any) -> Recipe:
    """A whole run of six steps with checkpoints, held-out losses and a hidden signal."""
    settings = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": SIZE // size,
        "max_steps": 6,
        "save_steps": 2,
        "save_total_limit": None,
        **train,
    }
    changes: dict[str, Any] = {"data": {"eval": [str(held_out(data))]}, "train": settings}
    return runs.recipe(data, folder, capabilities=runs.three_signals(), **changes)


def in_whole_runs(ranks: Ranks, data: Path, folder: Path) -> dict[str, str]:
    """Runs, some of which go on from a checkpoint of one process; the errors of those that fail."""
    teachers, errors = runs.tiny_teachers(), {}

    def trained(name: str, *, resume: bool = False, **train: Any) -> None:
        recipe = recipe_of(data, folder / name, ranks.size, **train)
        try:
            training.train(recipe, resume=resume, student=runs.tiny_student(), teachers=teachers)
        except (ValueError, RuntimeError) as error:
            errors[name] = str(error)

    trained("pair")
    trained("pair in pieces", fsdp=True)
    trained("resumed", resume=True)
    trained("resumed in pieces", resume=True, fsdp=True)
    with no_number(ranks, step=3):
        trained("faulty")
    with no_number(ranks, step=3):
        trained("faulty in pieces", fsdp=True)
    trained("mended", resume=True)
    trained("other batches", resume=True, gradient_accumulation_steps=2)
    trained("apart", learning_rate=1e-3 * (1 + ranks.rank))
    return errors


@contextmanager
def no_number(ranks: Ranks, step: int) -> Iterator[None]:
    """In one step the cross-entropy of process 1 is no number."""
    stepped, losses, now = training.step, steps.losses, [0]

    def counted(run: Run, window: Window) -> None:
        now[0] = window.step + 1
        stepped(run, window)

    @contextmanager
    def faulty(models: plans.Models, batch: Any) -> Iterator[Losses]:
        factor = torch.nan if (ranks.rank, now[0]) == (1, step) else 1.0
        with losses(models, batch) as found:
            yield replace(found, answers=factor * found.answers)

    training.step, steps.losses = counted, faulty
    try:
        yield
    finally:
        training.step, steps.losses = stepped, losses


def _process(rank: int, folder: Path, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    os.environ["RANK"] = str(rank)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=SIZE,
        timeout=timedelta(seconds=PATIENCE),
    )
    with parallel.joined() as ranks:
        torch.save(work(ranks, *args), folder / f"{rank}.pt")
    dist.destroy_process_group()


def spawn(folder: Path, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What each of two joined processes returns."""
    folder.mkdir()
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_process, args=(rank, folder, work, args), daemon=True)
        for rank in range(SIZE)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=4 * PATIENCE)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0] * SIZE
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(SIZE)]


# ---------------------------------------------------------------------------- as users start it


def launched(*command: str, **extra: str) -> subprocess.Popen[str]:
    """A command with this process's modules; OMP_NUM_THREADS silences a remark of torchrun's."""
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **extra}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *command], env=environment, text=True, **pipes)


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])
