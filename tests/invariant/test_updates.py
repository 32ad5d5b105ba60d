"""Ways to write down the same step: the update must not depend on which one was chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import runs
from drivekd.distill import plan as plans
from drivekd.distill.order import projection_order, windows
from drivekd.distill.run import Run, prepare
from drivekd.distill.step import step
from drivekd.method.combine.projection import COMBINERS
from drivekd.models.vlm import Vlm

#: Relative error of an update [L2]: float32 sums in another order, times λ of about 1e5.
ERROR = 2e-5


def stepped(path: Path, teachers: dict[str, Vlm], /, count: int = 1, **changes: Any) -> Run:
    """A fresh student after some steps."""
    options = changes.pop("student", {})
    train = {"max_grad_norm": None, **changes.pop("train", {})}
    recipe = runs.recipe(path, Path("unused"), train=train, **changes)
    run = prepare(plans.build(recipe, runs.tiny_student(**options), teachers))
    for window in windows(run.plan.schedule.order, 0, count):
        step(run, window)
    return run


def assert_same(one: Tensor, other: Tensor, error: float = ERROR) -> None:
    assert one.norm() > 0
    assert float((one - other).norm() / one.norm()) < error


def test_one_large_batch_is_many_small_ones(data: Path, teachers: dict[str, Vlm]) -> None:
    sizes = ("per_device_train_batch_size", "gradient_accumulation_steps")
    for pack, rows in ((True, 4), (False, 8)):
        large, small = (
            stepped(data, teachers, data={"pack": pack}, train=dict(zip(sizes, n, strict=True)))
            for n in ((rows, 1), (1, rows))
        )
        assert_same(large.update, small.update)
        for name, (total, weight) in large.totals.items():
            if name.startswith("loss/"):
                other = small.totals[name]
                assert total / weight == pytest.approx(other[0] / other[1], rel=1e-5)


def test_packed_is_unpacked(data: Path, teachers: dict[str, Vlm]) -> None:
    for reachable in (False, True):
        parts = runs.recipe(data, Path("unused")).model_dump()["capabilities"]
        caps = {name: {**part, "reachable_only": reachable} for name, part in parts.items()}
        packed = stepped(
            data, teachers, capabilities=caps, train={"per_device_train_batch_size": 4}
        )
        apart = stepped(
            data,
            teachers,
            capabilities=caps,
            data={"pack": False},
            train={"per_device_train_batch_size": 20},
        )
        assert len(packed.plan.schedule.order.rows) == 4
        assert len(apart.plan.schedule.order.rows) == 20
        assert_same(packed.update, apart.update)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_qwen_packs_too(data: Path, name: str) -> None:
    family = {"family": name, "image_size": 48}
    teachers = runs.tiny_teachers(**family)
    sizes = ((True, 4), (False, 20))
    packed, apart = (
        stepped(
            data,
            teachers,
            student=family,
            data={"pack": pack},
            train={"per_device_train_batch_size": size},
        )
        for pack, size in sizes
    )
    assert_same(packed.update, apart.update)


def test_checkpointed_layers_give_the_same_update(data: Path, teachers: dict[str, Vlm]) -> None:
    plain = stepped(data, teachers)
    again = stepped(data, teachers, train={"gradient_checkpointing": True})
    assert_same(plain.update, again.update, 1e-6)


def test_cached_features_are_live_features(data: Path, teachers: dict[str, Vlm]) -> None:
    cached = stepped(data, teachers)
    live = stepped(data, teachers, train={"cache_features_gb": 0})
    assert_same(cached.update, live.update)


def test_one_hot_mixing_is_a_single_teacher(data: Path, teachers: dict[str, Vlm]) -> None:
    hot = {c: {"planning": 1.0} for c in runs.CAPABILITIES}
    caps = runs.recipe(data, Path("unused")).model_dump()["capabilities"]
    alone = stepped(data, teachers, mixing=hot, capabilities={"planning": caps["planning"]})
    # A recipe with teachers that nobody carries is refused, so Π is set behind its back.
    run = prepare(
        plans.build(
            runs.recipe(data, Path("unused"), train={"max_grad_norm": None}),
            runs.tiny_student(),
            teachers,
        )
    )
    for shares in run.plan.models.mixing.values():
        shares.copy_(torch.tensor([0.0, 0.0, 1.0]))
    step(run, next(windows(run.plan.schedule.order, 0, 1)))
    assert_same(alone.update, run.update, 1e-6)
    assert run.totals["grad/ce_multiplier"] == alone.totals["grad/ce_multiplier"]


def test_a_teacher_in_two_roles_runs_once(data: Path, teachers: dict[str, Vlm]) -> None:
    one = teachers["tiny:perception"]
    caps = runs.recipe(data, Path("unused")).model_dump()["capabilities"]
    same = {name: {**part, "teacher": "tiny:perception"} for name, part in caps.items()}
    shared = stepped(data, teachers, capabilities=same)
    thrice = stepped(data, dict.fromkeys(teachers, one))
    assert (len(shared.plan.models.teachers), len(thrice.plan.models.teachers)) == (1, 3)
    assert_same(shared.update, thrice.update, 1e-6)


def test_a_weight_of_zero_is_no_teacher(data: Path, teachers: dict[str, Vlm]) -> None:
    none = {"mode": "fixed", "fixed": dict.fromkeys(runs.CAPABILITIES, 0.0)}
    silent = stepped(data, teachers, weighting=none)
    plain = stepped(data, {}, capabilities={})
    assert_same(plain.update, silent.update, 1e-6)
    assert silent.totals["grad/ce_multiplier"][0] == 1.0
    assert not any(name.startswith("lambda/") for name in silent.totals)


def test_the_unit_does_not_change_plain_cross_entropy(data: Path) -> None:
    sizes = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    together = stepped(data, {}, capabilities={}, data={"pack": False}, train=sizes)
    each = stepped(
        data,
        {},
        capabilities={},
        data={"pack": False},
        train=sizes,
        combine={"granularity": "micro_batch"},
    )
    assert_same(together.update, each.update)


def test_a_short_last_window_counts_its_own_samples(data: Path, teachers: dict[str, Vlm]) -> None:
    """Three rows to a window leave one for the second: its update is that of this row alone."""
    run = stepped(data, teachers, train={"per_device_train_batch_size": 3, "learning_rate": 1e-30})
    window = list(windows(run.plan.schedule.order, 0, 2))[1]
    run.memory.clear()
    step(run, window)
    short = run.update.clone()
    alone = stepped(data, teachers, count=0, train={"per_device_train_batch_size": 1})
    step(alone, window)
    assert_same(alone.update, short, 1e-6)


def weighted(run: Run) -> Tensor:
    """The mean gradients of a run's only step, times w_ce = 1 and the λ that it logged."""
    names = [term.capability for term in run.plan.models.terms]
    scale = [1.0, *(run.totals[f"lambda/{name}"][0] for name in names)]
    means = run.unit.gradients.double() / len(run.unit.indices)
    return torch.tensor(scale, dtype=torch.float64)[:, None] * means


def combined(run: Run, combiner: str) -> Tensor:
    """Their combination, straight from the definition of the combiner."""
    rows = weighted(run)
    count = len(rows) - (combiner != "pcgrad")
    order = projection_order(run.plan.recipe.seed, (0, 0), count)
    a = COMBINERS[combiner](rows @ rows.T, order, "per_capability")
    return (a @ rows).float()


@pytest.mark.parametrize("combiner", ["agp", "stage1_only", "pcgrad_caps", "pcgrad", "sum"])
def test_every_combiner_steps(data: Path, teachers: dict[str, Vlm], combiner: str) -> None:
    run = stepped(data, teachers, combine={"combiner": combiner})
    expected = combined(run, combiner)
    assert_same(expected, run.update, 1e-5)
    inner = weighted(run) @ weighted(run)[0]
    assert bool((inner[1:] < 0).any())  # else all projections would be the same plain sum
    rival = combined(run, "sum" if combiner != "sum" else "agp")
    gap = float((expected - rival).norm() / rival.norm())
    assert gap > 1e-4, f"{combiner} is the rival's update up to {gap}"
    if combiner in ("agp", "stage1_only"):  # more than another count of the cross-entropy
        plain = combined(run, "sum_ceK")
        assert float((expected - plain).norm() / plain.norm()) > 3e-5  # a slight conflict


def test_fixed_weights_step(data: Path, teachers: dict[str, Vlm]) -> None:
    """λ is what the recipe says, and the update has it."""
    static = dict.fromkeys(runs.CAPABILITIES, 3.0)
    run = stepped(data, teachers, weighting={"mode": "fixed", "fixed": static})
    means = run.unit.gradients.double() / len(run.unit.indices)
    found = {name: run.totals[f"lambda/{name}"][0] for name in runs.CAPABILITIES}
    assert found == static
    rows = means * torch.tensor([1.0, *found.values()])[:, None]
    order = projection_order(run.plan.recipe.seed, (0, 0), len(found))
    a = COMBINERS["agp"](rows @ rows.T, order, "per_capability")
    assert_same((a @ rows).float(), run.update, 1e-5)


def test_autocast_stays_near_float32(data: Path, teachers: dict[str, Vlm]) -> None:
    full, half = (stepped(data, teachers, train={"bf16": bf16}) for bf16 in (False, True))
    assert all(p.dtype == torch.float32 for p in half.plan.trained.parameters)
    assert_same(full.unit.gradients[0], half.unit.gradients[0], 0.05)


def test_micro_batches_project_one_by_one(data: Path, teachers: dict[str, Vlm]) -> None:
    """Identity Π and batch 1: each unit has one teacher, so cross-entropy is counted once."""
    routed = {c: {c: 1.0} for c in runs.CAPABILITIES}
    sizes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 5}
    run = stepped(
        data,
        teachers,
        data={"pack": False},
        mixing=routed,
        train=sizes,
        combine={"granularity": "micro_batch", "combiner": "sum_ceK"},
    )
    assert run.totals["grad/ce_multiplier"] == [5.0, 5.0]
    step_run = stepped(
        data,
        teachers,
        data={"pack": False},
        mixing=routed,
        train={**sizes, "gradient_accumulation_steps": 20},
        combine={"combiner": "sum_ceK"},
    )
    assert step_run.totals["grad/ce_multiplier"] == [3.0, 1.0]


def test_mismatched_rows_change_the_teachers_only(data: Path, teachers: dict[str, Vlm]) -> None:
    right = stepped(data, teachers)
    wrong = stepped(data, teachers, data={"mismatch": True})
    assert right.totals["loss/ce"] == wrong.totals["loss/ce"]
    assert right.totals["loss/attn/perception"] != wrong.totals["loss/attn/perception"]
    assert torch.equal(right.unit.gradients[0], wrong.unit.gradients[0])
