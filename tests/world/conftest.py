"""One world data set and one renderer for every test of this folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivekd.world import make as making
from drivekd.world.drawing.camera import MissingLibraryError, Renderer, open_renderer, render
from drivekd.world.scene import SPLITS, Scene, make_scene

SCENES = 72
REDRAWN = 16
remembered = lru_cache(make_scene)  # scenes that are on disk need not be made again in memory


@pytest.fixture(scope="session")
def renderer(require_all: bool) -> Iterator[Renderer]:
    try:
        opened = open_renderer(96)
    except MissingLibraryError as missing:
        if require_all:
            raise
        pytest.skip(str(missing))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def world(renderer: Renderer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a data set of the train split."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "make_scene", remembered)
        making.make(folder, SCENES, "train", workers=1)
    return folder


@pytest.fixture(scope="session")
def truths(world: Path) -> list[dict[str, Any]]:
    """The ground truth of every scene of that data set, as it lies on disk."""
    seeds = range(SPLITS["train"], SPLITS["train"] + SCENES)
    return [json.loads((world / "truth" / f"{seed}.json").read_text()) for seed in seeds]


@pytest.fixture(scope="session")
def drawn(renderer: Renderer) -> list[tuple[Scene, dict[str, np.ndarray]]]:
    """The first scenes of that data set drawn anew: each with its six id maps."""
    made = [remembered(SPLITS["train"] + number) for number in range(REDRAWN)]
    return [(s, {v.camera: v.ids for v in render(renderer, s.frame)}) for s in made]
