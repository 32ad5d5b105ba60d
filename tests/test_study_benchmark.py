"""The study names its runs by their code, and its comparisons are those of its scores."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests.scripts import FOLDER, script


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return script("study")


def commit_of(folder: Path) -> str:
    """What a run that starts in this folder takes for its commit."""
    code = "import provenance; print(provenance.COMMIT)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(FOLDER), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_only_code_makes_a_commit_dirty(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    assert commit_of(tmp_path) == "unknown"
    git("init")
    (tmp_path / "results").mkdir()
    for name in ("code.py", "results/test_log.json"):
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    clean = commit_of(tmp_path)
    assert len(clean) == 12
    (tmp_path / "results" / "test_log.json").write_text("2")
    assert commit_of(tmp_path) == clean
    (tmp_path / "code.py").write_text("2")
    assert commit_of(tmp_path) == f"{clean}-dirty"


def test_runs_of_code_that_no_name_tells_apart_are_refused(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(study, "worlds", lambda *_: tmp_path)
    monkeypatch.setattr(study, "COMMIT", "abc")
    made = study.job("a", "drivekd", 3, tmp_path, ["train.max_steps=7"])
    assert (made.recipe.seed, made.recipe.train.max_steps) == (3, 7)
    assert made.recipe.output_dir == "out/study/abc/a"
    long = study.job("b", "ce_long", 3, tmp_path).recipe
    short = study.job("c", "ce_only", 3, tmp_path).recipe
    assert long.train.max_steps == study.LONG * short.train.max_steps
    assert not long.capabilities
    monkeypatch.setattr(study, "COMMIT", "abc-dirty")
    with pytest.raises(SystemExit, match="commit"):
        study.job("a", "drivekd", 3, tmp_path)


def test_every_choice_has_both_sides(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(study, "worlds", lambda *_: tmp_path)
    monkeypatch.setattr(study, "COMMIT", "abc")
    for choice in study.CHOICES.values():
        jobs = list(choice(range(2)))
        assert len({job.name for job in jobs}) == len(jobs)
        assert {job.recipe.seed for job in jobs} == {0, 1}
        assert len({bool(job.recipe.capabilities) for job in jobs}) == (
            2 if choice != study.strengths else 1
        )


def test_a_comparison_is_paired_by_seed(study: ModuleType) -> None:
    parts = ("perception", "reasoning", "planning", "average")
    scores = {
        f"{arm}/{seed}": dict.fromkeys(parts, base + 10.0 * seed)
        for arm, base in (("a", 5.0), ("b", 2.0))
        for seed in range(3)
    }
    found = study.compare(scores, [("a", "b")], range(3))
    assert len(found) == 4
    average = found["a - b, average"]
    assert (average["mean"], average["low"], average["p"]) == (
        3.0,
        None,
        None,
    )


def test_looks_at_the_test_scenes_add_up(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    recipe = study.arm_recipe("drivekd", tmp_path)
    other = study.arm_recipe("drivekd", tmp_path, ["train.learning_rate=1e-4"])
    seeded = study.arm_recipe("drivekd", tmp_path / "x", ["seed=4"])
    for each in (recipe, other, seeded):
        study.note_look(each)
    hashes = [look["recipe_hash"] for look in json.loads((tmp_path / "test_log.json").read_text())]
    assert hashes[0] == hashes[2] != hashes[1]
