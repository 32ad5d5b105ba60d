"""The benchmark of the store takes the same step in all arms, and writes what it measured."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from tests import runs
from tests.scripts import script


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("store")


def test_all_arms_take_the_same_step(bench: ModuleType, tmp_path: Path) -> None:
    size = bench.steps.SIZES["XS"]
    sample, updates = bench.steps.write_sample(size, tmp_path), {}
    for arm in bench.ARMS:
        take = next(iter(bench.make_steps(arm, size, sample, str(tmp_path / "store"))))
        take()
        updates[arm] = take.args[0].update
    for arm in ("stored", "given"):
        error = (updates[arm] - updates["live"]).norm() / updates["live"].norm()
        assert float(error) < 1e-2


def test_what_it_writes(
    bench: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = runs.recipe(runs.write_data(tmp_path), Path("unused"))
    models = {"student": runs.tiny_student(), "given": runs.tiny_teachers()}
    errors = bench.loss_errors(recipe, **models)
    for name, (least, most) in {
        "float32": (0, 1e-5),
        "float16": (1e-7, 1e-3),
        "uint8": (1e-5, 1e-1),
    }.items():
        assert errors[name].keys() == recipe.capabilities.keys()
        assert all(least <= each["largest"] < most for each in errors[name].values())
    monkeypatch.setattr(bench, "worlds", lambda *_: Path("unused"))
    monkeypatch.setattr(bench, "loss_errors", lambda _: errors)
    bench.main(["--size", "XS", "--rounds", "1"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["bytes"] == {"float32": 1_228_800, "float16": 614_400, "uint8": 308_000}
    assert set(line["seconds"]) == set(bench.ARMS) and min(line["seconds"].values()) > 0
    written = json.loads((tmp_path / "results/store_quick.json").read_text())
    assert {"commit", "hardware", "rounds", *line} <= written.keys()
