"""Adapters: what moves, what is written, what resumes."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

import runs
from drivekd.data.formats.readers import read
from drivekd.distill import plan as plans
from drivekd.distill.order import windows
from drivekd.distill.run import initial_state, prepare, save_final
from drivekd.distill.saving import lora
from drivekd.distill.step import step
from drivekd.distill.train import train
from drivekd.models import vlm as vlms
from drivekd.models.batch import collate, encode, forward
from drivekd.models.vlm import Vlm
from drivekd.recipe import Lora, Recipe

SMALL = {"r": 2, "lora_alpha": 8, "lora_dropout": 0.2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_data(tmp_path_factory.mktemp("data"))


def recipe(data: Path, output_dir: Path, /, lora: dict[str, Any], **changes: Any) -> Recipe:
    train = {"trainable": "lora", "lora": lora, "learning_rate": 1e-2, **changes.pop("train", {})}
    return runs.recipe(data, output_dir, train=train, **changes)


@torch.no_grad()
def logits(vlm: Vlm, data: Path) -> torch.Tensor:
    vlm.model.eval()
    batch = collate(vlm, [encode(vlm, sample) for sample in read(data)][:4])
    hidden: torch.Tensor = forward(vlm, batch)
    return hidden @ vlms.head_weight(vlm).T


@pytest.mark.parametrize("family", ["internvl", "qwen2_5_vl"])
def test_adapters_move_the_base_stays_and_the_sum_is_a_plain_model(
    data: Path, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teachers = runs.tiny_student(family=family), runs.tiny_teachers(family=family)
    before = {name: value.clone() for name, value in student.model.state_dict().items()}
    first = logits(student, data)
    run = prepare(plans.build(recipe(data, tmp_path, SMALL), student, teachers))
    layers = 3 * len(Lora().target_modules)
    assert len(run.plan.trained.names) == 2 * layers
    assert all(name.startswith("model.language_model.layers.") for name in run.plan.trained.names)
    torch.testing.assert_close(logits(student, data), first)  # at first they add zero
    start = {name: p.clone() for name, p in lora.parameters(student).items()}
    for window in windows(run.plan.schedule.order, 0, 2):
        step(run, window)
    moved = {n for n, p in lora.parameters(student).items() if not torch.equal(p, start[n])}
    assert moved == set(run.plan.trained.names)
    now = student.model.state_dict()
    for name, value in before.items():
        module, _, leaf = name.rpartition(".")
        inside = f"{module}.base_layer.{leaf}"
        assert torch.equal(now[inside if inside in now else name], value), name

    save_final(run, initial_state(run, "x"), tmp_path)
    unmerged = logits(student, data)
    assert not torch.allclose(unmerged, first, atol=1e-3)
    monkeypatch.setitem(sys.modules, "peft", None)  # importing it fails from here on
    final = vlms.load(tmp_path / "final")
    assert final.model.state_dict().keys() == before.keys()
    torch.testing.assert_close(logits(final, data), unmerged, rtol=1e-5, atol=1e-5)
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "final")
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in final.model.state_dict().items())


def test_a_run_with_adapters_resumes_to_the_bit(data: Path, tmp_path: Path) -> None:
    """Their dropout included; beside learned maps, under gradient checkpointing."""
    settings = {
        "max_steps": 4,
        "save_steps": 2,
        "save_total_limit": None,
        "gradient_checkpointing": True,
    }
    teachers, student = runs.tiny_teachers(), runs.tiny_student()
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    changes: dict[str, Any] = {"capabilities": runs.three_signals(), "train": settings}
    train(recipe(data, whole, SMALL, **changes), student=student, teachers=teachers)
    trained = vlms.load(whole / "final").model.state_dict()
    assert student.model.state_dict().keys() == trained.keys()
    assert all(torch.equal(v, trained[k]) for k, v in student.model.state_dict().items())

    shutil.copytree(whole / "checkpoint-2", broken / "checkpoint-2")
    shutil.copy(whole / "log.jsonl", broken)
    again = recipe(data, broken, SMALL, **changes)
    torch.manual_seed(5)
    train(again, resume=True, student=runs.tiny_student(), teachers=teachers)
    name = "final/model.safetensors"
    assert (broken / name).read_bytes() == (whole / name).read_bytes()
    finished = runs.tiny_student()
    train(again, resume=True, student=finished, teachers=teachers)
    assert all(torch.equal(v, trained[k]) for k, v in finished.model.state_dict().items())

    other = recipe(data, broken, {**SMALL, "r": 3}, **changes)
    with pytest.raises(ValueError, match=r"train\.lora\.r: 2 .*3"):
        train(other, resume=True, student=runs.tiny_student(), teachers=teachers)
    drawn = recipe(data, tmp_path / "still", {**SMALL, "lora_dropout": 0.0}, **changes)
    still = train(drawn, student=runs.tiny_student(), teachers=teachers)
    assert (still / "model.safetensors").read_bytes() != (whole / name).read_bytes()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's own
def test_a_checkpoint_is_a_plain_model_and_peft_reads_its_adapters(
    data: Path, tmp_path: Path
) -> None:
    student = runs.tiny_student(tie_embeddings=True)
    vlms.save(student, tmp_path / "base")
    settings = {"max_steps": 3, "save_steps": 2}
    only = {"r": 2, "target_modules": ["q_proj", "down_proj"]}
    train(recipe(data, tmp_path, only, capabilities={}, train=settings), student=student)
    saved = tmp_path / "checkpoint-2"
    merged = vlms.load(saved)
    base = vlms.load(tmp_path / "base")
    first = logits(base, data)
    PeftModel.from_pretrained(base.model, saved / "adapter")
    torch.testing.assert_close(logits(base, data), logits(merged, data), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(first, logits(merged, data), atol=1e-4)

    (saved / "adapter" / "adapter_model.safetensors").write_bytes(b"cut")
    shutil.rmtree(tmp_path / "final")
    again = recipe(data, tmp_path, only, capabilities={}, train=settings)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
        train(again, resume=True, student=vlms.load(tmp_path / "base"))


def test_targets_that_are_no_linear_layers_are_named(data: Path, tmp_path: Path) -> None:
    for target, said in (
        (
            "q_prj",
            r"'q_prj' is no linear layer of the language model .*did you mean q_proj\? There",
        ),
        ("fc1", r"'fc1' is no linear layer .*; there are down_proj, gate_proj, k_proj"),
    ):
        wrong = recipe(data, tmp_path, {"target_modules": target}, capabilities={})
        with pytest.raises(ValueError, match=said) as caught:
            train(wrong, student=runs.tiny_student())
        assert "\n" not in str(caught.value)
    student = runs.tiny_student()
    lora.attach(student, Lora(), seed=0)
    with pytest.raises(ValueError, match="cut off"):
        lora.attach(student, Lora(), seed=0)
