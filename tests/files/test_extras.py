"""Without an extra's packages a verb ends in one line that names the extra; training needs none."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from drivekd.data.formats import hub
from drivekd.distill.saving import log
from drivekd.files import extras

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def without(extra: str, *command: str) -> subprocess.CompletedProcess[str]:
    """A command of drivekd in a process that cannot import what an extra brings."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({extras.EXTRAS[extra]})); "
        f"sys.argv[1:] = {list(command)}; from drivekd.cli.app import main; main()"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize(
    "command", [("world", "make", "--scenes", "1", "--split", "val", "--out", "w"), ("demo",)]
)
def test_the_world_needs_its_extra(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = without("world", *command)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].endswith("not found: pip install 'drivekd[world]'")
    assert "Traceback" not in done.stderr


def test_event_files_need_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert log.uses_tensorboard(None)
    assert not log.uses_tensorboard("none")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert not log.uses_tensorboard(None)
    with pytest.raises(ModuleNotFoundError, match=re.escape("drivekd[tensorboard]")):
        log.uses_tensorboard("tensorboard")


def test_datasets_need_their_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape("drivekd[hub]")):
        list(hub._rows("nobody/nothing", None, "train", True, "nobody/nothing"))


def test_other_absent_modules_are_not_explained_away() -> None:
    assert extras.advice(ModuleNotFoundError("x", name="nonsense")) is None
    assert "[world]" in str(extras.advice(ModuleNotFoundError("x", name="highway_env.road")))


def test_every_extra_is_declared_and_installed_for_development() -> None:
    declared = PROJECT["optional-dependencies"]
    assert set(extras.EXTRAS) <= set(declared)
    (everything,) = (line for line in declared["dev"] if line.startswith("drivekd["))
    assert set(re.findall(r"\w+", everything)) - {"drivekd"} == set(extras.EXTRAS)


def test_training_needs_no_extra() -> None:
    """All modules that a training imports, in a process without any optional package."""
    absent = [module for held in extras.EXTRAS.values() for module in held]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent})); "
        "import drivekd; [getattr(drivekd, name) for name in drivekd.__all__]; "
        "import drivekd.distill.targets.filling, drivekd.data.convert, drivekd.study.prestudy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
