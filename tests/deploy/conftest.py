"""Tiny models and requests of one or several pictures, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drivekd.data.sample import CAMERAS, Sample
from drivekd.deploy.bench.workload import asked


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Sample]:
    """A question about so many pictures of noise."""
    folder = tmp_path_factory.mktemp("shown")
    for number, name in enumerate(CAMERAS):
        noise = np.random.default_rng(number).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{name}.png")

    def sample(cameras: int, question: str = "What now?") -> Sample:
        files: dict[str, Path] = {name: folder / f"{name}.png" for name in CAMERAS[:cameras]}
        return asked(files, question)

    return sample
