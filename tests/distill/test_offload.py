"""Teachers that come and go give the same losses, and only one of them is there at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import runs
from drivekd.distill import plan as plans
from drivekd.distill.objective import batch_of, losses
from drivekd.distill.teachers import teacher
from drivekd.distill.train import train
from drivekd.models import offload
from drivekd.recipe import Recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy even where both ends are one device: what is left out of place has other numbers."""

    def copy(tensor: Tensor, device: torch.device) -> Tensor:
        return tensor.detach().clone().to(device)

    monkeypatch.setattr(offload, "carried", copy)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many models are on the device whenever one comes."""
    counts, now, visiting = list[int](), [0], offload.visiting

    @contextmanager
    def counted(model: nn.Module, device: torch.device | None) -> Iterator[None]:
        now[0] += device is not None
        counts.append(now[0])
        with visiting(model, device):
            yield
        now[0] -= device is not None

    monkeypatch.setattr(offload, "visiting", counted)
    monkeypatch.setattr(teacher, "visiting", counted)
    return counts


def recipe_of(data: Path, folder: Path, *, away: bool, **train: Any) -> Recipe:
    """One attention map, one state, one output distribution, each by its own teacher."""
    settings = {"offload_teachers": away, "cache_targets_gb": 0, **train}
    return runs.recipe(data, folder, capabilities=runs.three_signals(), train=settings)


@pytest.mark.usefixtures("copies")
def test_losses_are_those_of_teachers_that_stay(data: Path, there: list[int]) -> None:
    tables = []
    for away in (False, True):
        recipe = recipe_of(data, Path("unused"), away=away, cache_features_gb=0)
        plan = plans.build(recipe, runs.tiny_student(), runs.tiny_teachers())
        assert [each.device is not None for each in plan.models.teachers] == [away] * 3
        there.clear()
        for indices in (range(5), range(5, 15)):
            with losses(plan.models, batch_of(plan, runs.rows(plan, indices))) as found:
                tables.append(found.table())
        assert there == ([1] * 6 if away else [])
    assert all(map(torch.equal, tables[:2], tables[2:]))


@pytest.mark.usefixtures("copies")
def test_a_run_is_that_of_teachers_that_stay(data: Path, tmp_path: Path, there: list[int]) -> None:
    found = []
    for away in (False, True):
        recipe = recipe_of(data, tmp_path / str(away), away=away, max_steps=3)
        student = runs.tiny_student()
        train(recipe, student=student, teachers=runs.tiny_teachers())
        found.append(student.model.state_dict())
    assert max(there) == 1
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_on_a_gpu_there_is_room_for_one(data: Path, device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("needs DRIVEKD_TEST_DEVICE=cuda")
    peaks, tables = [], []
    for away in (False, True):
        teachers = runs.tiny_teachers(text_hidden=512, heads=8)
        size = sum(p.nbytes for p in teachers["tiny:planning"].model.parameters())
        student = runs.tiny_student()
        for vlm in (student, *teachers.values()):
            vlm.model.to(device)
        recipe = recipe_of(data, Path("unused"), away=away)
        plan = plans.build(recipe, student, teachers)
        plans.fill_caches(plan)
        torch.cuda.reset_peak_memory_stats()
        batch = batch_of(plan, runs.rows(plan, range(5)))
        targets = partial(teacher.targets, plan.models.teachers)
        targets(batch, teacher.text_rows(batch))
        peaks.append(torch.cuda.max_memory_allocated())
        with losses(plan.models, batch) as found:
            tables.append(found.table())
        del plan, teachers, targets, found
    assert peaks[0] - peaks[1] > size  # three there, or one and the head of another
    assert torch.equal(*tables)
