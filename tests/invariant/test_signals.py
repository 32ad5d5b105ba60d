"""Runs with hidden states and output distributions: the same invariants as those of attention."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import runs
from drivekd.distill import plan as plans
from drivekd.distill.objective import batch_of, losses
from drivekd.distill.order import windows
from drivekd.distill.run import Run, prepare
from drivekd.distill.step import step
from drivekd.distill.teachers import bridges, teacher
from drivekd.distill.train import train
from drivekd.models import vlm as vlms
from drivekd.models.vlm import Vlm

#: Relative error of an update [L2]: float32 sums in another order, times λ.
ERROR = 2e-5
FAMILIES = ("internvl", "qwen2_5_vl")
#: Teachers are wider than the student, so that the learned maps are no square.
WIDER = {"text_hidden": 48}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_data(tmp_path_factory.mktemp("data"), scenes=4)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def teachers(family: str) -> dict[str, Vlm]:
    return runs.tiny_teachers(family=family, **WIDER)


def prepared(path: Path, teachers: dict[str, Vlm], /, **changes: Any) -> Run:
    """A fresh student of the teachers' family, ready to be trained on three kinds of signal."""
    family = next(iter(teachers.values())).family.name
    settings = {"max_grad_norm": None, **changes.pop("train", {})}
    changes = {"capabilities": runs.three_signals(), **changes}
    recipe = runs.recipe(path, Path("unused"), train=settings, **changes)
    return prepare(plans.build(recipe, runs.tiny_student(family=family), teachers))


def stepped(path: Path, teachers: dict[str, Vlm], /, **changes: Any) -> Run:
    run = prepared(path, teachers, **changes)
    step(run, next(windows(run.plan.schedule.order, 0, 1)))
    return run


def learned(run: Run) -> Tensor:
    """The gradients of all learned maps, flat."""
    found = [weight.grad for weight in bridges.parameters(run.plan.models.bridges).values()]
    return torch.cat([gradient.flatten() for gradient in found if gradient is not None])


def assert_same(one: Run, other: Run, error: float = ERROR) -> None:
    for a, b in ((one.update, other.update), (learned(one), learned(other))):
        assert a.norm() > 0
        assert float((a - b).norm() / a.norm()) < error


def test_one_large_batch_is_many_small_ones(data: Path, teachers: dict[str, Vlm]) -> None:
    sizes = ("per_device_train_batch_size", "gradient_accumulation_steps")
    large, small = (
        stepped(data, teachers, data={"pack": False}, train=dict(zip(sizes, n, strict=True)))
        for n in ((8, 1), (1, 8))
    )
    assert_same(large, small)
    for name in ("loss/hidden/reasoning", "loss/kl/planning"):
        (one, n), (other, m) = large.totals[name], small.totals[name]
        assert one / n == pytest.approx(other / m, rel=1e-5)


@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_packed_is_unpacked(data: Path, teachers: dict[str, Vlm], loss: str) -> None:
    signals = {"capabilities": runs.three_signals(loss)}
    packed, apart = (
        stepped(
            data,
            teachers,
            **signals,
            data={"pack": pack},
            train={"per_device_train_batch_size": size},
        )
        for pack, size in ((True, 4), (False, 20))
    )
    assert_same(packed, apart)


def test_checkpointed_layers_give_the_same_update(data: Path, teachers: dict[str, Vlm]) -> None:
    plain = stepped(data, teachers)
    again = stepped(data, teachers, train={"gradient_checkpointing": True})
    assert_same(plain, again, 1e-6)


SIGNALS = {
    "text_to_vision": runs.capability("perception", "1..last", "text_to_vision"),
    "full": runs.capability("perception", "1..last", "full"),
    "hidden": runs.capability("perception", "1..last", "hidden"),
    "logits_kl": {"teacher": "tiny:perception", "signal": "logits_kl"},
}
ATTENTION = ("text_to_vision", "full")
VARIANTS = [
    (signal, loss, reachable)
    for signal in SIGNALS
    for loss in (("mse",) if signal == "logits_kl" else ("mse", "cosine"))
    for reachable in ((False, True) if signal in ATTENTION else (False,))
]


@pytest.mark.parametrize(("signal", "loss", "reachable"), VARIANTS)
def test_a_samples_loss_never_depends_on_its_batch(
    data: Path, teachers: dict[str, Vlm], signal: str, loss: str, reachable: bool
) -> None:
    """Packed with questions of its scene, padded beside other scenes, or alone."""
    one = {**SIGNALS[signal], "loss": loss, "reachable_only": reachable}
    hot = {c: {"perception": 1.0} for c in runs.CAPABILITIES}
    plan = prepared(data, teachers, capabilities={"perception": one}, mixing=hot).plan
    chosen = [0, 1, 3, 7, 12, 13, 19]
    with torch.no_grad():
        with losses(plan.models, batch_of(plan, runs.rows(plan, chosen))) as found:
            together = found.terms[0]
        for place, index in enumerate(chosen):
            with losses(plan.models, batch_of(plan, [(index,)])) as found:
                torch.testing.assert_close(found.terms[0][0], together[place], rtol=1e-5, atol=0)
    assert bool((together > 0).all())


def test_a_teacher_in_three_roles_runs_once(data: Path, teachers: dict[str, Vlm]) -> None:
    one = teachers["tiny:perception"]
    same = {n: {**part, "teacher": "tiny:perception"} for n, part in runs.three_signals().items()}
    shared = stepped(data, teachers, capabilities=same)
    thrice = stepped(data, dict.fromkeys(teachers, one))
    assert (len(shared.plan.models.teachers), len(thrice.plan.models.teachers)) == (1, 3)
    assert_same(shared, thrice, 1e-6)


def test_who_moves(data: Path, teachers: dict[str, Vlm], family: str, tmp_path: Path) -> None:
    """The student's language model and the learned maps; no teacher, no vision tower."""
    student = runs.tiny_student(family=family)
    before = {name: value.clone() for name, value in student.model.state_dict().items()}
    theirs = {name: teacher.fingerprint([each.model]) for name, each in teachers.items()}
    settings = {"max_steps": 2, "save_steps": 1}
    recipe = runs.recipe(data, tmp_path, capabilities=runs.three_signals(), train=settings)
    final = train(recipe, student=student, teachers=teachers)
    assert {name: teacher.fingerprint([each.model]) for name, each in teachers.items()} == theirs
    moved = {n for n, v in student.model.state_dict().items() if not torch.equal(v, before[n])}
    assert moved == {
        name
        for name in before
        if name.startswith(("model.language_model.", "lm_head.")) and "embed_tokens" not in name
    }
    start = bridges.parameters(prepared(data, teachers).plan.models.bridges)
    saved = load_file(tmp_path / "checkpoint-1" / "bridges.safetensors")
    assert start.keys() == saved.keys() == {"reasoning.layer1", "reasoning.layer2"}
    assert all(saved[name].shape == (48, 32) for name in saved)
    assert not any(torch.equal(start[name], saved[name]) for name in saved)
    assert not (final / "bridges.safetensors").exists()
    assert len(load_file(final / "model.safetensors")) == len(before)


@pytest.mark.parametrize("saved", [1, 2])
def test_resumed_is_uninterrupted(
    data: Path, teachers: dict[str, Vlm], family: str, tmp_path: Path, saved: int
) -> None:
    settings = {"max_steps": 4, "save_steps": 1, "save_total_limit": None}
    changes = {"capabilities": runs.three_signals(), "train": settings}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fresh = {"student": runs.tiny_student(family=family), "teachers": teachers}
    train(runs.recipe(data, whole, **changes), **fresh)
    broken.mkdir()
    shutil.copytree(whole / f"checkpoint-{saved}", broken / f"checkpoint-{saved}")
    shutil.copy(whole / "log.jsonl", broken)
    fresh = {"student": runs.tiny_student(family=family), "teachers": teachers}
    train(runs.recipe(data, broken, **changes), resume=True, **fresh)
    names = ("final/model", "checkpoint-3/model", "checkpoint-3/bridges")
    for name in (f"{name}.safetensors" for name in names):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
    first, second = (
        torch.load(folder / "checkpoint-3" / "optimizer.pt", weights_only=True)["state"]
        for folder in (whole, broken)
    )
    assert first.keys() == second.keys()
    for number, state in first.items():
        assert all(torch.equal(state[key], second[number][key]) for key in state)


def test_learned_maps_follow_the_mean_loss_of_their_own_term(
    data: Path, teachers: dict[str, Vlm]
) -> None:
    """Whatever λ, the combiner and the clipping of the student's update are."""
    usual = stepped(data, teachers)
    weights = {"mode": "fixed", "fixed": dict.fromkeys(runs.CAPABILITIES, 1e4)}
    other = stepped(
        data,
        teachers,
        weighting=weights,
        combine={"combiner": "sum"},
        train={"max_grad_norm": 1e-6},
    )
    assert float(other.update.norm()) < 2e-6
    torch.testing.assert_close(learned(usual), learned(other))

    run = prepared(data, teachers)
    rows = next(windows(run.plan.schedule.order, 0, 1)).batches[0]
    with losses(run.plan.models, batch_of(run.plan, rows)) as found:
        term, shares = found.terms[1], found.carried[1]
        mean = (term * shares).sum() / shares.sum()
        expected = torch.autograd.grad(
            mean, list(bridges.parameters(run.plan.models.bridges).values())
        )
    torch.testing.assert_close(learned(usual), torch.cat([g.flatten() for g in expected]))


def test_learned_maps_of_micro_batches(data: Path, teachers: dict[str, Vlm]) -> None:
    """One projection per sample or per step: the learned maps see the same step."""
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    how = {"data": {"pack": False}, "train": sizes}
    together = stepped(data, teachers, **how)
    each = stepped(data, teachers, **how, combine={"granularity": "micro_batch"})
    a, b = learned(together), learned(each)
    assert float((a - b).norm() / a.norm()) < ERROR


def test_a_teacher_runs_no_further_than_its_signal_needs(
    data: Path, teachers: dict[str, Vlm]
) -> None:
    """Four layers: behind the highest one whose states are used nothing runs, not even the norm."""
    ran: list[str] = []
    one = teachers["tiny:perception"]
    parts = {"norm": one.model.get_submodule("model.language_model.norm")}
    parts |= {f"layer{n + 1}": layer for n, layer in enumerate(vlms.decoder_layers(one))}
    parts |= {f"mlp{n + 1}": layer.mlp for n, layer in enumerate(vlms.decoder_layers(one))}
    handles = [
        part.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
        for name, part in parts.items()
    ]
    hot = {c: {"perception": 1.0} for c in runs.CAPABILITIES}
    expected = {
        "text_to_vision": ["layer1", "mlp1", "layer2"],
        "hidden": ["layer1", "mlp1", "layer2", "mlp2"],
        "logits_kl": [f"{part}{n}" for n in range(1, 5) for part in ("layer", "mlp")] + ["norm"],
    }
    for signal, parts_run in expected.items():
        use = SIGNALS[signal]
        if signal != "logits_kl":
            use = {**use, "student_layers": "2", "teacher_layers": "2"}
        run = prepared(data, teachers, capabilities={"perception": use}, mixing=hot)
        plans.fill_caches(run.plan)
        ran.clear()
        with losses(run.plan.models, batch_of(run.plan, runs.rows(run.plan, [0, 1]))):
            pass
        assert ran == parts_run, signal
    for handle in handles:
        handle.remove()


def test_autocast_stays_near_float32(data: Path, teachers: dict[str, Vlm]) -> None:
    full, half = (stepped(data, teachers, train={"bf16": bf16}) for bf16 in (False, True))
    assert all(weight.dtype == torch.float32 for weight in half.plan.trained.parameters)
    for row in range(4):
        a, b = full.unit.gradients[row], half.unit.gradients[row]
        assert float((a - b).norm() / a.norm()) < 0.1, row
    assert float((learned(full) - learned(half)).norm() / learned(full).norm()) < 0.05
