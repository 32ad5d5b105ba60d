"""The student moved, the teachers did not, and what is frozen stayed as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import runs
from drivekd.distill import plan as plans
from drivekd.distill.objective import batch_of, losses
from drivekd.distill.run import prepare
from drivekd.distill.train import train
from drivekd.models import tiny
from drivekd.models import vlm as vlms
from drivekd.models.vlm import Vlm


def weights(vlm: Vlm) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in vlm.model.state_dict().items()}


def moved(vlm: Vlm, before: dict[str, torch.Tensor]) -> set[str]:
    return {n for n, v in vlm.model.state_dict().items() if not torch.equal(v, before[n])}


@pytest.mark.parametrize("family", tiny.KINDS)
def test_only_the_language_model_moves(family: str, tmp_path: Path) -> None:
    student, teachers = runs.tiny_student(family=family), runs.tiny_teachers(family=family)
    before, theirs = weights(student), {name: weights(t) for name, t in teachers.items()}
    recipe = runs.recipe(runs.write_data(tmp_path), tmp_path / "out", train={"max_steps": 2})
    train(recipe, student=student, teachers=teachers)
    for name, teacher in teachers.items():
        assert moved(teacher, theirs[name]) == set()
    changed = moved(student, before)
    expected = {
        name
        for name in before
        if name.startswith(("model.language_model.", "lm_head.")) and "embed_tokens" not in name
    }
    assert changed == expected
    assert vlms.lm_head(student).weight.requires_grad


def test_on_request_everything_moves(tmp_path: Path) -> None:
    student = runs.tiny_student()
    before = weights(student)
    train_ = {"max_steps": 2, "trainable": "everything"}
    recipe = runs.recipe(runs.write_data(tmp_path), tmp_path / "out", train=train_)
    train(recipe, student=student, teachers=runs.tiny_teachers())
    still = set(before) - moved(student, before)
    assert not {name for name in still if "mask_token" not in name}


def test_the_layer_one_loss_reaches_the_first_norm_query_and_key_only(tmp_path: Path) -> None:
    """[METHOD §6] All that a frozen entry leaves to the perception loss."""
    plan = plans.build(
        runs.recipe(runs.write_data(tmp_path), tmp_path / "out"),
        runs.tiny_student(),
        runs.tiny_teachers(),
    )
    prepare(plan)
    batch = batch_of(plan, runs.rows(plan, range(len(plan.schedule.encoded))))
    with losses(plan.models, batch) as found:
        perception = found.sums()[1]
        assert perception is not None
        gradients = torch.autograd.grad(perception, plan.trained.parameters, allow_unused=True)
    # None, not zeros: nothing above was even visited.
    reached = {n for n, g in zip(plan.trained.names, gradients, strict=True) if g is not None}
    layer = "model.language_model.layers.0."
    inside = {f"{layer}self_attn.{p}_proj.{w}" for p in "qk" for w in ("weight", "bias")}
    assert reached == inside | {f"{layer}input_layernorm.weight"}
