"""Frozen teachers: what they hand on, the negative control, and which of them are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from drivekd.data.formats.readers import read
from drivekd.distill.teachers import attention, states, teacher
from drivekd.distill.teachers.teacher import Teacher
from drivekd.models import vlm as vlms
from drivekd.models.batch import Batch, collate, encode, forward, rows_of
from drivekd.models.features import FeatureCache
from drivekd.recipe import Capability
from runs import capability, tiny_student, tiny_teachers, write_data

STUDENT_DEPTH, TEACHER_DEPTH = 3, 4


def use(layers: str, signal: str, **options: str) -> Capability:
    return Capability(**capability("perception", layers, signal, **options))


def terms(*uses: Capability) -> tuple[teacher.Term, ...]:
    return tuple(
        teacher.term(f"c{i}", each, STUDENT_DEPTH, TEACHER_DEPTH) for i, each in enumerate(uses)
    )


@pytest.fixture(scope="module")
def vlm() -> vlms.Vlm:
    return teacher.freeze(tiny_teachers()["tiny:perception"])


@pytest.fixture
def batch(vlm: vlms.Vlm, tmp_path: Path) -> Batch:
    samples = list(read(write_data(tmp_path, scenes=2, questions=3)))[:5]
    encoded = [encode(vlm, sample) for sample in samples]
    return collate(vlm, encoded, rows_of(encoded))


def all_maps(vlm: vlms.Vlm, batch: Batch) -> dict[int, torch.Tensor]:
    layers = vlms.decoder_layers(vlm)
    with torch.no_grad(), attention.capture(layers, dict.fromkeys(range(len(layers)))) as maps:
        forward(vlm, batch)
    return maps


def test_a_target_is_the_mean_of_the_matched_maps(vlm: vlms.Vlm, batch: Batch) -> None:
    uses = terms(use("1..penultimate", "full"), use("penultimate", "text_to_vision"))
    rows = teacher.text_rows(batch)
    found = teacher.targets([Teacher(vlm, uses, FeatureCache())], batch, rows)
    maps = all_maps(vlm, batch)
    assert uses[0].matches == {0: [0, 1], 1: [1, 2]}
    torch.testing.assert_close(found["c0"].maps[0], (maps[0] + maps[1]) / 2)
    torch.testing.assert_close(found["c0"].maps[1], (maps[1] + maps[2]) / 2)
    assert torch.equal(found["c1"].maps[1], maps[2][:, rows])


def test_a_target_of_states_is_the_mean_of_the_matched_states(vlm: vlms.Vlm, batch: Batch) -> None:
    uses = terms(use("1..penultimate", "hidden"), use("last", "hidden"))
    rows = teacher.text_rows(batch)
    found = teacher.targets([Teacher(vlm, uses, FeatureCache())], batch, rows)
    layers = vlms.decoder_layers(vlm)
    with torch.no_grad(), states.capture(layers, range(len(layers))) as all_:
        forward(vlm, batch)
    assert uses[0].matches == {0: [0, 1], 1: [1, 2]}
    torch.testing.assert_close(found["c0"].states[0], (all_[0] + all_[1])[:, rows] / 2)
    assert torch.equal(found["c1"].states[2], all_[3][:, rows])
    assert found["c0"].maps == {} and found["c0"].hidden is None
    assert not found["c0"].states[0].requires_grad


def test_a_target_of_outputs_is_the_last_state_and_the_head(vlm: vlms.Vlm, batch: Batch) -> None:
    outputs = Capability(teacher="tiny:planning", signal="logits_kl", temperature=2)
    uses = terms(outputs, use("first", "text_to_vision"), use("first", "hidden"))
    assert uses[0].matches == {} and uses[0].temperature == 2
    rows = teacher.text_rows(batch)
    found = teacher.targets([Teacher(vlm, uses, None)], batch, rows)
    with torch.no_grad():
        assert torch.equal(found["c0"].hidden, forward(vlm, batch))
    assert found["c0"].head.data_ptr() == vlms.head_weight(vlm).data_ptr()  # no copy of it
    assert (found["c0"].maps, found["c0"].states) == ({}, {})
    assert torch.equal(found["c1"].maps[0], all_maps(vlm, batch)[0][:, rows])
    assert found["c1"].hidden is None and list(found["c2"].states) == [0]


def test_only_the_rows_and_layers_that_are_used_are_computed(vlm: vlms.Vlm, batch: Batch) -> None:
    rows = teacher.text_rows(batch)
    near = terms(use("first", "text_to_vision"))
    wanted = teacher.wanted(near, rows, of_teacher=True)
    assert list(wanted) == [0]
    assert wanted[0] is rows
    mixed = terms(use("1..penultimate", "full"), use("first", "text_to_vision"))
    assert teacher.wanted(mixed, rows, of_teacher=True) == {0: None, 1: None, 2: None}
    ran: list[int] = []
    handles = [
        layer.register_forward_pre_hook(lambda *_, i=i: ran.append(i))
        for i, layer in enumerate(vlms.decoder_layers(vlm))
    ]
    found = teacher.targets([Teacher(vlm, near, None)], batch, rows)
    for handle in handles:
        handle.remove()
    assert ran == [0]
    torch.testing.assert_close(found["c0"].maps[0], all_maps(vlm, batch)[0][:, rows])
    assert not found["c0"].maps[0].requires_grad


def test_text_rows_are_those_of_any_row(batch: Batch) -> None:
    rows = teacher.text_rows(batch)
    text = batch.valid & ~batch.is_image
    assert rows.tolist() == [i for i in range(text.shape[1]) if text[:, i].any()]


def test_a_teacher_can_be_loaded_up_to_the_highest_layer_used(
    vlm: vlms.Vlm, batch: Batch, tmp_path: Path
) -> None:
    vlms.save(vlm, tmp_path / "teacher")
    uses = [use("first", "text_to_vision"), use("2", "text_to_vision")]
    named = dict(zip("ab", uses, strict=True))
    cut = teacher.load(
        str(tmp_path / "teacher"), named, device=torch.device("cpu"), dtype=torch.float32
    )
    assert len(vlms.decoder_layers(cut)) == 2
    assert teacher.depth(str(tmp_path / "teacher")) == TEACHER_DEPTH
    rows = teacher.text_rows(batch)
    found = teacher.targets([Teacher(teacher.freeze(cut), terms(*uses), None)], batch, rows)
    torch.testing.assert_close(found["c1"].maps[1], all_maps(vlm, batch)[1][:, rows])


def test_mismatched_rows_get_the_attention_of_others(vlm: vlms.Vlm, batch: Batch) -> None:
    whole = all_maps(vlm, batch)[0]
    partner = teacher._partners(batch)
    wrong = teacher.mismatched(whole, None, partner, batch.is_image)
    text = batch.valid & ~batch.is_image
    image = batch.is_image
    for row in range(len(text)):
        last = int(image[row].nonzero()[-1])
        behind = [p for p in text[row].nonzero().squeeze(1).tolist() if p > last]
        assert sorted(partner[row, behind].tolist()) == behind
        assert (partner[row, behind] != torch.tensor(behind)).all()
        for p in behind:
            other = whole[row, partner[row, p]][image[row]]
            torch.testing.assert_close(wrong[row, p][image[row]], other)
            torch.testing.assert_close(wrong[row, p][~image[row]], whole[row, p][~image[row]])
    future = torch.ones_like(whole[0], dtype=torch.bool).triu(1)
    assert (wrong[:, future] == 0).all()
    assert not torch.equal(wrong, whole)


def test_mismatched_rows_are_the_same_for_chosen_rows(vlm: vlms.Vlm, batch: Batch) -> None:
    whole, rows = all_maps(vlm, batch)[0], teacher.text_rows(batch)
    partner = teacher._partners(batch)
    few = teacher.mismatched(whole[:, rows], rows, partner, batch.is_image)
    all_ = teacher.mismatched(whole, None, partner, batch.is_image)[:, rows]
    text = (batch.valid & ~batch.is_image)[:, rows]
    torch.testing.assert_close(few[text], all_[text])


def test_identity_follows_the_weights() -> None:
    one, same, other = tiny_student(seed=5), tiny_student(seed=5), tiny_student(seed=6)
    assert teacher.identity(one)["sha256"] == teacher.identity(same)["sha256"]
    assert teacher.identity(one)["sha256"] != teacher.identity(other)["sha256"]
    assert teacher.identity(one)["dtype"] == "float32"
    assert teacher.identity(tiny_student(seed=5))["source"] == "tiny:internvl"
