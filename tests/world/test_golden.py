"""One scene as it was: a change of the world that nobody meant shows here first.

`python tests/world/test_golden.py` writes the golden file anew from the world as it is now; do so
only after a change that was meant, and say in CHANGELOG what changed.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drivekd.data.sample import CAMERAS
from drivekd.world.make import make

GOLDEN = Path(__file__).parent / "golden" / "scene.npz"
SEED = 1


def made(folder: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """The golden scene of today's world: six pictures [6, 96, 96, 3] and the truth beside them."""
    make(folder, 1, "train", first=SEED, workers=1)
    views = folder / "images" / str(SEED)
    pictures = np.stack([np.asarray(Image.open(views / f"{camera}.png")) for camera in CAMERAS])
    truth = json.loads((folder / "truth" / f"{SEED}.json").read_text())
    for part in ("questions", "dense"):
        truth[part] = [[message["content"] for message in row["messages"]] for row in truth[part]]
    return pictures, truth


def assert_same(was: Any, now: Any, where: str = "truth") -> None:
    """Equal everywhere, numbers to 1e-4."""
    assert type(was) is type(now), where
    if isinstance(was, dict):
        assert list(was) == list(now), where
        for key in was:
            assert_same(was[key], now[key], f"{where}.{key}")
    elif isinstance(was, list):
        assert len(was) == len(now), where
        for place, (one, two) in enumerate(zip(was, now, strict=True)):
            assert_same(one, two, f"{where}[{place}]")
    elif isinstance(was, float):
        assert now == pytest.approx(was, abs=1e-4, rel=0), where
    else:
        assert was == now, where


def test_the_golden_scene_is_what_it_was(tmp_path: Path, renderer: object) -> None:
    assert GOLDEN.stat().st_size < 100_000
    pictures, truth = made(tmp_path)
    with np.load(GOLDEN) as golden:
        off = np.abs(golden["pictures"].astype(int) - pictures).max(-1)
        was = json.loads(golden["truth"].tobytes())
    assert (off <= 2).mean() >= 0.999
    assert_same(was, truth)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        shown, known = made(Path(scratch))
    as_bytes = np.frombuffer(json.dumps(known).encode(), np.uint8)
    np.savez_compressed(GOLDEN, pictures=shown, truth=as_bytes)
