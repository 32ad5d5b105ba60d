"""Every shipped recipe runs from the command line, with the shipped models on a few pictures.

Those for published models, which are not shipped, are run dry.
"""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

import pytest

import runs
from drivekd import recipe as recipes
from drivekd.cli.app import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_data(tmp_path_factory.mktemp("data"))


FULL_SIZE = ("internvl3_1b", "internvl3_2b", "qwen2_5_vl_3b")


@pytest.mark.parametrize("name", sorted(set(recipes.shipped()) - set(FULL_SIZE)))
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


@pytest.mark.parametrize(
    ("name", "student", "widest"),
    [
        ("internvl3_1b", "0.94 B", r"23 → 23–27 │ +5 "),
        ("internvl3_2b", "2.09 B", r"27 → 27 │ +1 "),
        ("qwen2_5_vl_3b", "3.75 B", r"35 → 27 │ +2 "),
    ],
)
def test_a_full_size_recipe_can_be_previewed(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    student: str,
    widest: str,
) -> None:
    """Without network (conftest.py) and without its data."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["train", name, "--dry-run"])
    shown = capsys.readouterr().out
    assert not end.value.code
    assert student in shown
    assert re.search(widest, shown)
    assert "1,536 visual tokens and about 200 of text" in shown
    assert "Training data missing: data/train.json." in shown
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_a_recipe_that_does_not_fit_is_a_users_mistake(
    capsys: pytest.CaptureFixture[str], no_debug: None
) -> None:
    deep = "capabilities.planning.teacher_layers=29"
    with pytest.raises(SystemExit) as end:
        main(["train", "internvl3_1b", "--set", deep, "--dry-run"])
    assert end.value.code == 2
    assert "capabilities.planning.teacher_layers" in capsys.readouterr().err
