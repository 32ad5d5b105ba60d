"""What a run will be, said without weights, is what it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import runs
from drivekd.data.formats.readers import read
from drivekd.distill import memory
from drivekd.distill import plan as plans
from drivekd.distill.objective import batch_of
from drivekd.distill.preview import PROCESSES, preview, show
from drivekd.distill.teachers.teacher import term
from drivekd.models import tiny
from drivekd.models import vlm as vlms
from drivekd.models.batch import collate, encode, forward, rows_of
from drivekd.recipe import Capability, Recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student and a teacher on disk, and data."""
    made = tmp_path_factory.mktemp("models")
    vlms.save(runs.tiny_student(), made / "student")
    vlms.save(runs.tiny_student(seed=5, text_layers=4), made / "teacher")
    runs.write_data(made / "data")
    return made


def recipe(folder: Path, /, **changes: Any) -> Recipe:
    """The paper's three capabilities, one teacher for all of them."""
    layers = {"perception": "first", "reasoning": "1..penultimate", "planning": "2"}
    capabilities = {
        name: {
            "teacher": str(folder / "teacher"),
            "student_layers": spec,
            "signal": "full" if name == "reasoning" else "text_to_vision",
        }
        for name, spec in layers.items()
    }
    changes = {"capabilities": capabilities, **changes}
    made = runs.recipe(folder / "data/train.jsonl", folder / "out", **changes)
    return made.model_copy(update={"student": str(folder / "student")})


def test_it_foretells_the_plan(folder: Path) -> None:
    asked = recipe(folder, train={"num_train_epochs": 3, "max_steps": -1})
    found, plan = preview(asked), plans.build(asked)
    student, teacher = found.members
    assert (student.layers, student.depth, teacher.layers, teacher.depth) == (3, 3, 3, 4)
    assert student.trained == sum(p.numel() for p in plan.trained.parameters)
    for member, vlm in zip(
        found.members, (plan.models.student, plan.models.teachers[0].vlm), strict=True
    ):
        assert member.parameters == sum(p.numel() for p in vlm.model.parameters())
        assert member.source == vlm.source
    assert found.terms == plan.models.terms
    assert found.steps is not None
    assert (found.steps.samples, found.steps.rows) == (
        len(plan.schedule.encoded),
        len(plan.schedule.order.rows),
    )
    assert found.steps.per_epoch == plan.schedule.order.steps_per_epoch
    assert found.steps.total == plan.schedule.total_steps == 3 * found.steps.per_epoch
    # Rows are estimated from characters; this vocabulary was made for these words.
    longest = batch_of(plan, plan.schedule.order.rows[:1])
    assert found.longest.visual == int(longest.is_image.sum())
    assert found.six_cameras.visual == 6 * 4


@pytest.mark.parametrize(("pack", "rows"), [(True, 3), (False, 15)])
def test_rows_are_packed_as_in_the_run(folder: Path, pack: bool, rows: int) -> None:
    found = preview(recipe(folder, data={"pack": pack}))
    assert found.steps is not None
    assert found.steps.rows == rows
    cut = preview(recipe(folder, data={"pack": pack, "max_row_tokens": 1}))
    assert cut.steps is not None
    assert cut.steps.rows == 15
    limited = preview(recipe(folder, data={"pack": pack, "questions_per_row": 1}))
    assert (limited.longest.text < found.longest.text) is pack


@pytest.mark.parametrize("files", [1, 2])
def test_two_weights_are_not_tied_whatever_the_file_says(
    folder: Path, tmp_path: Path, files: int
) -> None:
    """As in InternVL3-1B-hf, whose config.json leaves the key out."""
    shutil.copytree(folder / "student", tmp_path / "student")
    if files > 1:
        (tmp_path / "student" / "model.safetensors").unlink()
        model = vlms.load(folder / "student").model
        model.save_pretrained(tmp_path / "student", max_shard_size="200KB")
        assert len(list((tmp_path / "student").glob("model-*.safetensors"))) >= files
    shutil.copytree(folder / "teacher", tmp_path / "teacher")
    shutil.copytree(folder / "data", tmp_path / "data")
    file = tmp_path / "student" / "config.json"
    said = json.loads(file.read_text()) | {"tie_word_embeddings": True}
    file.write_text(json.dumps(said))
    found, plan = preview(recipe(tmp_path)), plans.build(recipe(tmp_path))
    student = plan.models.student.model
    assert student.lm_head.weight is not student.get_input_embeddings().weight
    assert found.members[0].trained == sum(p.numel() for p in plan.trained.parameters)
    assert found.members[0].parameters == sum(p.numel() for p in student.parameters())


def test_a_dataset_is_not_streamed_for_a_look(folder: Path) -> None:
    found = preview(recipe(folder, data={"train": {"path": "ORG/NAME"}}))
    assert (found.steps, found.missing) == (None, ("ORG/NAME (train)",))


def test_missing_data_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = preview(recipe(folder, data={"train": ["nowhere.json"]}))
    assert (found.steps, found.missing) == (None, ("nowhere.json",))
    assert found.longest == found.six_cameras
    show(found)
    text = capsys.readouterr().out
    assert "Training data missing: nowhere.json." in text
    assert "1 → 1–2" in text
    assert "3 of 4" in text


def test_a_layer_that_the_teacher_lacks_is_named(folder: Path) -> None:
    deep = recipe(folder).model_dump()["capabilities"]
    deep["planning"] |= {"teacher_layers": "7"}
    with pytest.raises(ValueError, match=r"capabilities\.planning\.teacher_layers: .*1 to 4"):
        preview(recipe(folder, capabilities=deep))


def test_a_teacher_of_another_family_is_refused(folder: Path, tmp_path: Path) -> None:
    vlms.save(runs.tiny_student(family="qwen3_vl"), tmp_path)
    other = {
        "perception": runs.capability("perception", "first", "full") | {"teacher": str(tmp_path)}
    }
    with pytest.raises(ValueError, match="family"):
        preview(recipe(folder, capabilities=other))


def test_gradients_and_states_are_counted_exactly(folder: Path) -> None:
    asked = recipe(folder)
    found, plan = preview(asked), plans.build(asked)
    parts = {part.name.partition(",")[0]: part for part in found.parts}
    trained = 4 * sum(p.numel() for p in plan.trained.parameters)
    assert parts["gradients: 4 losses and more"].alone == 6 * trained
    assert parts["AdamW's two moments"].alone == 2 * trained
    assert parts["AdamW's two moments"].sharded == 2 * trained / PROCESSES
    assert parts["teachers"].alone == 4 * found.members[1].parameters
    assert parts["weights cast for autocast"].alone == 0
    halves = preview(recipe(folder, train={"bf16": True}))
    assert {p.name: p for p in halves.parts}["teachers, bfloat16"].alone == (
        2 * found.members[1].parameters
    )


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_activations_are_an_upper_estimate_and_no_guess(kind: str, tmp_path: Path) -> None:
    """Against what autograd really keeps in float32."""
    vlm = runs.tiny_student(family=kind, text_layers=4)
    vlm.model.requires_grad_(False)
    vlms.language_model(vlm).requires_grad_(True)
    data = runs.write_data(tmp_path)
    asked = runs.recipe(data, tmp_path / "out")
    encoded = [encode(vlm, sample) for sample in read(data)]
    batch = collate(vlm, encoded, rows_of(encoded))
    weights = {p.untyped_storage().data_ptr() for p in vlm.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = forward(vlm, batch)
    assert hidden.requires_grad
    rows, length = batch.input_ids.shape
    row = memory.Row(0, length)
    foretold = rows * memory.activations(asked, vlm, row)
    assert 1.0 <= foretold / sum(kept.values()) <= 2.0


def test_checkpointing_keeps_less_and_a_trained_tower_more(folder: Path) -> None:
    vlm, row = runs.tiny_student(text_layers=4), memory.Row(visual=8, text=20)
    usual = memory.activations(recipe(folder), vlm, row)
    again = recipe(folder, train={"gradient_checkpointing": True})
    # Four entries and one layer, in place of four layers.
    assert memory.activations(again, vlm, row) == 28 * 4 * 4 * 32 + usual // 4
    everything = recipe(folder, train={"trainable": "everything"})
    tower = 4 * (6 * 32 + 2 * 32 + 8 * 32 + 4 * 128)
    assert memory.activations(everything, vlm, row) == usual + 32 * tower


def test_maps_are_counted_for_student_and_teacher() -> None:
    whole = term("r", Capability(teacher="t", signal="full", student_layers="1..2"), 3, 4)
    block = term("p", Capability(teacher="t", signal="text_to_vision", student_layers=1), 3, 4)
    row = memory.Row(visual=8, text=2)
    assert memory.maps([whole], row) == 4 * (4 * 2 + 2) * 100
    assert memory.maps([block], row) == 4 * (4 + 1) * 20
    assert memory.maps([whole, block], row) == memory.maps([whole], row) + 400


def test_the_limit_of_visual_tokens_reaches_student_and_teachers(tmp_path: Path) -> None:
    """A teacher that read more of them would be refused: its sequences would be longer."""
    for seed, name in enumerate(("student", "teacher")):
        vlms.save(runs.tiny_student(seed=seed, family="qwen3_vl"), tmp_path / name)
    runs.write_data(tmp_path / "data")
    found = []
    for limit in (1, 4):
        asked = recipe(tmp_path, data={"max_image_tokens": limit})
        assert preview(asked).six_cameras.visual == 6 * limit
        found += [plans.build(asked).schedule.encoded[0].grids]
    assert found == [((1, 1), (1, 1)), ((2, 2), (2, 2))]


def test_teachers_that_take_turns_need_room_for_one(folder: Path) -> None:
    two = recipe(folder).model_dump()["capabilities"]
    two["planning"]["teacher"] = str(folder / "student")
    held = {}
    for away in (False, True):
        found = preview(recipe(folder, capabilities=two, train={"offload_teachers": away}))
        held[away] = {p.name: p.alone for p in found.parts}["teachers, float32"]
    sizes = [4 * member.parameters for member in found.members[1:]]
    assert held == {False: sum(sizes), True: max(sizes)}
