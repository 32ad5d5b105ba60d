"""The loss on held-out data while a run goes on: when it is taken, and what is made of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import runs
from drivekd.distill import plan as plans
from drivekd.distill import train as training
from drivekd.distill.held_out import held_out_loss
from drivekd.distill.objective import losses
from drivekd.distill.run import prepare
from drivekd.distill.saving import summary
from drivekd.distill.train import train
from drivekd.models import vlm as vlms
from drivekd.models.batch import collate, rows_of
from drivekd.recipe import Recipe

HELD_OUT = "eval/loss/ce"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_data(tmp_path_factory.mktemp("other"), scenes=1, first=3)


def recipe(data: Path, other: Path | None, output_dir: Path, **train: Any) -> Recipe:
    held_out = {} if other is None else {"eval": [str(other)]}
    settings = {"max_steps": 5, **train}
    return runs.recipe(data, output_dir, capabilities={}, data=held_out, train=settings)


def evaluated(output_dir: Path) -> list[float]:
    return [line["step"] for line in runs.lines(output_dir) if HELD_OUT in line]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"save_steps": 3}, [3, 5]),  # as before there were the keys
        ({"save_steps": 3, "eval_steps": 2}, [2, 4, 5]),
        ({"eval_strategy": "epoch", "per_device_train_batch_size": 1}, [3, 5]),
        ({"eval_strategy": "no", "save_steps": 3}, []),
    ],
)
def test_when_it_is_taken(
    data: Path, other: Path, tmp_path: Path, settings: dict[str, Any], steps: list[int]
) -> None:
    train(recipe(data, other, tmp_path, **settings), student=runs.tiny_student())
    assert evaluated(tmp_path) == steps
    state = json.loads((tmp_path / "final" / "trainer_state.json").read_text())
    assert [line["step"] for line in state["log_history"] if HELD_OUT in line] == steps
    assert state["log_history"] == runs.lines(tmp_path)
    assert state["best_metric"] is state["best_model_checkpoint"] is None


@pytest.mark.parametrize("trainable", ["lora", "everything"])
def test_it_changes_no_bit_of_the_run(
    data: Path, other: Path, tmp_path: Path, trainable: str
) -> None:
    lora = {"lora": {"r": 2, "lora_dropout": 0.3}} if trainable == "lora" else {}
    finals = []
    for name, held_out, settings in (
        ("without", None, {}),
        ("with", other, {"eval_steps": 1, "load_best_model_at_end": True, "save_steps": 2}),
    ):
        made = recipe(data, held_out, tmp_path / name, trainable=trainable, **settings, **lora)
        made = made.model_copy(update={"train": made.train.model_copy(update={"max_steps": 4})})
        train(made, student=runs.tiny_student())
        finals.append([line["loss/ce"] for line in runs.lines(tmp_path / name) if "lr" in line])
    assert evaluated(tmp_path / "with") == [1, 2, 3, 4]
    assert finals[0] == finals[1]


def test_nothing_is_dropped_while_it_is_taken(data: Path, other: Path, tmp_path: Path) -> None:
    plan = plans.build(recipe(data, other, tmp_path, trainable="everything"), runs.tiny_student())
    prepare(plan)
    model, modes = plan.models.student.model, []
    vision = vlms.vision_parts(plan.models.student)[0]
    for part in (vision, vlms.language_model(plan.models.student)):
        part.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    held_out_loss(plan)
    assert len(modes) >= 2
    assert not any(modes)
    assert model.training
    assert vision.training


def test_its_precision_is_that_of_training(data: Path, other: Path, tmp_path: Path) -> None:
    found = {}
    for bf16 in (True, False):
        plan = plans.build(recipe(data, other, tmp_path, bf16=bf16), runs.tiny_student())
        prepare(plan)
        samples = plan.schedule.held_out
        batch = collate(plan.models.student, samples, rows_of(samples))
        assert len(batch.input_ids) == 1
        with torch.no_grad(), losses(plan.models, batch) as compared:
            trained = float(compared.answers.sum()) / len(samples)
        found[bf16] = held_out_loss(plan)
        assert found[bf16] == trained
    assert found[True] == pytest.approx(found[False], rel=1e-2)
    assert found[True] != found[False]


def sequence(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """What the evaluations find, one after the other."""
    given = iter(losses)
    monkeypatch.setattr(training.held_out, "held_out_loss", lambda plan: next(given))


def test_the_best_checkpoint_becomes_the_final_model(
    data: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    settings = {"save_steps": 1, "save_total_limit": 1, "load_best_model_at_end": True}
    made = recipe(data, other, run, **settings)
    sequence(monkeypatch, [3.0, 1.0, 2.0, 4.0, 1.0])
    student = runs.tiny_student()
    final = train(made, student=student)
    kept = sorted(path.name for path in run.glob("checkpoint-*"))
    assert kept == ["checkpoint-2", "checkpoint-4"]
    best = (run / "checkpoint-2" / "model.safetensors").read_bytes()
    assert (final / "model.safetensors").read_bytes() == best
    assert not (final / "optimizer.pt").exists()
    trained = vlms.load(final).model.state_dict()
    assert all(torch.equal(v, trained[k]) for k, v in student.model.state_dict().items())
    state = json.loads((final / "trainer_state.json").read_text())
    assert (state["global_step"], state["best_metric"], state["best_global_step"]) == (5, 1.0, 2)
    assert state["best_model_checkpoint"] == str(run / "checkpoint-2")
    assert "those after step 2" in (final / "README.md").read_text()
    assert f"step 2, {HELD_OUT} 1" in summary.text(final)

    # Resumed, it is still remembered; without its files there is nothing to fall back to.
    shutil.rmtree(final)
    sequence(monkeypatch, [1.5])
    train(made, resume=True, student=runs.tiny_student())
    assert (final / "model.safetensors").read_bytes() == best
    shutil.rmtree(final)
    shutil.rmtree(run / "checkpoint-2")
    with pytest.raises(ValueError, match=r"checkpoint-2 .*best"):
        train(made, resume=True, student=runs.tiny_student())


def test_the_end_may_be_the_best(
    data: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequence(monkeypatch, [2.0, 1.0])
    settings = {"save_steps": 2, "max_steps": 3, "load_best_model_at_end": True}
    final = train(recipe(data, other, tmp_path, **settings), student=runs.tiny_student())
    saved = (tmp_path / "checkpoint-2" / "model.safetensors").read_bytes()
    assert (final / "model.safetensors").read_bytes() != saved
    state = json.loads((final / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(final)


def test_a_loss_that_is_no_number_stops_the_run(data: Path, other: Path, tmp_path: Path) -> None:
    student = runs.tiny_student()
    plan = plans.build(recipe(data, other, tmp_path), student)
    with torch.no_grad():
        vlms.lm_head(student).weight[0] = torch.nan
    with pytest.raises(RuntimeError, match=r"data\.eval .*train\.jsonl.* nan"):
        held_out_loss(plan)
