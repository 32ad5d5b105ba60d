"""The capacity gap: what distance means, what a probe closes, who is named, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.runs import tiny_student, write_data

from drivekd.data.formats.readers import read
from drivekd.distill.teachers.teacher import freeze
from drivekd.models.encode import encode
from drivekd.models.vlm import Vlm, decoder_layers, save
from drivekd.study import capacity, tables
from drivekd.study.gap import gap


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), scenes=6)


def sharper(seed: int, **options: Any) -> Vlm:
    return tiny_student(seed=seed, initializer_range=0.2, **options)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A student, itself as a teacher, and one that is deeper and another."""
    folder = tmp_path_factory.mktemp("models")
    models = {"student": sharper(1), "same": sharper(1), "other": sharper(5, text_layers=4)}
    for name, model in models.items():
        save(model, folder / name)
    return {name: str(folder / name) for name in models}


def test_distance_is_0_from_itself_and_by_hand_from_another(data: Path) -> None:
    student, other = sharper(1), freeze(sharper(5))
    encoded = [encode(student, sample) for sample in read(data)]
    for own in gap(student, freeze(sharper(1)), encoded).values():
        assert own == pytest.approx(np.zeros(3), abs=1e-12)
    found = gap(student, other, encoded)
    assert set(found) == {"perception", "reasoning", "planning"}
    sums = {name: np.zeros((2, 3)) for name in found}
    for each in encoded:
        maps = [eager(model, each) for model in (student, other)]
        for layer, (mine, theirs) in enumerate(zip(*maps, strict=True)):
            block = [m[~each.is_image][:, each.is_image].double() for m in (mine, theirs)]
            squares = [(block[0] - block[1]).square().sum(), block[1].square().sum()]
            sums[str(each.sample.capability)][:, layer] += np.array(squares)
    for name, (far, size) in sums.items():
        assert found[name] == pytest.approx(far / size, rel=1e-5)


@torch.no_grad()
def eager(vlm: Vlm, encoded: Any) -> list[torch.Tensor]:
    """Head-averaged maps by transformers' own eager attention."""
    from drivekd.models.batch import collate, embed

    batch = collate(vlm, [encoded])
    inputs = embed(vlm, batch.input_ids, batch.is_image, encoded.images, None)
    decoder: Any = vlm.model.get_submodule("model.language_model")
    before = decoder.config._attn_implementation
    decoder.config._attn_implementation = "eager"
    try:
        found = decoder(**inputs, output_attentions=True).attentions
    finally:
        decoder.config._attn_implementation = before
    assert len(found) == len(decoder_layers(vlm))
    return [map_[0].float().mean(0) for map_ in found]


def test_a_probe_closes_the_gap_and_the_nearer_teacher_is_named(
    data: Path, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "SEEDS", 2)
    names = [places["other"], places["same"]]
    monkeypatch.chdir(data.parent)
    probes = capacity.prepare(places["student"], names, Path(data.name), steps=8)
    found = capacity.run(probes, tmp_path / "out")
    assert found == json.loads((tmp_path / "out/capacity.json").read_text())
    assert found["measured"] == {"samples": 10, "scenes": 2}
    assert found["trained"] == {"samples": 20, "scenes": 4}
    other, same = (found["candidates"][name] for name in names)
    for name in capacity.PAPER:
        assert np.shape(other[name]["after"]) == (2, 3)
        assert same[name]["distance"] == pytest.approx(0, abs=1e-12)
        assert found["advice"][name]["teacher"] == places["same"]
    # Layer 1 of the last capability's own loss moves towards the teacher that it is drawn to.
    assert other["reasoning"]["closed"]["mean"] > 0
    assert "nearest to" in tables.capacity(found) and places["other"] in tables.capacity(found)


def test_the_same_seeds_find_the_same(
    data: Path, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "SEEDS", 2)
    probes = capacity.prepare(places["student"], [places["other"]], data, steps=2)
    found = [capacity.run(probes, tmp_path / name) for name in ("one", "two")]
    assert found[0] == found[1]
    assert found[0]["advice"]["planning"]["weak"]  # there is no other


def test_weak_is_what_probes_do_not_agree_on() -> None:
    def candidate(left: list[float]) -> dict[str, Any]:
        return {"perception": {"left": left}}

    clear = capacity._advice({"a": candidate([0.5, 0.6, 0.55]), "b": candidate([0.2, 0.31, 0.24])})
    assert clear["perception"] | {"margin": 0} == {
        "teacher": "b",
        "next": "a",
        "margin": 0,
        "weak": False,
    }
    assert clear["perception"]["margin"]["mean"] == pytest.approx(0.3)
    same = capacity._advice({"a": candidate([0.5, 0.6]), "b": candidate([0.2, 0.3])})
    assert same["perception"]["weak"]  # two equal differences: how far probes differ is not known
    near = capacity._advice({"a": candidate([0.5, 0.2, 0.4]), "b": candidate([0.2, 0.5, 0.41])})
    assert near["perception"]["weak"]


def test_questions_are_held_out_by_scene_and_drawn_from_each_capability(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "MEASURED", 1)
    found = capacity.prepare("s", ["t"], data, seed=3)
    assert sorted(str(each.capability) for each in found.measured) == sorted(capacity.PAPER)
    held_out = {each.scene for each in found.measured}
    assert held_out.isdisjoint(each.scene for each in found.trained)
    assert len({each.scene for each in found.trained}) == 4
    assert len(found.trained) == 20  # what is held out and not measured is nowhere
    fewer = capacity.prepare("s", ["t"], data, max_samples=25)
    assert len(fewer.trained) < 20


def test_what_is_of_no_capability_is_left_out(
    data: Path, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "SEEDS", 2)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[0]["question_type"] = "robust_qas"
    other = data.with_name("other.jsonl")
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    probes = capacity.prepare(places["student"], [places["other"]], other, steps=1)
    assert len(probes.trained) + len(probes.measured) == 29
    assert set(capacity.run(probes, tmp_path)["candidates"][places["other"]]) == set(capacity.PAPER)


def test_what_cannot_be_held_out_is_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path, scenes=2)
    with pytest.raises(ValueError, match=r"2 scenes.*3"):
        capacity.prepare("s", ["t"], data)
    with pytest.raises(ValueError, match="twice"):
        capacity.prepare("s", ["t", "t"], data)
    data = write_data(tmp_path / "apart", scenes=3)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    kept = [rows[0], rows[6], rows[12]]  # perception, reasoning, planning: a scene each
    data.write_text("".join(json.dumps(row) + "\n" for row in kept))
    with pytest.raises(ValueError, match="capability"):
        capacity.prepare("s", ["t"], data)


def test_a_teacher_that_reads_otherwise_is_refused(
    data: Path, places: dict[str, str], tmp_path: Path
) -> None:
    save(tiny_student(family="qwen2_5_vl"), tmp_path / "qwen")
    probes = capacity.prepare(places["student"], [str(tmp_path / "qwen")], data, steps=1)
    with pytest.raises(ValueError, match="family"):
        capacity.run(probes, tmp_path / "out")
