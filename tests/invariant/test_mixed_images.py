"""Samples with and without images in one data set: those without just lack the attention term."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import runs
from drivekd.distill import plan as plans
from drivekd.distill.order import windows
from drivekd.distill.run import Run, prepare
from drivekd.distill.step import step
from drivekd.distill.targets.cache import TargetCache
from drivekd.models.batch import flat
from drivekd.models.vlm import Vlm

STEPS = 6


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes; the questions of the second one have no images."""
    path = runs.write_data(tmp_path_factory.mktemp("mixed"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["scene"] == "scene1":
            asked = row["messages"][0]
            asked["content"] = asked["content"].rpartition("<image>")[2].strip()
            del row["images"], row["cameras"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def stepped(path: Path, teachers: dict[str, Vlm], /, **changes: Any) -> tuple[Run, list[set[str]]]:
    """A run of two epochs, one scene a step, and which losses each step had."""
    train = {"per_device_train_batch_size": 1, "max_steps": STEPS, **changes.pop("train", {})}
    recipe = runs.recipe(path, Path("unused"), train=train, **changes)
    run, had = prepare(plans.build(recipe, runs.tiny_student(), teachers)), []
    for window in windows(run.plan.schedule.order, 0, STEPS):
        run.totals.clear()
        step(run, window)
        had.append({name for name in run.totals if name.startswith("loss/")})
    return run, had


def test_a_batch_without_images_has_no_text_to_vision_term(
    mixed: Path, teachers: dict[str, Vlm]
) -> None:
    run, had = stepped(mixed, teachers)
    scenes = [
        {run.plan.schedule.encoded[i].sample.scene for i in flat(window.batches)}
        for window in windows(run.plan.schedule.order, 0, STEPS)
    ]
    assert {"scene1"} in scenes
    whole = {"loss/ce", "loss/attn/perception", "loss/attn/reasoning", "loss/attn/planning"}
    for seen, names in zip(scenes, had, strict=True):
        # Without a prefix to share, each of its questions is a row: a step sees one of them.
        assert names == ({"loss/ce", "loss/attn/reasoning"} if seen == {"scene1"} else whole)


def test_kept_targets_are_live_ones_here_too(mixed: Path, teachers: dict[str, Vlm]) -> None:
    rows = {"per_device_train_batch_size": 7, "max_steps": STEPS}
    kept, _ = stepped(mixed, teachers, train=rows)
    live, _ = stepped(mixed, teachers, train={**rows, "cache_targets_gb": 0})
    assert isinstance(kept.plan.models.targets, TargetCache)
    assert not isinstance(live.plan.models.targets, TargetCache)
    assert float((kept.update - live.update).norm() / live.update.norm()) < 1e-3
    for one, other in zip(kept.plan.trained.parameters, live.plan.trained.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_packed_is_unpacked_here_too(mixed: Path, teachers: dict[str, Vlm]) -> None:
    packed, _ = stepped(mixed, teachers, train={"per_device_train_batch_size": 7, "max_steps": 1})
    changes = {"data": {"pack": False}}
    rows = {"per_device_train_batch_size": 15, "max_steps": 1}
    apart, _ = stepped(mixed, teachers, train=rows, **changes)
    assert len(packed.plan.schedule.order.rows) == 2 + 5
    assert len(apart.plan.schedule.order.rows) == 15
    for one, other in zip(
        packed.plan.trained.parameters, apart.plan.trained.parameters, strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
