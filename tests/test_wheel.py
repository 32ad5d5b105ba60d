"""The built wheel, installed elsewhere, does the main job: nothing depends on the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from drivekd.report.results import ARMS
from drivekd.world.drawing.camera import MissingLibraryError, open_renderer

ROOT = Path(__file__).resolve().parent.parent


def python(*arguments: str, cwd: Path, **environment: str) -> str:
    """Run this interpreter in another folder and return what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.timeout(400)
def test_installed_wheel_runs_the_demo(tmp_path: Path, require_all: bool) -> None:
    """`drivekd demo --max-steps 2` writes every arm's score, the page and a loadable model."""
    try:
        open_renderer(96).close()
    except MissingLibraryError as error:
        (pytest.fail if require_all else pytest.skip)(str(error))
    pip = ("-m", "pip", "--disable-pip-version-check", "--quiet")
    python(
        *pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT),
        cwd=tmp_path,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("drivekd-*.whl")
    site = tmp_path / "site"
    python(*pip, "install", "--no-deps", "--target", str(site), str(wheel), cwd=tmp_path)
    where = python(
        "-c", "import drivekd; print(drivekd.__file__)", cwd=tmp_path, PYTHONPATH=str(site)
    )
    assert Path(where.strip()).is_relative_to(site)
    out = tmp_path / "out"
    printed = python(
        "-m", "drivekd", "demo", "--max-steps", "2", "--out", str(out),
        cwd=tmp_path, PYTHONPATH=str(site),
    )  # fmt: skip
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["scores"]) == {arm.key for arm in ARMS} - {"mismatched"}
    assert set(summary["n"]) == {"perception", "reasoning", "planning"}
    assert str(out / "report.html") in printed.replace("\n", "")
    assert (out / "drivekd" / "final" / "model.safetensors").is_file()
