"""Whole runs: what they write, what they refuse, where they stop."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

import runs
from drivekd.data.formats.readers import read
from drivekd.distill import plan as plans
from drivekd.distill.order import windows
from drivekd.distill.run import prepare
from drivekd.distill.step import clip, learning_rate, step
from drivekd.distill.teachers import bridges
from drivekd.distill.train import train
from drivekd.models import vlm as vlms
from drivekd.models.batch import collate, encode, forward
from drivekd.models.vlm import Vlm
from drivekd.recipe import Recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def teachers() -> dict[str, Vlm]:
    return runs.tiny_teachers()


def rewritten(data: Path, name: str, **changes: Any) -> Path:
    """The same questions with some keys changed; None removes a key."""
    rows = [{**json.loads(line), **changes} for line in data.read_text().splitlines()]
    kept = [{key: value for key, value in row.items() if value is not None} for row in rows]
    path = data.parent / name
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return path


def refusal(recipe: Recipe, student: Vlm | None = None, **given: Mapping[str, Vlm]) -> str:
    with pytest.raises(ValueError) as caught:
        train(recipe, student=student or runs.tiny_student(), teachers=given.get("teachers"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------ what it writes


def test_a_run_leaves_a_model_a_record_and_its_recipe(
    data: Path, teachers: dict[str, Vlm], tmp_path: Path
) -> None:
    student = runs.tiny_student()
    recipe = runs.recipe(data, tmp_path, train={"num_train_epochs": 3, "warmup_steps": 1})
    final = train(recipe, student=student, teachers=teachers)
    assert final == tmp_path / "final"
    record = runs.lines(tmp_path)
    assert [line["step"] for line in record] == [1, 2, 3, 4, 5, 6]
    assert record[-1]["epoch"] == 3.0
    assert record[0]["lr"] < record[1]["lr"] > record[2]["lr"] > record[-1]["lr"]
    names = {"loss/ce", "grad/conflict_rate", "grad/ce_multiplier", "grad/cos/ce_planning"}
    names |= {f"{kind}/{c}" for kind in ("loss/attn", "lambda") for c in runs.CAPABILITIES}
    assert names | {"lr", "questions_per_second", "seconds"} <= record[0].keys()
    assert all(math.isfinite(value) for line in record for value in line.values())
    assert record[-1]["loss/ce"] < record[0]["loss/ce"]
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["teachers"]["planning"]["sha256"]
    assert (about["samples"], about["rows"], about["total_steps"]) == (15, 3, 6)
    assert not about["embeddings_trained"]
    # The folder is a plain transformers checkpoint that computes what was trained.
    plain = AutoModelForImageTextToText.from_pretrained(final)
    assert "drivekd" not in (final / "config.json").read_text()
    for name, value in student.model.state_dict().items():
        assert torch.equal(plain.state_dict()[name], value), name


def test_absent_terms_are_missing_keys(
    data: Path, teachers: dict[str, Vlm], tmp_path: Path
) -> None:
    routed = {c: {c: 1.0} for c in runs.CAPABILITIES}
    recipe = runs.recipe(
        data,
        tmp_path,
        data={"pack": False},
        mixing=routed,
        train={"per_device_train_batch_size": 1, "max_steps": 6},
    )
    train(recipe, student=runs.tiny_student(), teachers=teachers)
    for line in runs.lines(tmp_path):
        present = [c for c in runs.CAPABILITIES if f"loss/attn/{c}" in line]
        assert len(present) == 1
        assert [c for c in runs.CAPABILITIES if f"lambda/{c}" in line] == present
        assert line["grad/ce_multiplier"] >= 1.0


def test_plain_cross_entropy_is_the_same_step_without_teachers(data: Path, tmp_path: Path) -> None:
    unlabelled = rewritten(data, "unlabelled.jsonl", question_type=None)
    recipe = runs.recipe(unlabelled, tmp_path, capabilities={}, train={"max_steps": 4})
    train(recipe, student=runs.tiny_student())
    record = runs.lines(tmp_path)
    assert record[-1]["loss/ce"] < record[0]["loss/ce"]
    assert not any("attn" in key or "lambda" in key for line in record for key in line)


def test_the_held_out_loss_is_logged_and_grey_pictures_are_grey(data: Path, tmp_path: Path) -> None:
    other = runs.write_data(tmp_path / "other", first=3)
    changes = {"eval": [str(other)], "images": "grey"}
    recipe = runs.recipe(data, tmp_path, capabilities={}, data=changes, train={"max_steps": 2})
    student = runs.tiny_student()
    train(recipe, student=student)
    last = runs.lines(tmp_path)[-1]
    assert last.keys() == {"step", "eval/loss/ce"}
    encoded = [encode(student, sample) for sample in list(read(data))[::5]]
    batch = collate(student, encoded)
    plan = plans.build(recipe, student)
    assert plan.models.features is not None
    grey = forward(student, batch, plan.models.features)[:, :20]
    assert not torch.equal(grey, forward(student, batch)[:, :20])
    torch.testing.assert_close(grey[0], grey[1])


def test_a_tied_embedding_is_trained_and_said_so(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = runs.recipe(data, tmp_path, capabilities={}, train={"max_steps": 1})
    student = runs.tiny_student(tie_embeddings=True)
    before = student.model.get_input_embeddings().weight.clone()
    with caplog.at_level(logging.WARNING):
        train(recipe, student=student)
    assert "tied" in caplog.text
    assert json.loads((tmp_path / "run.json").read_text())["embeddings_trained"]
    assert not torch.equal(student.model.get_input_embeddings().weight, before)


def test_tensorboard_holds_what_the_record_holds(data: Path, tmp_path: Path) -> None:
    settings = {"max_steps": 1, "report_to": "tensorboard"}
    train(runs.recipe(data, tmp_path, capabilities={}, train=settings), student=runs.tiny_student())
    assert list((tmp_path / "tensorboard").iterdir())


# ----------------------------------------------------------------------------- what it refuses


def test_rows_without_a_capability_are_named(
    data: Path, teachers: dict[str, Vlm], tmp_path: Path
) -> None:
    path = rewritten(data, "none.jsonl", question_type=None)
    said = refusal(runs.recipe(path, tmp_path), teachers=teachers)
    assert "s0q0, s0q1, s0q2, s0q3, s0q4 and 10 more" in said
    path = rewritten(data, "other.jsonl", question_type="parking")
    said = refusal(runs.recipe(path, tmp_path), teachers=teachers)
    assert "s0q0 (parking)" in said
    assert "mixing; add the row" in said
    three = {c: runs.capability(c, "first", "full") for c in runs.CAPABILITIES}
    three["plannin"] = three.pop("planning")
    said = refusal(runs.recipe(data, tmp_path, capabilities=three), teachers=teachers)
    assert "s0q2 (planning)" in said
    assert "capabilities.plannin: did you mean planning?" in said


def test_held_out_samples_are_not_trained_on(data: Path, tmp_path: Path) -> None:
    recipe = runs.recipe(data, tmp_path, capabilities={}, data={"eval": [str(data)]})
    with pytest.raises(ValueError, match="evaluation samples s0q0"):
        train(recipe, student=runs.tiny_student())


def test_a_data_file_that_is_not_there_is_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    recipe = runs.recipe(tmp_path / "gone.jsonl", tmp_path, capabilities={})
    with pytest.raises(FileNotFoundError, match=r"gone\.jsonl.*data\.train"):
        train(recipe)


def test_a_capability_that_no_sample_has_is_refused(
    data: Path, teachers: dict[str, Vlm], tmp_path: Path
) -> None:
    turns = [{"role": "user", "content": "Go?"}, {"role": "assistant", "content": "yes"}]
    blind = rewritten(data, "blind.jsonl", images=[], cameras=None, messages=turns)
    said = refusal(runs.recipe(blind, tmp_path), teachers=teachers)
    assert "capabilities.perception: none of the 15 training samples" in said
    routed = {c: {"perception": 1.0} for c in runs.CAPABILITIES}
    for signals in ({}, {"capabilities": runs.three_signals()}):
        said = refusal(runs.recipe(data, tmp_path, mixing=routed, **signals), teachers=teachers)
        assert "capabilities.reasoning: none of the 15 training samples" in said
        assert "and Π a share above 0" in said


def test_what_cannot_be_meant_is_refused(
    data: Path, teachers: dict[str, Vlm], tmp_path: Path
) -> None:
    recipe = runs.recipe(data, tmp_path, combine={"granularity": "micro_batch"})
    assert "data.pack: false" in refusal(recipe, teachers=teachers)
    half = runs.tiny_student()
    half.model.half()
    assert "float32 masters" in refusal(runs.recipe(data, tmp_path, capabilities={}), half)
    assert "names no file" in refusal(runs.recipe(data, tmp_path, data={"train": []}))
    everything = {"trainable": "everything"}
    grey = runs.recipe(data, tmp_path, data={"images": "grey"}, train=everything)
    assert "trainable: language_model" in refusal(grey)
    swapped = {"mismatch": True}
    for signal in ("hidden", "logits_kl"):
        one = {name: cap for name, cap in runs.three_signals().items() if cap["signal"] == signal}
        hot = {c: dict.fromkeys(one, 1.0) for c in runs.CAPABILITIES}
        recipe = runs.recipe(data, tmp_path, data=swapped, capabilities=one, mixing=hot)
        assert f"has signal {signal}; set data.mismatch: false" in refusal(recipe)
    excluded = {"exclude_frames": [f"frame{i}" for i in range(3)]}
    assert "exclude_frames" in refusal(runs.recipe(data, tmp_path, data=excluded))


def test_an_earlier_run_is_not_overwritten_and_a_finished_one_not_repeated(
    data: Path, tmp_path: Path
) -> None:
    recipe = runs.recipe(data, tmp_path, capabilities={}, train={"max_steps": 2})
    final = train(recipe, student=runs.tiny_student())
    weights = (final / "model.safetensors").read_bytes()
    assert "holds final of an earlier run" in refusal(recipe)
    again = runs.tiny_student()
    assert train(recipe, resume=True, student=again) == final
    assert (final / "model.safetensors").read_bytes() == weights
    assert len(runs.lines(tmp_path)) == 2
    trained = vlms.load(final).model.state_dict()
    assert all(torch.equal(v, trained[k]) for k, v in again.model.state_dict().items())


def test_other_teachers_cannot_resume(data: Path, teachers: dict[str, Vlm], tmp_path: Path) -> None:
    recipe = runs.recipe(data, tmp_path, train={"max_steps": 3, "save_steps": 1})
    train(recipe, student=runs.tiny_student(), teachers=teachers)
    others = {**teachers, "tiny:planning": runs.tiny_student(seed=77, text_layers=4)}
    place = tmp_path / "checkpoint-2"
    with pytest.raises(ValueError, match="teacher of planning"):
        train(recipe, resume=place, student=runs.tiny_student(), teachers=others)


@pytest.mark.parametrize("place", ["final", "checkpoint-1"])
def test_another_start_or_other_data_cannot_resume(tmp_path: Path, place: str) -> None:
    data = runs.write_data(tmp_path / "data")
    changes: dict[str, Any] = {"capabilities": {}, "train": {"max_steps": 2, "save_steps": 1}}
    recipe = runs.recipe(data, tmp_path / "run", **changes)
    train(recipe, student=runs.tiny_student())
    resume = True if place == "final" else tmp_path / "run" / place

    def refused(student: Vlm | None = None, path: Path = data) -> str:
        again = runs.recipe(path, tmp_path / "run", **changes)
        with pytest.raises(ValueError, match="output_dir") as caught:
            train(again, resume=resume, student=student or runs.tiny_student())
        assert "\n" not in str(caught.value)
        assert place in str(caught.value)
        return str(caught.value)

    assert "student: started from weights" in refused(runs.tiny_student(seed=99))
    assert "which is another model" in refused(runs.tiny_student(text_layers=2))
    answer = data.with_name("answer.jsonl")
    answer.write_text(data.read_text().replace("red 0", "red 2", 1))
    assert "data: other training samples" in refused(path=answer)
    question = data.with_name("question.jsonl")
    question.write_text(data.read_text().replace("Turn?", "Stop?", 1))
    assert "data: other training samples" in refused(path=question)
    picture = data.with_name("0_CAM_BACK.png")
    whole = picture.read_bytes()
    picture.write_bytes(whole + b"more")
    assert "pictures: files have other bytes" in refused()
    picture.write_bytes(whole)  # made again: later, but the same
    train(recipe, resume=resume, student=runs.tiny_student())


# ------------------------------------------------------------------------------ where it stops


def test_a_loss_that_is_no_number_stops_before_the_update(
    data: Path, teachers: dict[str, Vlm], tmp_path: Path
) -> None:
    student = runs.tiny_student()
    word = student.tokenizer.convert_tokens_to_ids("?")
    with torch.no_grad():
        student.model.get_input_embeddings().weight[word] = torch.nan
    before = {k: v.clone() for k, v in student.model.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"step 1, samples s.*ce.*finite"):
        train(runs.recipe(data, tmp_path), student=student, teachers=teachers)
    for name, value in student.model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    assert not (tmp_path / "log.jsonl").read_text()
    assert not (tmp_path / "final").exists()


@pytest.mark.parametrize("signal", ["hidden", "logits_kl"])
def test_a_teacher_that_is_no_number_stops_before_the_update(
    data: Path, tmp_path: Path, signal: str
) -> None:
    student, teachers = runs.tiny_student(), runs.tiny_teachers()
    word = student.tokenizer.convert_tokens_to_ids("?")
    name, logged = {"hidden": ("reasoning", "hidden"), "logits_kl": ("planning", "kl")}[signal]
    with torch.no_grad():
        faulty = teachers[f"tiny:{name}"].model
        faulty.get_input_embeddings().weight[word] = torch.nan
    before = {k: v.clone() for k, v in student.model.state_dict().items()}
    recipe = runs.recipe(data, tmp_path, capabilities=runs.three_signals())
    said = rf"step 1, samples s.*: the loss {logged}/{name} of samples s.*not a finite number"
    with pytest.raises(RuntimeError, match=said):
        train(recipe, student=student, teachers=teachers)
    assert all(torch.equal(v, before[k]) for k, v in student.model.state_dict().items())
    assert not (tmp_path / "log.jsonl").read_text()


def test_a_learned_map_whose_gradient_is_no_number_stops_before_the_update(
    data: Path, teachers: dict[str, Vlm], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the third step, with the checkpoint of the second as it was."""
    student, collect, steps = runs.tiny_student(), bridges.collect, []
    settings = {"max_steps": 4, "save_steps": 2}
    recipe = runs.recipe(data, tmp_path, capabilities=runs.three_signals(), train=settings)

    def faulty(found: bridges.Bridges, name: str, total: torch.Tensor, carried: float) -> None:
        steps.append(name)
        collect(found, name, total * (math.inf if len(steps) == 3 else 1.0), carried)
        if len(steps) == 3:
            weights.update({k: v.clone() for k, v in student.model.state_dict().items()})

    weights: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(bridges, "collect", faulty)
    said = r"step 3, samples s.*learned map of reasoning, layer 1, is not a finite number"
    with pytest.raises(RuntimeError, match=said):
        train(recipe, student=student, teachers=teachers)
    assert all(torch.equal(v, weights[k]) for k, v in student.model.state_dict().items())
    assert [line["step"] for line in runs.lines(tmp_path)] == [1, 2]
    monkeypatch.undo()
    train(recipe, resume=True, student=runs.tiny_student(), teachers=teachers)
    assert [line["step"] for line in runs.lines(tmp_path)] == [1, 2, 3, 4]


def test_a_gradient_that_is_no_number_stops_before_the_update(
    data: Path, teachers: dict[str, Vlm], tmp_path: Path
) -> None:
    """In the third step, although its losses are numbers; the checkpoint of the second is whole."""
    student, passes = runs.tiny_student(), []
    recipe = runs.recipe(data, tmp_path, train={"max_steps": 4, "save_steps": 2})

    def overflow(module: torch.nn.Module, given: object, made: torch.Tensor) -> None:
        passes.append(module)
        if len(passes) == 3:
            weights.update({k: v.clone() for k, v in student.model.state_dict().items()})
            made.register_hook(lambda gradient: gradient * math.inf)

    weights: dict[str, torch.Tensor] = {}
    last = vlms.decoder_layers(student)[-1]
    hook = last.get_submodule("mlp").register_forward_hook(overflow)
    said = r"step 3, samples s.*a gradient is not a finite number although its loss is"
    with pytest.raises(RuntimeError, match=said):
        train(recipe, student=student, teachers=teachers)
    hook.remove()
    assert all(torch.equal(v, weights[k]) for k, v in student.model.state_dict().items())
    assert [line["step"] for line in runs.lines(tmp_path)] == [1, 2]
    train(recipe, resume=True, student=runs.tiny_student(), teachers=teachers)
    assert [line["step"] for line in runs.lines(tmp_path)] == [1, 2, 3, 4]


def test_a_missing_map_stops_with_the_step(
    data: Path, teachers: dict[str, Vlm], tmp_path: Path
) -> None:
    student = runs.tiny_student()
    run = prepare(plans.build(runs.recipe(data, tmp_path), student, teachers))
    student.model.set_attn_implementation("sdpa")  # somebody switched the tap off
    with pytest.raises(ValueError, match=r"step 1, samples s.*layers"):
        step(run, next(windows(run.plan.schedule.order, 0, 1)))


# ---------------------------------------------------------------------------------- small parts


def test_the_learning_rate_follows_the_length_of_the_data(data: Path, tmp_path: Path) -> None:
    settings = {"learning_rate": 1.0, "lr_end": 0.1, "warmup_steps": 2}
    recipe = runs.recipe(data, tmp_path, train=settings)
    rates = [learning_rate(recipe, i, 7) for i in range(7)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
    assert rates[4] == pytest.approx(0.55)
    constant = runs.recipe(data, tmp_path, train={**settings, "lr_scheduler_type": "constant"})
    assert learning_rate(constant, 6, 7) == 1.0
    linear = runs.recipe(data, tmp_path, train={**settings, "lr_scheduler_type": "linear"})
    falling = [learning_rate(linear, i, 7) for i in range(7)]
    assert falling == pytest.approx([1 / 3, 2 / 3, 1.0, 0.775, 0.55, 0.325, 0.1])
    share = {"lr_scheduler_type": "linear", "warmup_steps": 0, "warmup_ratio": 0.25}
    recipe = runs.recipe(data, tmp_path, train={**settings, **share})
    assert [learning_rate(recipe, i, 7) for i in range(7)] == falling  # 1.75 steps, rounded up
    assert learning_rate(recipe, 24, 100) == pytest.approx(25 / 26)
    assert learning_rate(recipe, 25, 100) == 1.0


def test_clipping_keeps_the_direction() -> None:
    flat = torch.tensor([3.0, 4.0])
    assert clip(flat, 10.0) == 5.0
    assert flat.tolist() == [3.0, 4.0]
    assert clip(flat, 1.0) == 5.0
    torch.testing.assert_close(flat, torch.tensor([0.6, 0.8]))
    assert clip(flat, None) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_checkpoint_cut_off_is_named(data: Path, tmp_path: Path, name: str) -> None:
    recipe = runs.recipe(
        data,
        tmp_path,
        capabilities={},
        train={"max_steps": 4, "save_steps": 2, "save_total_limit": None},
    )
    train(recipe, student=runs.tiny_student())
    saved = tmp_path / "checkpoint-2"
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"(checkpoint-2.*cut off.*earlier checkpoint)"):
        train(recipe, resume=saved, student=runs.tiny_student())
