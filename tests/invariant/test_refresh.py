"""Kept coefficients: exact where they should be, and one backward pass of the right sum between."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import runs
from drivekd.distill import plan as plans
from drivekd.distill.order import windows
from drivekd.distill.run import Run, prepare
from drivekd.distill.step import step
from drivekd.distill.train import train
from drivekd.method.combine.refresh import aged, keep, kept_factors
from drivekd.models.vlm import Vlm

#: Relative error of an update [L2] against the same sum of separate gradients in float32.
ERROR = 2e-5


def prepared(path: Path, teachers: dict[str, Vlm], /, **combine: Any) -> Run:
    train_ = {"max_grad_norm": None, "per_device_train_batch_size": 1, "max_steps": 12}
    recipe = runs.recipe(path, Path("unused"), train=train_, combine=combine)
    return prepare(plans.build(recipe, runs.tiny_student(), teachers))


def updates(run: Run, count: int) -> list[Tensor]:
    found = []
    for window in windows(run.plan.schedule.order, 0, count):
        step(run, window)
        found.append(run.update.clone())
    return found


def exactness(run: Run) -> list[float]:
    return run.totals["grad/exact"]


def test_every_step_exact_is_no_refresh(data: Path, teachers: dict[str, Vlm]) -> None:
    """R = 1, and R = 2 with a set of losses that changes at every step, bit for bit."""
    plain, one = (prepared(data, teachers, **c) for c in ({}, {"refresh": 1}))
    expected = updates(plain, 3)
    assert all(torch.equal(a, b) for a, b in zip(expected, updates(one, 3), strict=True))
    assert "grad/exact" not in one.totals
    two = prepared(data, teachers, refresh=2)
    for window, wanted in zip(windows(two.plan.schedule.order, 0, 3), expected, strict=True):
        step(two, window)
        assert torch.equal(two.update, wanted)
        two.kept["members"] = ["another"]
    assert exactness(two) == [3.0, 3.0]


@pytest.mark.parametrize("combiner", ["agp", "agp_grouped", "pcgrad"])
def test_between_exact_steps_the_kept_coefficients_are_used(
    data: Path, teachers: dict[str, Vlm], combiner: str
) -> None:
    run = prepared(data, teachers, refresh=4, combiner=combiner)
    twin = prepared(data, teachers, combiner=combiner)  # exact, brought to the same weights
    flags = []
    for window in windows(run.plan.schedule.order, 0, 9):
        for mine, theirs in zip(
            twin.plan.trained.parameters, run.plan.trained.parameters, strict=True
        ):
            mine.data.copy_(theirs.data)
        kept = dict(run.kept)
        before = exactness(run)[0] if "grad/exact" in run.totals else 0.0
        step(run, window)
        exact = exactness(run)[0] > before
        flags.append(exact)
        if exact:  # the coefficients that an exact step computes here, λ by the same memory
            step(twin, window)
            assert torch.equal(run.update, twin.update)
            assert run.memory == twin.memory
            assert run.kept["age"] == 1
            continue
        memory = {name: dict(part) for name, part in twin.memory.items()}
        step(twin, window)  # for its separate gradients, which know nothing of the kept numbers
        twin.memory.clear()
        twin.memory.update(memory)
        names = twin.plan.schedule.rows
        factors = [kept["a"].get(n, 0.0) * kept["weights"].get(n, 0.0) for n in names]
        rows = twin.unit.gradients.double() * torch.from_numpy(twin.unit.reached.any(1))[:, None]
        expected = (torch.tensor(factors).double() @ rows).float() / len(twin.unit.indices)
        assert float((run.update - expected).norm() / expected.norm()) < ERROR
        assert run.kept["a"] == kept["a"]
        assert run.memory == memory  # λ is frozen
    assert flags == [step % 4 == 0 for step in range(9)]
    progress, weights = run.totals["grad/update_dot_ce"], run.totals["lambda/planning"]
    assert (progress[1], weights[1], run.totals["grad/ce_multiplier"][1]) == (3.0, 9.0, 9.0)


def test_a_change_of_the_active_set_forces_an_exact_step(
    data: Path, teachers: dict[str, Vlm]
) -> None:
    """Samples that give a teacher no share: its coefficient and everyone's else no longer fit."""
    routed = {c: {c: 1.0} for c in runs.CAPABILITIES}
    recipe = runs.recipe(
        data, Path("unused"), data={"pack": False}, mixing=routed, combine={"refresh": 100}
    )
    run = prepare(plans.build(recipe, runs.tiny_student(), teachers))
    of = {
        name: tuple(
            i for i, e in enumerate(run.plan.schedule.encoded) if e.sample.capability == name
        )[:2]
        for name in runs.CAPABILITIES
    }
    first, other = of["planning"], of["reasoning"]
    flags = []
    for number, batches in enumerate([[first], [first], [other], [other], [first, other]]):
        before = run.totals.get("grad/exact", [0.0])[0]
        step(run, runs.window(run.plan, batches, number))
        flags.append(run.totals["grad/exact"][0] > before)
    assert flags == [True, False, True, False, True]
    assert run.kept["members"] == ["ce", "teacher/reasoning", "teacher/planning"]


def test_kept_coefficients_may_be_zero(data: Path, teachers: dict[str, Vlm]) -> None:
    """As some of TorchJD's weights are: nothing is differentiated in vain, nothing fails."""
    run = prepared(data, teachers, refresh=3)
    updates(run, 1)
    _, second, third = windows(run.plan.schedule.order, 0, 3)
    run.kept["a"] = {**run.kept["a"], "ce": 0.0}
    step(run, second)
    assert run.update.norm() > 0
    run.kept["a"] = dict.fromkeys(run.kept["a"], 0.0)
    step(run, third)
    assert run.update.norm() == 0


def test_what_is_kept_and_when() -> None:
    rows = {"ce": True, "teacher/a": True, "teacher/b": False}
    kept = keep(rows, {"ce": 2.0, "teacher/a": 1.5}, {"ce": 0.5, "teacher/a": 10.0})
    assert kept_factors({}, 3, rows) is None
    assert kept_factors(kept, 3, rows) == [1.0, 15.0, 0.0]
    assert kept_factors(aged(kept), 3, rows) == [1.0, 15.0, 0.0]
    assert kept_factors(aged(aged(kept)), 3, rows) is None
    assert kept_factors(kept, 3, {**rows, "teacher/b": True}) is None


def test_the_data_order_does_not_depend_on_it(data: Path, teachers: dict[str, Vlm]) -> None:
    one, many = (prepared(data, teachers, refresh=r) for r in (1, 4))
    assert list(windows(one.plan.schedule.order, 0, 9)) == list(
        windows(many.plan.schedule.order, 0, 9)
    )
    updates(one, 1)
    updates(many, 1)
    assert one.totals["loss/ce"] == many.totals["loss/ce"]


def test_resumed_within_a_period_is_uninterrupted(tmp_path: Path) -> None:
    data, teachers = runs.write_data(tmp_path / "data"), runs.tiny_teachers()
    settings = {"max_steps": 6, "save_steps": 2, "save_total_limit": None, "logging_steps": 3}
    changes: dict[str, Any] = {"train": settings, "combine": {"refresh": 4}}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(runs.recipe(data, whole, **changes), student=runs.tiny_student(), teachers=teachers)
    broken.mkdir()
    shutil.copytree(whole / "checkpoint-2", broken / "checkpoint-2")
    shutil.copy(whole / "log.jsonl", broken)
    recipe = runs.recipe(data, broken, **changes)
    train(recipe, resume=True, student=runs.tiny_student(), teachers=teachers)
    for name in ("final", "checkpoint-4"):
        model = f"{name}/model.safetensors"
        assert (broken / model).read_bytes() == (whole / model).read_bytes(), name
    clocks = ("seconds", "questions_per_second")
    logs = [
        [{k: v for k, v in line.items() if k not in clocks} for line in runs.lines(folder)]
        for folder in (whole, broken)
    ]
    assert logs[0] == logs[1]
    assert [line["grad/exact"] for line in logs[0]] == [pytest.approx(1 / 3)] * 2
