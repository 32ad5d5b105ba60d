"""How rows come to a step: whatever is switched, the run stays the same function of its seed."""

from __future__ import annotations

import json
import shutil
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import pytest

import runs
from drivekd.distill import plan as plans
from drivekd.distill import reading
from drivekd.distill.targets.cache import TargetCache
from drivekd.distill.train import train
from drivekd.models import images
from drivekd.models.vlm import Vlm

MIXTURE = {"perception": 1, "reasoning": 2, "planning": 1}

#: Pictures are read at every visit: nothing keeps what the models see.
UNKEPT = {"cache_features_gb": 0, "cache_targets_gb": 0, "max_steps": 3}


def weights(final: Path) -> bytes:
    return (final / "model.safetensors").read_bytes()


def trained(data: Path, folder: Path, teachers: Any = None, /, **changes: Any) -> Path:
    changes = {"capabilities": {}, **changes} if teachers is None else changes
    recipe = runs.recipe(data, folder, **changes)
    return train(recipe, student=runs.tiny_student(), teachers=teachers)


@pytest.mark.parametrize("saved", [2, 12])
def test_a_mixture_by_length_is_resumed_bit_by_bit(tmp_path: Path, data: Path, saved: int) -> None:
    settings = {
        "group_by_length": True,
        "per_device_train_batch_size": 2,
        "max_steps": 14,  # of 10 an epoch
        "save_steps": 2,
        "save_total_limit": None,
    }
    changes: dict[str, Any] = {"data": {"pack": False, "mixture": MIXTURE}, "train": settings}
    whole = trained(data, tmp_path / "whole", **changes)
    broken = tmp_path / "broken"
    shutil.copytree(whole.parent / f"checkpoint-{saved}", broken / f"checkpoint-{saved}")
    recipe = runs.recipe(data, broken, capabilities={}, **changes)
    final = train(recipe, resume=True, student=runs.tiny_student())
    assert weights(final) == weights(whole)
    assert runs.untimed(broken) == runs.untimed(whole.parent)
    assert 0 < json.loads((broken / "run.json").read_text())["padding"] < 0.5

    other = {**changes, "data": {"pack": False, "mixture": {**MIXTURE, "planning": 3}}}
    with pytest.raises(ValueError, match=r"data\.mixture\.planning: 1\.0 .*3\.0"):
        train(
            runs.recipe(data, broken, capabilities={}, **other),
            resume=True,
            student=runs.tiny_student(),
        )


def test_samples_without_a_share_are_named(tmp_path: Path, data: Path) -> None:
    shares = {"perception": 1, "reasoning": 2}
    with pytest.raises(ValueError, match=r"s0q2 \(planning\), .*data\.mixture"):
        trained(data, tmp_path, data={"pack": False, "mixture": shares})


def test_teachers_run_once_on_questions_that_a_mixture_repeats(
    tmp_path: Path, data: Path, teachers: dict[str, Vlm]
) -> None:
    mixture = {"pack": False, "mixture": {**MIXTURE, "reasoning": 20}}
    recipe = runs.recipe(data, tmp_path, data=mixture, train={"num_train_epochs": 1})
    plan = plans.build(recipe, runs.tiny_student(), teachers)
    assert isinstance(plan.models.targets, TargetCache)


@pytest.mark.parametrize("trainable", ["language_model", "everything"])
def test_threads_that_read_pictures_change_no_bit(
    tmp_path: Path, data: Path, teachers: dict[str, Vlm], trainable: str
) -> None:
    one, other = (
        trained(
            data,
            tmp_path / str(count),
            teachers,
            train={**UNKEPT, "trainable": trainable, "dataloader_num_workers": count},
        )
        for count in (0, 2)
    )
    assert weights(one) == weights(other)
    assert runs.untimed(one.parent) == runs.untimed(other.parent)
    assert not [t for t in threading.enumerate() if t.name.startswith("pictures")]


def test_the_threads_make_all_pictures_that_steps_read(
    tmp_path: Path, data: Path, teachers: dict[str, Vlm], monkeypatch: pytest.MonkeyPatch
) -> None:
    here: list[str] = []
    real = images.processed

    def noted(*args: Any) -> images.Processed:
        here.append(threading.current_thread().name)
        return real(*args)

    monkeypatch.setattr(images, "processed", noted)  # what `pixels` calls itself
    for count, kept in ((2, UNKEPT), (2, {"max_steps": 1}), (0, UNKEPT)):
        settings = {**kept, "dataloader_num_workers": count}
        trained(data, tmp_path / f"{count} {len(kept)}", teachers, train=settings)
        assert bool(here) == (count == 0)


@pytest.mark.parametrize("kept", [True, False])
def test_a_broken_picture_is_told_as_without_threads(
    tmp_path: Path, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = runs.write_data(tmp_path / "data")
    (tmp_path / "data" / "1_CAM_BACK.png").write_bytes(b"no picture")
    said = []
    for count in (0, 2):
        settings = {**({} if kept else UNKEPT), "dataloader_num_workers": count}
        with pytest.raises(ValueError, match=r"1_CAM_BACK\.png") as caught:
            trained(data, tmp_path / f"{count}", train=settings)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert said[0].startswith("step ") != kept


def test_models_that_keep_what_they_see_need_no_threads_while_steps_run(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        reading, "ahead", lambda items, wanted, n: asked.append(n) or nullcontext(items)
    )
    for kept in ({}, UNKEPT):
        settings = {"max_steps": 1, **kept, "dataloader_num_workers": 2}
        trained(data, tmp_path / str(len(kept)), train=settings)
    assert asked == [0, 2]


def test_a_hugging_face_dataset_trains_the_same_student(tmp_path: Path, data: Path) -> None:
    """Parquet with embedded pictures, streamed, against the JSONL file it was made of."""
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows:
        row["images"] = [
            {"bytes": (data.parent / name).read_bytes(), "path": name} for name in row["images"]
        ]
    table = datasets.Dataset.from_list(rows)
    table = table.cast_column("images", datasets.List(datasets.Image()))
    (tmp_path / "set").mkdir()
    table.to_parquet(str(tmp_path / "set" / "train.parquet"))

    settings = {"max_steps": 3}
    expected = trained(data, tmp_path / "file", train=settings)
    source = {"train": {"path": str(tmp_path / "set")}}
    found = trained(data, tmp_path / "set run", data=source, train=settings)
    assert weights(found) == weights(expected)
    assert len(list((found.parent / "pictures").iterdir())) == 4 * len(runs.CAMERAS)
    recipe = runs.recipe(data, found.parent, capabilities={}, data=source, train=settings)
    assert train(recipe, resume=True, student=runs.tiny_student()) == found
