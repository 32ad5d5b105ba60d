"""How many files one reads to follow a step: a trace of a real one, with three live teachers."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import drivekd
import runs
from drivekd.distill import plan as plans
from drivekd.distill.order import windows
from drivekd.distill.run import prepare
from drivekd.distill.step import step

ROOM = Path(drivekd.__file__).parent
MOST = 12


class OptimizerReachedError(Exception):
    """Ends a step where its way ends."""


def test_the_way_from_step_to_the_optimizer_enters_few_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = runs.write_data(tmp_path / "data")
    recipe = runs.recipe(data, tmp_path / "out", train={"cache_targets_gb": 0})
    run = prepare(plans.build(recipe, runs.tiny_student(), runs.tiny_teachers()))
    plans.fill_caches(run.plan)
    window, entered = next(windows(run.plan.schedule.order, 0, 1)), set[str]()

    def reached(*_: Any) -> None:
        raise OptimizerReachedError

    def look(frame: FrameType, event: str, argument: Any) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(ROOM):
            entered.add(str(file.relative_to(ROOM)))

    monkeypatch.setattr(torch.optim.AdamW, "step", reached)
    sys.setprofile(look)
    try:
        step(run, window)
    except OptimizerReachedError:
        pass
    finally:
        sys.setprofile(None)
    assert {"distill/step.py", "method/combine/projection.py"} < entered
    assert len(run.plan.models.teachers) == 3
    assert len(entered) <= MOST, sorted(entered)
