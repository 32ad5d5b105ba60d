"""Training from stored attention is training with live teachers, and needs none of them."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import ranks
import runs
from drivekd.cli import app
from drivekd.distill import plan as plans
from drivekd.distill.objective import batch_of, losses
from drivekd.distill.plan import Plan
from drivekd.distill.processes.parallel import ALONE
from drivekd.distill.targets import store
from drivekd.distill.targets.filling import fill
from drivekd.distill.teachers import teacher
from drivekd.distill.train import train
from drivekd.files.lock import locked
from drivekd.models import features
from drivekd.models import vlm as vlms
from drivekd.models.vlm import Vlm
from drivekd.recipe import Recipe, to_yaml

#: Relative error of a loss by the type of stored numbers; float32 differs by rounding.
ERROR = {"float32": 1e-5, "float16": 1e-3, "uint8": 2e-2}

LAYERS = {"perception": "first", "reasoning": "1..penultimate", "planning": "penultimate"}
SIGNALS = {"perception": "text_to_vision", "reasoning": "full", "planning": "text_to_vision"}


def recipe(data: Path, out: Path, folder: Path | None, /, **changes: Any) -> Recipe:
    """A run of `runs.recipe` with a store, if one is given."""
    stored = {} if folder is None else {"dir": str(folder), **changes.pop("cache", {})}
    return runs.recipe(data, out, cache=stored, **changes)


def built(given: Recipe, student: Vlm | None = None) -> Plan:
    return plans.build(given, student or runs.tiny_student(), runs.tiny_teachers())


def term_losses(plan: Plan, indices: range) -> torch.Tensor:
    """All losses of teachers [K, S] of these samples in one batch."""
    with losses(plan.models, batch_of(plan, runs.rows(plan, indices))) as found:
        return torch.stack(found.terms).detach()


# --------------------------------------------------------------------------------- same losses


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("family", [{"family": "internvl"}, {"family": "qwen2_5_vl"}], ids=str)
def test_stored_is_live(family: dict[str, Any], dtype: str, data: Path, tmp_path: Path) -> None:
    family = {"image_size": 48, **family}
    student, teachers = runs.tiny_student(**family), runs.tiny_teachers(**family)
    for pack in (True, False):
        given = recipe(data, Path("o"), tmp_path, cache={"dtype": dtype}, data={"pack": pack})
        stored = plans.build(given, student, teachers)
        live = plans.build(recipe(data, Path("o"), None, data={"pack": pack}), student, teachers)
        assert (len(stored.models.teachers), len(live.models.teachers)) == (0, 3)
        found, wanted = (term_losses(plan, range(20)) for plan in (stored, live))
        error = ((found - wanted).abs() / wanted).max()
        assert error < ERROR[dtype]
        assert dtype == "float32" or error > 0.01 * ERROR[dtype]
    assert len(list(tmp_path.glob("shard-*"))) == 1  # the second plan found everything


def test_exchanged_targets_are_exchanged_from_the_store_too(data: Path, tmp_path: Path) -> None:
    given = recipe(data, Path("o"), tmp_path, cache={"dtype": "float32"}, data={"mismatch": True})
    stored, live = built(given), built(recipe(data, Path("o"), None, data={"mismatch": True}))
    found, wanted = (term_losses(plan, range(20)) for plan in (stored, live))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
    straight = term_losses(
        built(recipe(data, Path("o"), tmp_path, cache={"dtype": "float32"})), range(20)
    )
    assert float((found - straight).abs().max()) > 1e-4


# ------------------------------------------------------------------------------------ no teachers


@pytest.fixture(scope="module")
def capabilities(teachers: dict[str, Vlm], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Teachers that lie on disk."""
    folder, found = tmp_path_factory.mktemp("teachers"), {}
    for name, layers in LAYERS.items():
        vlms.save(teachers[f"tiny:{name}"], folder / name)
        at = {"teacher": str(folder / name)}
        found[name] = runs.capability(name, layers, SIGNALS[name], **at)
    return found


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The teachers that are loaded from here on."""
    load, seen = teacher.load, []

    def noted(source: str, *args: Any, **options: Any) -> Vlm:
        seen.append(Path(source).name)
        return load(source, *args, **options)

    monkeypatch.setattr(teacher, "load", noted)
    return seen


def test_a_run_from_a_full_store_loads_no_teacher(
    data: Path, capabilities: Any, loaded: list[str], tmp_path: Path
) -> None:
    settings = {"max_steps": 4, "save_steps": 2}

    def trained(name: str, cache: str | None, *, resume: bool = False) -> Path:
        given = recipe(
            data,
            tmp_path / name,
            tmp_path / cache if cache else None,
            train=settings,
            capabilities=capabilities,
        )
        return train(given, student=runs.tiny_student(), resume=resume) / "model.safetensors"

    filling = trained("filling", "store").read_bytes()
    assert loaded == list(LAYERS)
    reading = trained("reading", "store")
    assert loaded == list(LAYERS)
    assert reading.read_bytes() == filling

    (tmp_path / "broken").mkdir()
    shutil.copytree(tmp_path / "filling/checkpoint-2", tmp_path / "broken/checkpoint-2")
    shutil.copy(tmp_path / "filling/log.jsonl", tmp_path / "broken")
    shutil.move(tmp_path / "store", tmp_path / "moved")
    assert trained("broken", "moved", resume=True).read_bytes() == filling
    assert loaded == list(LAYERS)

    state = json.loads((reading.parent / "trainer_state.json").read_text())
    trained("live", None)
    live = json.loads((tmp_path / "live/final/trainer_state.json").read_text())
    assert state["teachers"] == live["teachers"]  # so a run may go on without its store
    logs = (runs.lines(tmp_path / name) for name in ("reading", "live"))
    for one, other in zip(*logs, strict=True):
        for name in (name for name in other if name.startswith("loss/")):
            assert one[name] == pytest.approx(other[name], rel=1e-3), name


def test_a_teacher_that_is_gone_or_moved_is_not_missed(
    data: Path, capabilities: Any, loaded: list[str], tmp_path: Path
) -> None:
    there = {name: dict(each) for name, each in capabilities.items()}
    for name, each in there.items():
        each["teacher"] = str(shutil.copytree(each["teacher"], tmp_path / "old" / name))
    fill(recipe(data, Path("o"), tmp_path / "s", capabilities=there), student=runs.tiny_student())
    loaded.clear()
    shutil.move(tmp_path / "old", tmp_path / "new")
    fill(recipe(data, Path("o"), tmp_path / "s", capabilities=there), student=runs.tiny_student())
    for name, each in there.items():
        each["teacher"] = str(tmp_path / "new" / name)
    fill(recipe(data, Path("o"), tmp_path / "s", capabilities=there), student=runs.tiny_student())
    assert loaded == []


def test_the_command_fills_what_training_then_reads(
    data: Path,
    capabilities: Any,
    loaded: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    vlms.save(runs.tiny_student(), tmp_path / "student")
    given = recipe(
        data, tmp_path / "run", None, capabilities=capabilities, train={"max_steps": 1}
    ).model_copy(update={"student": str(tmp_path / "student")})
    (tmp_path / "r.yaml").write_text(to_yaml(given))
    for verb, more in (("cache", "--out={0}"), ("train", "--set=cache.dir={0}")):
        with pytest.raises(SystemExit) as ended:
            app.main([verb, str(tmp_path / "r.yaml"), more.format(tmp_path / "targets")])
        assert not ended.value.code, capsys.readouterr().err
    said = capsys.readouterr().out.splitlines()
    assert (said[0], said[-1]) == (str(tmp_path / "targets"), str(tmp_path / "run/final"))
    assert loaded == list(LAYERS)


def test_a_run_that_fills_sees_as_one_that_finds_the_store_full(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its visual tokens are made in the order that resuming keeps, not in that of filling."""
    runs_of_the_tower: list[int] = []
    make = features.image_features

    def counted(vlm: Vlm, paths: Any, *more: Any) -> Any:
        runs_of_the_tower.append(len(paths))
        return make(vlm, paths, *more)

    monkeypatch.setattr(features, "image_features", counted)
    student = runs.tiny_student()
    teachers = {f"tiny:{name}": runs.tiny_student(9, text_layers=4) for name in runs.CAPABILITIES}
    for each in teachers.values():
        for mine, theirs in zip(vlms.vision_parts(each), vlms.vision_parts(student), strict=True):
            mine.load_state_dict(theirs.state_dict())
    found = []
    for _ in range(2):
        plan = plans.build(recipe(data, tmp_path / "run", tmp_path / "targets"), student, teachers)
        runs_of_the_tower.clear()
        plans.fill_caches(plan)
        found.append(list(runs_of_the_tower))
    assert found[0] == found[1] != []


# --------------------------------------------------------------------------- what is refused


@pytest.fixture(scope="module")
def full(data: Path, capabilities: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of all samples."""
    given = recipe(data, Path("o"), tmp_path_factory.mktemp("full"), capabilities=capabilities)
    return fill(given, student=runs.tiny_student())


def other_template(student: Vlm) -> Vlm:
    tokenizer = copy.deepcopy(student.tokenizer)
    tokenizer.chat_template = f"{tokenizer.chat_template}{{# other #}}"
    return replace(student, tokenizer=tokenizer)


def other_colours(student: Vlm) -> Vlm:
    processor = copy.deepcopy(student.image_processor)
    processor.image_mean = [0.1, 0.2, 0.3]
    return replace(student, image_processor=processor)


@pytest.mark.parametrize(
    ("changes", "student", "said"),
    [
        ({"planning": {"student_layers": "last"}}, None, r"planning.layers.3: none there, \[4\]"),
        ({"planning": {"signal": "full"}}, None, "planning.signal: text_to_vision there, full"),
        ({"train": {"bf16": True}}, None, "dtype: float32 there, bfloat16 here"),
        ({"cache": {"dtype": "uint8"}}, None, "dtype: float16 there, uint8 here"),
        ({}, other_template, r"reader.template: \w{12} there"),
        ({}, other_colours, r"reader.image_processor: \w{12} there"),
    ],
)
def test_other_targets_are_refused_without_loading_a_teacher(
    full: Path,
    data: Path,
    capabilities: Any,
    loaded: list[str],
    changes: dict[str, Any],
    student: Callable[[Vlm], Vlm] | None,
    said: str,
) -> None:
    parts = {key: each for key, each in changes.items() if key in ("train", "cache")}
    of = {name: {**each, **changes.get(name, {})} for name, each in capabilities.items()}
    given = recipe(data, Path("o"), full, capabilities=of, **parts)
    mine = (student or (lambda same: same))(runs.tiny_student())
    with pytest.raises(ValueError, match=said) as caught:
        plans.build(given, mine)
    assert "\n" not in str(caught.value)
    assert loaded == []


def test_other_weights_are_refused(
    full: Path, data: Path, capabilities: Any, tmp_path: Path
) -> None:
    vlms.save(runs.tiny_student(seed=99, text_layers=4), tmp_path / "other")
    of = {
        **capabilities,
        "planning": {**capabilities["planning"], "teacher": str(tmp_path / "other")},
    }
    with pytest.raises(ValueError, match=r"planning\.teacher\.sha256: \w{12} .*\w{12}"):
        plans.build(recipe(data, Path("o"), full, capabilities=of), runs.tiny_student())


def test_replaced_pictures_are_refused_by_name(
    full: Path, capabilities: Any, loaded: list[str], tmp_path: Path
) -> None:
    """Other bytes under the old name and of the old size, as BMP and raw frames always are."""
    data = runs.write_data(tmp_path, scenes=4)
    store_ = shutil.copytree(full, tmp_path / "store")
    given = recipe(data, Path("o"), store_, capabilities=capabilities)
    plans.build(given, runs.tiny_student())  # another file with the same samples
    here = tmp_path / "here"
    given = recipe(data, Path("o"), here, capabilities=capabilities)
    fill(given, student=runs.tiny_student())
    loaded.clear()
    turned(tmp_path / "3_CAM_BACK.png")
    with pytest.raises(ValueError, match=r"replaced.*3_CAM_BACK.png.*old ones back.*delete"):
        plans.build(given, runs.tiny_student())
    assert loaded == []


def turned(picture: Path) -> None:
    """Put other bytes of the same length in the place of a picture, as of the same time."""
    about, old = picture.stat(), picture.read_bytes()
    Image.open(picture).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(picture, compress_level=0)
    new = picture.read_bytes()
    size = max(len(old), len(new))
    assert new != old
    picture.write_bytes(new.ljust(size, b"\0"))
    os.utime(picture, ns=(about.st_atime_ns, about.st_mtime_ns))


def test_pictures_of_one_name_and_size_have_a_map_each(data: Path, tmp_path: Path) -> None:
    """Two scenes whose pictures are `front.bmp` in folders of their own, all of one size."""
    text = data.read_text()
    for scene in range(4):
        for camera in runs.CAMERAS:
            folder = tmp_path / str(scene) / camera
            folder.mkdir(parents=True)
            Image.open(data.parent / f"{scene}_{camera}.png").save(folder / "front.bmp")
            text = text.replace(f"{scene}_{camera}.png", f"{scene}/{camera}/front.bmp")
    (tmp_path / "bmp.jsonl").write_text(text)
    options = {"cache": {"dtype": "float32"}}
    stored = built(recipe(tmp_path / "bmp.jsonl", Path("o"), tmp_path / "store", **options))
    live = built(recipe(tmp_path / "bmp.jsonl", Path("o"), None))
    found, wanted = (term_losses(plan, range(20)) for plan in (stored, live))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)


def test_a_store_of_one_file_is_extended_by_another_with_the_same_ids(
    tmp_path: Path, asked: list[int]
) -> None:
    """Files without ids count from 1; an interrupted `cache` over both goes on, too."""
    files = []
    for first in (0, 2):
        file = runs.write_data(tmp_path / str(first), scenes=2, first=first)
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for number, row in enumerate(rows, start=1):
            row["id"] = f"{number}"
            row["images"] = [f"{first}/{name}" for name in row["images"]]
        files.append(tmp_path / f"{first}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = built(recipe(files[0], Path("o"), tmp_path / "store"))
    assert sum(asked) == len(one.schedule.encoded) == 10
    both = {"train": [str(file) for file in files]}
    plan = built(recipe(files[0], Path("o"), tmp_path / "store", data=both))
    assert sum(asked) == len(plan.schedule.encoded) == 20
    built(recipe(files[1], Path("o"), tmp_path / "store"))
    assert sum(asked) == 20


def test_teachers_see_the_missing_samples_of_a_row_in_one_pass(
    data: Path, tmp_path: Path, asked: list[int]
) -> None:
    built(recipe(data, Path("o"), tmp_path, data={"questions_per_row": 2}))
    assert asked == [5] * 4


def test_a_store_without_its_manifest_is_refused(
    full: Path, data: Path, capabilities: Any, tmp_path: Path
) -> None:
    shutil.copytree(full, tmp_path / "bare")
    (tmp_path / "bare" / store.MANIFEST).unlink()
    given = recipe(data, Path("o"), tmp_path / "bare", capabilities=capabilities)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        plans.build(given, runs.tiny_student())


def test_a_store_that_would_grow_too_large_is_refused(data: Path, tmp_path: Path) -> None:
    said = r"GB as float32 .* more than cache.max_gb = 1e-06; .* uint8 \(.* GB\) or fewer samples"
    with pytest.raises(ValueError, match=said):
        built(recipe(data, Path("o"), tmp_path, cache={"dtype": "float32", "max_gb": 1e-6}))
    assert not list(tmp_path.glob("*.*s*"))


def test_the_size_is_told_and_is_what_is_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built(recipe(data, Path("o"), tmp_path, cache={"dtype": "uint8"}))
    told = re.search(r"on 20 samples takes ([\d.e-]+) GB as uint8", capsys.readouterr().err)
    (shard,) = tmp_path.glob("shard-*")
    kept = sum(tensor.nbytes for tensor in load_file(shard).values())
    assert told is not None
    assert float(told[1]) == pytest.approx(kept / 1e9, rel=5e-3)


def test_nothing_to_store_is_said(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cache\.dir.*--out"):
        fill(recipe(data, Path("o"), None))
    with pytest.raises(ValueError, match="no capabilities"):
        fill(recipe(data, Path("o"), tmp_path, capabilities={}))


# ------------------------------------------------------------------------------ interruptions


class PulledPlugError(Exception):
    """Someone pulled the plug."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples the teachers saw, pass by pass; every row is a shard."""
    live, seen = teacher.targets, []

    def counted(teachers: Any, batch: Any, rows: Any) -> Any:
        seen.append(len(batch.samples))
        return live(teachers, batch, rows)

    monkeypatch.setattr(teacher, "targets", counted)
    monkeypatch.setattr(store, "SHARD_BYTES", 1)
    return seen


def test_interrupted_filling_goes_on(
    data: Path, tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, write = recipe(data, Path("o"), tmp_path), store.write_shard

    def pulled(*args: Any) -> Path:
        if len(list(tmp_path.glob("shard-*"))) == 2:
            (tmp_path / ".shard-half.safetensors.partial").touch()
            raise PulledPlugError
        return write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_shard", pulled)
        with pytest.raises(PulledPlugError):
            built(given)
    assert asked == [5, 5, 5]
    plan = built(given)
    assert asked == [5] * 5
    assert len(list(tmp_path.glob("shard-*"))) == 4
    assert not list(tmp_path.glob(".*.partial"))
    term_losses(plan, range(20))
    assert asked == [5] * 5

    damaged = next(tmp_path.glob("shard-*"))
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(ValueError, match=damaged.name):
        built(given)
    damaged.unlink()
    torch.testing.assert_close(term_losses(built(given), range(20)), term_losses(plan, range(20)))
    assert asked == [5] * 6


def test_more_samples_are_added(data: Path, tmp_path: Path, asked: list[int]) -> None:
    cut = {"max_samples": 13}
    first = built(recipe(data, Path("o"), tmp_path, data=cut))
    whole = built(recipe(data, Path("o"), tmp_path))
    assert sum(asked) == len(whole.schedule.encoded) == 20
    taught = partial(teacher.targets, built(recipe(data, Path("o"), None)).models.teachers)
    live = replace(whole, models=replace(whole.models, targets=taught))
    error = term_losses(whole, range(20)) / term_losses(live, range(20)) - 1
    assert float(error.abs().max()) < ERROR["float16"]
    assert len(first.schedule.encoded) == 13


def test_one_writer_at_a_time(data: Path, tmp_path: Path) -> None:
    given = recipe(data, Path("o"), tmp_path)
    with locked(tmp_path), pytest.raises(ValueError, match="in use"):
        built(given)
    wanted = term_losses(built(given), range(20))
    with locked(tmp_path):  # readers need no lock
        assert torch.equal(term_losses(built(given), range(20)), wanted)


def test_two_processes_fill_and_read_one_store(data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "store"
    found = ranks.spawn(tmp_path / "here", ranks.in_store, data, cache)
    wrote = [set(each["wrote"]) for each in found]
    assert [len(each) for each in wrote] == [2, 2] and not wrote[0] & wrote[1]
    alone = ranks.stepped_from_store(data, cache, ALONE)
    for each in found:
        error = (each["weights"] - alone["weights"]).norm() / alone["weights"].norm()
        assert float(error) < 1e-6
