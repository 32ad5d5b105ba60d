"""Data, models and one undisturbed run that every disturbed one is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import children
import runs
from drivekd.distill.train import train
from drivekd.recipe import Recipe

STEPS = 60


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing happened to.

    Attributes:
        recipe: the same run in another folder.
        folder: what it left.
        seconds: how long it took [s].
    """

    recipe: Callable[[Path], Recipe]
    folder: Path
    seconds: float


def go(recipe: Recipe) -> Path:
    """Run or resume, with models made anew as a new process would."""
    teachers = runs.tiny_teachers()
    return train(recipe, resume=True, student=runs.tiny_student(), teachers=teachers)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    data = runs.write_data(folder / "data")
    settings = {"max_steps": STEPS, "save_steps": 4, "logging_steps": 3}

    def recipe(out: Path) -> Recipe:
        return runs.recipe(data, out, data={"questions_per_row": 2}, train=settings)

    begun = time.monotonic()
    child = children.start(lambda: go(recipe(folder / "run")), folder / "said")
    assert children.ended(child) == 0, (folder / "said").read_text()
    return Undisturbed(recipe, folder / "run", time.monotonic() - begun)
