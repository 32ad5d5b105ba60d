"""A run that is killed, stopped or interrupted goes on to be, bit for bit, the undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import children
import runs
from drivekd.distill.saving.checkpoint import latest, read_optimizer
from drivekd.distill.saving.trainer_state import read_state
from drivekd.models import vlm as vlms
from faults.conftest import STEPS, Undisturbed, go

pytestmark = pytest.mark.faults

MOMENTS = np.random.default_rng(20260128).uniform(0.02, 0.98, 20)


def assert_equal(undisturbed: Undisturbed, folder: Path) -> None:
    for name in ("final/model.safetensors", f"checkpoint-{STEPS - 4}/model.safetensors"):
        assert (folder / name).read_bytes() == (undisturbed.folder / name).read_bytes(), name
    assert runs.untimed(folder) == runs.untimed(undisturbed.folder)


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment:.2f}")
def test_killed_at_any_moment(undisturbed: Undisturbed, tmp_path: Path, moment: float) -> None:
    folder, said = tmp_path / "run", tmp_path / "said"
    recipe = undisturbed.recipe(folder)
    child = children.start(lambda: go(recipe), said)
    code = children.killed_after(child, moment * undisturbed.seconds)
    assert code in (-signal.SIGKILL, 0), said.read_text()

    found = latest(folder)
    if found is not None:  # it loads, whatever was being written at that moment
        assert vlms.load(found).model.num_parameters() > 0
        assert read_state(found).step == int(found.name.removeprefix("checkpoint-"))
        assert read_optimizer(found)["state"]

    again = children.start(lambda: go(recipe), said)
    assert children.ended(again) == 0, said.read_text()
    assert_equal(undisturbed, folder)
    assert not list(folder.glob(".*.partial"))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)], ids=["SIGTERM", "Ctrl-C"]
)
def test_asked_to_end_it_saves_and_ends(
    undisturbed: Undisturbed, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    folder, said = tmp_path / "run", tmp_path / "said"
    recipe = undisturbed.recipe(folder)
    child = children.start(lambda: go(recipe), said)
    until = time.monotonic() + 120
    while len(lines(folder)) < 3 and time.monotonic() < until:
        time.sleep(0.002)
    os.kill(child, number)
    assert children.ended(child) == code, said.read_text()
    found = latest(folder)
    assert found is not None
    reached = read_state(found).step
    assert reached >= 9
    assert f"stopped after step {reached} of {STEPS}" in said.read_text()
    assert not (folder / "final").exists()

    again = children.start(lambda: go(recipe), said)
    assert children.ended(again) == 0, said.read_text()
    assert_equal(undisturbed, folder)


def lines(folder: Path) -> list[dict[str, float]]:
    """The whole lines of a record that is being written."""
    path = folder / "log.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def test_two_runs_into_one_folder(undisturbed: Undisturbed, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recipe = undisturbed.recipe(folder)
    child = children.start(lambda: go(recipe), tmp_path / "said")
    until = time.monotonic() + 120
    while not lines(folder) and time.monotonic() < until:
        time.sleep(0.002)
    other = children.start(lambda: go(recipe), tmp_path / "refused")
    assert children.ended(other) == 1
    assert f"ValueError: {folder}" in (tmp_path / "refused").read_text().splitlines()[-1]
    assert children.ended(child) == 0
    assert_equal(undisturbed, folder)
