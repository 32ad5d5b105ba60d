"""Data and teachers of small whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest

import runs
from drivekd.models.vlm import Vlm


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_data(tmp_path_factory.mktemp("data"), scenes=4)


@pytest.fixture(scope="module")
def teachers() -> dict[str, Vlm]:
    return runs.tiny_teachers()
