"""Models that are not whole, and memory that ends."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import pytest

import children
import runs
from drivekd.distill.train import train
from drivekd.models import vlm as vlms

pytestmark = pytest.mark.faults

BEFORE = r"RuntimeError: out of memory before the first step: models, AdamW's state and 1 gradients"
AT_A_STEP = (
    r"RuntimeError: step 1, samples s.*: out of memory with 2 rows of up to \d+ tokens; .*"
    r"train\.per_device_train_batch_size \(2\)"
)


def test_a_teacher_without_weights(tmp_path: Path) -> None:
    data = runs.write_data(tmp_path / "data")
    folder = tmp_path / "teacher"
    vlms.save(runs.tiny_student(seed=3), folder)
    (folder / "model.safetensors").unlink()
    raw = {"perception": runs.capability("perception", "first", "text_to_vision")}
    raw["perception"]["teacher"] = str(folder)
    with pytest.raises(ValueError, match="weights") as caught:
        train(runs.recipe(data, tmp_path / "run", capabilities=raw), student=runs.tiny_student())
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("room", "says"), [(20, BEFORE), (95, AT_A_STEP)])  # [MB]
def test_memory_that_ends_is_told_with_the_batch_and_what_to_lower(
    tmp_path: Path, room: int, says: str
) -> None:
    data = runs.write_data(tmp_path / "data", scenes=2)
    said = tmp_path / "said"
    settings = {"per_device_train_batch_size": 2, "max_steps": 2}
    recipe = runs.recipe(data, tmp_path / "run", capabilities={}, train=settings)
    student = runs.tiny_student(text_hidden=512, image_size=192)

    def starved() -> None:
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + room * 1_000_000, resource.RLIM_INFINITY))
        train(recipe, student=student)

    assert children.ended(children.start(starved, said)) == 1
    last = said.read_text().splitlines()[-1]
    assert re.match(says, last), last
    assert not list((tmp_path / "run").glob("*checkpoint*"))
