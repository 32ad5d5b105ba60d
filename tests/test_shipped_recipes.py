"""Every shipped recipe runs: some steps with the shipped models on a few pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import runs
from drivekd import recipe as recipes
from drivekd.distill.train import train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", recipes.shipped())
def test_a_shipped_recipe_trains(name: str, data: Path, tmp_path: Path) -> None:
    changes = [
        f"data.train={data}", f"output_dir={tmp_path}", "train.max_steps=2",
        "train.logging_steps=1", "train.report_to=none",
    ]  # fmt: skip
    recipe = recipes.load(name, changes)
    final = train(recipe)
    assert (final / "model.safetensors").is_file()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    logged = json.loads(lines[-1])
    terms = {key.rpartition("/")[2] for key in logged if key.startswith("loss/")} - {"ce"}
    assert (len(lines), terms) == (2, set(recipe.capabilities))
