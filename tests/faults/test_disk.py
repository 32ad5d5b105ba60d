"""A disk that is full, and what an earlier run left damaged."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import children
from drivekd.distill.saving.checkpoint import latest
from drivekd.models import vlm as vlms
from faults.conftest import STEPS, Undisturbed, go

pytestmark = pytest.mark.faults

Resize = Callable[[int], None]


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting needs permissions that this process lacks: {done.stderr.strip()}")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[tuple[Path, Resize]]:
    """A small disk in memory, and how to make it so many bytes large."""
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place))
    try:
        yield place, lambda size: mount("-o", f"remount,size={size}", str(place))
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_one_clear_line_and_harms_nothing(
    undisturbed: Undisturbed, tmp_path: Path, small: tuple[Path, Resize]
) -> None:
    disk, resize = small
    folder, said = disk / "run", tmp_path / "said"
    one = undisturbed.folder / f"checkpoint-{STEPS - 4}"
    size = sum(path.stat().st_size for path in one.iterdir())
    resize(int(1.5 * size))
    recipe = undisturbed.recipe(folder)
    assert children.ended(children.start(lambda: go(recipe), said)) == 1
    last = said.read_text().splitlines()[-1]
    assert last.startswith(f"OSError: {folder}/checkpoint-8 could not be written: ")
    assert "MiB free" in last and "No space left on device" in last

    assert [path.name for path in folder.glob("*checkpoint*")] == ["checkpoint-4"]
    found = latest(folder)
    assert found is not None
    assert vlms.load(found).model.num_parameters() > 0

    resize(6 * size)
    assert children.ended(children.start(lambda: go(recipe), said)) == 0, said.read_text()
    for name in ("final/model.safetensors", f"checkpoint-{STEPS - 4}/model.safetensors"):
        assert (folder / name).read_bytes() == (undisturbed.folder / name).read_bytes()
