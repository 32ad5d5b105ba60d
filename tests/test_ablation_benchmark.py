"""The ablation's arms are recipes, and its comparisons and picture are of what was scored."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from tests.scripts import script

from drivekd.data.sample import CAPABILITIES
from drivekd.demo.run import arm_recipe
from drivekd.evaluate.answers.answer import Answer
from drivekd.method.combine.projection import COMBINERS
from drivekd.recipe import shipped

SEEDS = range(2)


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    return script("ablation")


def test_every_arm_is_a_recipe(ablation: ModuleType, tmp_path: Path) -> None:
    recipes = {
        name: arm_recipe(arm, tmp_path, changes) for name, (arm, changes) in ablation.arms().items()
    }
    assert {recipe.combine.combiner for recipe in recipes.values()} >= set(COMBINERS)
    rhos = {name: {c.rho for c in each.capabilities.values()} for name, each in recipes.items()}
    assert rhos["drivekd-rho2"] == {2.0} and rhos["drivekd"] == {10.0}
    wanted = {name.partition("/")[2] for name in shipped() if name.startswith("ablations/")}
    renamed = {"agp_rho2": "drivekd-rho2"}  # the same, under another name
    assert {renamed.get(name, name) for name in wanted} - recipes.keys() <= {"blind"}


def test_only_arms_are_compared(ablation: ModuleType) -> None:
    compared = ablation.pairs()
    assert {name for pair in compared for name in pair} == ablation.arms().keys()
    assert len(set(compared)) == len(compared)


def test_the_picture_has_a_row_for_every_arm(ablation: ModuleType, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    scores = {
        f"{name}/{seed}": {part: float(random.uniform(20, 60)) for part in ablation.PARTS}
        for name in ablation.arms()
        for seed in SEEDS
    }
    ablation.draw(scores, SEEDS, tmp_path / "ablation.png")
    with Image.open(tmp_path / "ablation.png") as picture:
        assert picture.height > 10 * len(ablation.arms())


def test_arms_are_compared_over_scenes(ablation: ModuleType) -> None:
    def answers(right: int) -> list[Answer]:
        return [
            Answer(f"{s}{c}{q}", c, "t", f"s{s}", "?", "a", "a", q < right)
            for s in range(5)
            for c in CAPABILITIES
            for q in range(4)
        ]

    found = {f"{name}/{s}": answers(right) for name, right in (("a", 3), ("b", 1)) for s in SEEDS}
    compared = ablation.over_scenes(found, "a", "b", SEEDS)
    assert len(compared) == 5
    assert compared["a - b, average"] == {
        "mean": 50.0,
        "low": 50.0,
        "high": 50.0,
        "p": 0.06,  # five scenes alike tell no more
        "scenes": 5,
    }
