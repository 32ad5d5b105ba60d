"""The shadows of the refresh benchmark take the steps that `combine.refresh` would take."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from tests import runs
from tests.scripts import script

from drivekd.distill import plan as plans
from drivekd.distill.order import windows
from drivekd.distill.run import Run, prepare
from drivekd.distill.step import step


@pytest.fixture(scope="module")
def refresh() -> ModuleType:
    return script("refresh")


def ready(data: Path, every: int) -> Run:
    recipe = runs.recipe(
        data,
        Path("unused"),
        combine={"refresh": every},
        train={"max_steps": 4, "max_grad_norm": None},
        weighting={"decay": 0.5},
    )
    return prepare(plans.build(recipe, runs.tiny_student(), runs.tiny_teachers()))


def test_a_shadow_is_a_run_with_kept_coefficients(refresh: ModuleType, tmp_path: Path) -> None:
    data = runs.write_data(tmp_path, scenes=4)
    exact, kept = ready(data, 1), ready(data, 2)
    shadow = refresh.Shadow(kept.plan)
    for window in windows(exact.plan.schedule.order, 0, 2):
        step(exact, window)
        refresh.follow(shadow, exact, exact.update, window)
        step(kept, window)
    cosine = torch.cosine_similarity(kept.update.double(), exact.update.double(), dim=0)
    assert shadow.cosines == [pytest.approx(float(cosine), abs=1e-6)]
    assert float(cosine) < 1 - 1e-5  # else any shadow would do


def test_exact_steps_are_left_out(
    refresh: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh, "EVERY", (2, 4))
    found = refresh.measure(ready(runs.write_data(tmp_path, scenes=4), 1))
    assert {every: len(cosines) for every, cosines in found.items()} == {2: 2, 4: 3}
