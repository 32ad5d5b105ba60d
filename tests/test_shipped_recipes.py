"""Every shipped recipe runs from the command line, with the shipped models on a few pictures."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest

import runs
from drivekd import recipe as recipes
from drivekd.cli import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", recipes.shipped())
def test_a_shipped_recipe_trains(name: str, data: Path, tmp_path: Path) -> None:
    file = resources.files("drivekd") / "recipes" / f"{name}.yaml"
    changes = (f"data.train={data}", "train.logging_steps=1", "train.report_to=none")
    given = [word for change in changes for word in ("--set", change)]
    with pytest.raises(SystemExit) as ended:
        main(["train", str(file), "--max-steps", "5", "--out", str(tmp_path), *given])
    assert ended.value.code is None
    assert (tmp_path / "final" / "model.safetensors").is_file()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    logged = json.loads(lines[-1])
    terms = {key.rpartition("/")[2] for key in logged if key.startswith("loss/")} - {"ce"}
    assert (len(lines), terms) == (5, set(recipes.load(name).capabilities))
