"""A run that was interrupted is, bit for bit, the run that was not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import runs
from drivekd.distill.train import train
from drivekd.models.vlm import Vlm

TIMES = ("seconds", "questions_per_second")


def untimed(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in runs.lines(folder)]


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
    stranger = runs.tiny_student(seed=99)  # whatever it is, the checkpoint's weights count
    recipe = runs.recipe(data, broken, **changes)
    train(recipe, resume=True, student=stranger, teachers=teachers)

    for name in ("final/model.safetensors", "checkpoint-4/model.safetensors"):
        if saved == 2 or name.startswith("final"):
            assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
    optimizers = [
        torch.load(folder / "checkpoint-4" / "optimizer.pt", weights_only=True)["state"]
        for folder in (whole, broken)
    ]
    for number, state in optimizers[0].items():
        assert all(torch.equal(state[k], optimizers[1][number][k]) for k in state)
    assert untimed(broken) == untimed(whole)
