"""A run that was interrupted is, bit for bit, the run that was not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import runs
from drivekd.distill import train as training
from drivekd.distill.order import Window
from drivekd.distill.run import Run
from drivekd.distill.train import train
from drivekd.models.vlm import Vlm


class PulledPlugError(Exception):
    """Someone pulled the plug."""


def state_of(folder: Path) -> Any:
    """What a checkpoint's state says, apart from times and from where it lies."""

    def kept(tree: Any) -> Any:
        if isinstance(tree, list):
            return [kept(each) for each in tree]
        if isinstance(tree, dict):
            left = (*runs.CLOCKS, "seconds_per_question", "output_dir")
            return {k: kept(v) for k, v in tree.items() if k not in left}
        return tree

    return kept(json.loads((folder / "trainer_state.json").read_text()))


@pytest.mark.parametrize("saved", [2, 4])
def test_resumed_is_uninterrupted(tmp_path: Path, saved: int) -> None:
    data = runs.write_data(tmp_path / "data")
    settings = {
        "num_train_epochs": 3,  # 6 steps of 2 rows, each epoch's last one short
        "save_steps": 2,
        "save_total_limit": None,
        "logging_steps": 3,  # so that a checkpoint falls between two lines
    }
    changes = {"data": {"questions_per_row": 3}, "train": settings}
    teachers: dict[str, Vlm] = runs.tiny_teachers()

    whole = tmp_path / "whole"
    train(runs.recipe(data, whole, **changes), student=runs.tiny_student(), teachers=teachers)
    broken = tmp_path / "broken"
    broken.mkdir()
    shutil.copytree(whole / f"checkpoint-{saved}", broken / f"checkpoint-{saved}")
    shutil.copy(whole / "log.jsonl", broken)
    recipe = runs.recipe(data, broken, **changes)
    train(recipe, resume=True, student=runs.tiny_student(), teachers=teachers)

    for name in ("final/model.safetensors", "checkpoint-4/model.safetensors"):
        if saved == 2 or name.startswith("final"):
            assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
    optimizers = [
        torch.load(folder / "checkpoint-4" / "optimizer.pt", weights_only=True)["state"]
        for folder in (whole, broken)
    ]
    for number, state in optimizers[0].items():
        assert all(torch.equal(state[k], optimizers[1][number][k]) for k in state)
    assert runs.untimed(broken) == runs.untimed(whole)
    for name in ("checkpoint-4", "final"):
        assert state_of(broken / name) == state_of(whole / name)
    assert [line["step"] for line in state_of(broken / "final")["log_history"]] == [3, 6]


def test_a_run_resumed_at_an_earlier_checkpoint_leaves_no_other_branch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = runs.write_data(tmp_path / "data")
    settings = {"max_steps": 5, "save_steps": 1, "save_total_limit": None}
    recipe = runs.recipe(data, tmp_path / "run", capabilities={}, train=settings)
    final = train(recipe, student=runs.tiny_student())
    weights = (final / "model.safetensors").read_bytes()

    def stopped(run: Run, window: Window) -> None:
        raise PulledPlugError

    with monkeypatch.context() as patch:
        patch.setattr(training, "step", stopped)
        with pytest.raises(PulledPlugError):
            train(recipe, resume=final.parent / "checkpoint-2", student=runs.tiny_student())
    left = sorted(path.name for path in final.parent.iterdir() if path.is_dir())
    assert left == ["checkpoint-1", "checkpoint-2"]

    train(recipe, resume=True, student=runs.tiny_student())
    assert (final / "model.safetensors").read_bytes() == weights
    assert [line["step"] for line in runs.lines(final.parent)] == [1, 2, 3, 4, 5]
