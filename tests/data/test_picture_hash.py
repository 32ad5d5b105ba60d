from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datafiles import bomb, picture
from drivekd.data.check.picture_hash import inspect, nearest


def test_distances_equal_a_plain_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the comparison needs several blocks."""
    monkeypatch.setattr("drivekd.data.check.picture_hash._BLOCK", 40)
    rng = np.random.default_rng(1)
    mine, others = (rng.integers(0, 2**63, (n, 4)).astype(np.uint64) for n in (23, 7))
    others[3] = mine[5] ^ np.array([1, 0, 3, 0], np.uint64)
    found = list(nearest(mine, others))
    for index, hash_ in enumerate(mine):
        bits = [sum(int(a ^ b).bit_count() for a, b in zip(hash_, o, strict=True)) for o in others]
        assert found[index] == (int(np.argmin(bits)), min(bits))
    assert found[5] == (3, 3)


def test_copies_are_near_and_others_are_far(tmp_path: Path) -> None:
    first, second = (inspect(picture(tmp_path / f"{n}.jpg", n)) for n in (1, 2))
    with Image.open(tmp_path / "1.jpg") as image:
        image.resize((480, 270)).save(tmp_path / "copy.png")
    copy = inspect(tmp_path / "copy.png")
    assert isinstance(first, np.ndarray) and isinstance(second, np.ndarray)
    assert isinstance(copy, np.ndarray) and first.shape == (4,)
    assert next(nearest(copy[None], np.stack([second, first]))) == (1, pytest.approx(0, abs=12))
    assert next(nearest(second[None], first[None]))[1] > 60


def test_what_is_no_picture_says_why(tmp_path: Path) -> None:
    assert inspect(tmp_path / "gone.jpg") == "there is no such file"
    (tmp_path / "text.jpg").write_text("hello")
    assert str(inspect(tmp_path / "text.jpg")).startswith("cannot be read as an image")
    assert str(inspect(bomb(tmp_path / "bomb.png"))).startswith("holds too many pixels")
    (tmp_path / "folder.jpg").mkdir()
    assert str(inspect(tmp_path / "folder.jpg")).startswith("cannot be read as an image")


@pytest.mark.real_data
def test_frames_of_a_moving_car_are_told_apart(real_data: Path) -> None:
    """Same camera, seconds apart: only where the car stands do pictures count as the same."""
    pairs = alike = 0
    for folder in sorted((real_data / "drivelm/nuscenes/samples").iterdir()):
        for scene in ("n008", "n015"):
            hashes = [inspect(file) for file in sorted(folder.glob(f"{scene}*.jpg"))]
            for i, one in enumerate(hashes):
                for other in hashes[i + 1 :]:
                    assert isinstance(one, np.ndarray) and isinstance(other, np.ndarray)
                    pairs += 1
                    alike += next(nearest(one[None], other[None]))[1] <= 12
    assert (pairs, alike) == (96, 4)
