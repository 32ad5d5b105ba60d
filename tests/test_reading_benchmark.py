"""The benchmark of pictures read by threads, on made-up frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests import datafiles
from tests.scripts import script

from drivekd.data.sample import CAMERAS


def test_it_reads_and_trains_with_every_number_of_threads(tmp_path: Path) -> None:
    bench = script("reading")
    frames: dict[str, Any] = {}
    for number in range(2):
        names = {c: f"nuscenes/samples/{c}/{number}__{c}__1.jpg" for c in CAMERAS}
        for seed, name in enumerate(names.values()):
            datafiles.picture(tmp_path / name, 6 * number + seed)
        asked = {"planning": [{"Q": "What is safe?", "A": f"Answer {number}."}]}
        paths = {camera: f"../{name}" for camera, name in names.items()}
        frames[f"f{number}"] = {"image_paths": paths, "QA": asked}
    datafiles.write(tmp_path / "train_sample.json", {"s1": {"key_frames": frames}})
    found = bench.measure(tmp_path, steps=2, rounds=1)
    assert (found["frames"], found["size"]) == (2, (320, 180))
    for name in ("picture_ms", "step_s"):
        assert list(found[name]) == ["0", "1", "2"]
        assert all(value > 0 for value in found[name].values())
