"""Teachers that cannot teach this student are refused, by name and place, before anything runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import runs
from drivekd.data.formats.readers import read
from drivekd.distill.teachers import agreement, teacher
from drivekd.distill.train import train
from drivekd.models import vlm as vlms
from drivekd.models.batch import encode
from drivekd.models.tiny import build_tokenizer
from drivekd.recipe import Capability

LOGITS = {"teacher": "tiny:planning", "signal": "logits_kl"}


def test_another_family_is_refused() -> None:
    one, other = runs.tiny_student(), runs.tiny_student(family="qwen2_5_vl")
    with pytest.raises(ValueError, match="one family"):
        agreement.check_agreement(one, other, "planning", [])


def test_another_tokenizer_is_refused_with_the_place(tmp_path: Path) -> None:
    student = runs.tiny_student()
    encoded = [encode(student, s) for s in read(runs.write_data(tmp_path, scenes=1))]
    merged = runs.tiny_student(tokenizer=build_tokenizer(["Which colour? red"] * 9, 420))
    with pytest.raises(ValueError, match=r"s0q0.*student"):
        agreement.check_agreement(student, merged, "planning", encoded)
    swapped = [replace(encoded[0], input_ids=encoded[0].input_ids.flip(0))]
    with pytest.raises(ValueError, match="position 0"):
        agreement.check_agreement(student, student, "planning", swapped)
    agreement.check_agreement(student, runs.tiny_student(seed=9), "planning", encoded)


def test_another_number_of_tokens_per_image_is_refused(tmp_path: Path) -> None:
    student, finer = runs.tiny_student(), runs.tiny_student(image_size=96)
    encoded = [encode(student, s) for s in read(runs.write_data(tmp_path, scenes=1))]
    with pytest.raises(ValueError, match=r"tokens.*student"):
        agreement.check_agreement(student, finer, "planning", encoded)


def test_outputs_are_compared_over_one_vocabulary_only() -> None:
    student = runs.tiny_student()
    agreement.check_outputs(student, runs.tiny_student(seed=9, text_hidden=48), "planning")
    words = build_tokenizer(["Which colour? red"] * 9, 420)
    with pytest.raises(ValueError, match=r"teacher of planning: .*\d+ token ids"):
        agreement.check_outputs(student, runs.tiny_student(tokenizer=words), "planning")
    longer = build_tokenizer([], 380)
    longer.add_tokens(["<further>"])
    shorter = runs.tiny_student(tokenizer=build_tokenizer([], 380))
    agreement.check_outputs(shorter, runs.tiny_student(tokenizer=longer), "planning")


def test_a_teacher_without_a_head_cannot_hand_on_outputs(tmp_path: Path) -> None:
    student, headless = runs.tiny_student(), runs.tiny_student(seed=9)
    headless.model.lm_head = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"teacher of planning: .*language-model head"):
        agreement.check_outputs(student, headless, "planning")


def test_a_checkpoint_without_a_head_is_not_filled_with_random_numbers(tmp_path: Path) -> None:
    vlms.save(runs.tiny_student(seed=9), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    rest = {name: x for name, x in weights.items() if not name.endswith("lm_head.weight")}
    assert len(rest) == len(weights) - 1
    save_file(rest, tmp_path / "model.safetensors", metadata={"format": "pt"})
    how: Any = {"device": torch.device("cpu"), "dtype": torch.float32}
    outputs = Capability(teacher="t", signal="logits_kl")
    attention = Capability(teacher="t", signal="full", student_layers="2")
    with pytest.raises(ValueError, match=r"language-model head.*lm_head\.weight"):
        teacher.load(str(tmp_path), {"planning": outputs, "reasoning": attention}, **how)
    found = teacher.load(str(tmp_path), {"reasoning": attention}, **how)
    assert len(vlms.decoder_layers(found)) == 2


def test_a_head_tied_to_the_embeddings_is_there(tmp_path: Path) -> None:
    tied = runs.tiny_student(seed=9, tie_embeddings=True)
    vlms.save(tied, tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    assert not any(name.endswith("lm_head.weight") for name in names)
    found = teacher.load(
        str(tmp_path),
        {"planning": Capability(teacher="t", signal="logits_kl")},
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    assert torch.equal(vlms.head_weight(found), vlms.head_weight(tied))
    assert len(vlms.decoder_layers(found)) == 3


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("signal", ["full", "hidden"])
def test_a_teacher_with_fewer_layers_than_asked_is_refused(
    tmp_path: Path, signal: str, saved: bool
) -> None:
    """Whether it is given in memory or has to be loaded."""
    shallow = runs.tiny_student(seed=9, text_layers=2)
    vlms.save(shallow, tmp_path / "shallow")
    source = str(tmp_path / "shallow")
    use = {"teacher": source, "student_layers": "3", "signal": signal}
    hot = {c: {"planning": 1.0} for c in runs.CAPABILITIES}
    recipe = runs.recipe(
        runs.write_data(tmp_path), tmp_path / "out", capabilities={"planning": use}, mixing=hot
    )
    given = None if saved else {source: shallow}
    said = r"capabilities\.planning\.teacher_layers: .* is layer 3, but the model has layers 1 to 2"
    with pytest.raises(ValueError, match=rf"{said}.*student_layers"):
        train(recipe, student=runs.tiny_student(), teachers=given)
    with pytest.raises(ValueError, match=r"planning\.student_layers: .*1 to 2"):
        train(recipe, student=runs.tiny_student(text_layers=2), teachers=given)
