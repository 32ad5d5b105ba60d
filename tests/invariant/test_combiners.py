"""Steps of combiners that are no function of the plain Gram matrix, from their definitions."""

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
from drivekd.method.combine.grouped import agp_grouped_coefficients
from drivekd.models.vlm import Vlm

#: Relative error of an update [L2]: float32 sums in another order, times λ of about 1e5.
ERROR = 2e-5


def prepared(path: Path, teachers: dict[str, Vlm], /, **changes: Any) -> Run:
    train = {"max_grad_norm": None, "per_device_train_batch_size": 4, **changes.pop("train", {})}
    recipe = runs.recipe(path, Path("unused"), train=train, **changes)
    return prepare(plans.build(recipe, runs.tiny_student(), teachers))


def first_step(run: Run) -> Run:
    step(run, next(windows(run.plan.schedule.order, 0, 1)))
    return run


def assert_same(one: Tensor, other: Tensor, error: float = ERROR) -> None:
    assert one.norm() > 0
    assert float((one.float() - other.float()).norm() / one.float().norm()) < error


def weighted(run: Run) -> Tensor:
    """The mean gradients of a run's only step, times w_ce = 1 and the λ that it logged; 0 else."""
    rows = run.unit.gradients.double() / len(run.unit.indices)
    for row, reached, slots in zip(rows, run.unit.reached, run.unit.slots, strict=True):
        parts = torch.split(row, [slot.numel() for slot in slots])
        for part, there in zip(parts, reached, strict=True):
            part.mul_(float(there))
    names = run.plan.schedule.rows
    for row, name in zip(rows, names, strict=True):
        label = f"lambda/{name.removeprefix('teacher/')}"
        row.mul_(run.totals[label][0] if name.startswith("teacher/") else 1.0)
    return rows


def test_grouped_step_is_its_definition(data: Path, teachers: dict[str, Vlm]) -> None:
    run = first_step(prepared(data, teachers, combine={"combiner": "agp_grouped"}))
    assert run.unit.groups == runs.CAPABILITIES
    rows = weighted(run)
    order = projection_order(run.plan.recipe.seed, (0, 0), 3)
    a = agp_grouped_coefficients(rows @ rows.T, range(3), range(3), order)
    assert_same(a @ rows, run.update)
    for c, name in enumerate(runs.CAPABILITIES):
        assert run.totals[f"grad/ce_multiplier/{name}"][0] == pytest.approx(float(a[c]), rel=1e-4)
    plain = first_step(prepared(data, teachers))
    assert_same(plain.unit.gradients[0], run.unit.gradients[:3].sum(0))
    for name in ("lambda/reasoning", "grad/norm/ce", "grad/cos/ce_planning", "loss/ce"):
        assert plain.totals[name][0] == pytest.approx(run.totals[name][0], rel=1e-4)
    gap = float((plain.update - run.update).norm() / run.update.norm())
    assert gap > 1e-4  # cross-entropy three times against once


def test_grouped_with_what_a_unit_lacks(data: Path, teachers: dict[str, Vlm]) -> None:
    """Samples of two capabilities, all three teachers: one has no anchor of its own."""
    run = prepared(data, teachers, data={"pack": False}, combine={"combiner": "agp_grouped"})
    owners = [each.sample.capability for each in run.plan.schedule.encoded]
    batch = tuple(i for i, owner in enumerate(owners) if owner != "perception")[:6]
    step(run, runs.window(run.plan, [batch]))
    assert not run.unit.reached[0].any()
    assert run.unit.reached[1:].any(axis=1).all()
    rows = weighted(run)[1:]
    order = projection_order(run.plan.recipe.seed, (0, 0), 3)
    a = agp_grouped_coefficients(rows @ rows.T, [1, 2], [0, 1, 2], order)
    assert_same(a @ rows, run.update)
    assert "grad/ce_multiplier/perception" not in run.totals
    assert 0 <= run.totals["grad/stage1_rate"][0] <= 2 / 3


def test_grouped_by_micro_batch_or_without_teachers(data: Path, teachers: dict[str, Vlm]) -> None:
    combine = {"combiner": "agp_grouped"}
    plain = first_step(prepared(data, {}, capabilities={}))
    assert_same(
        plain.update, first_step(prepared(data, {}, capabilities={}, combine=combine)).update, 1e-6
    )
    single = {"data": {"pack": False}, "train": {"per_device_train_batch_size": 1}}
    combine["granularity"] = "micro_batch"
    routed = {c: {c: 1.0} for c in runs.CAPABILITIES}
    one = first_step(prepared(data, teachers, mixing=routed, combine=combine, **single))
    combine["combiner"] = "agp"  # one sample, one teacher: the same
    agp = first_step(prepared(data, teachers, mixing=routed, combine=combine, **single))
    assert_same(agp.update, one.update, 1e-6)


def test_a_weighting_of_torchjd_steps(
    data: Path, teachers: dict[str, Vlm], require_all: bool
) -> None:
    if not require_all:
        pytest.importorskip("torchjd", reason="needs the extra torchjd")
    from torchjd.aggregation import MGDAWeighting

    run = first_step(prepared(data, teachers, combine={"combiner": "torchjd:MGDA"}))
    rows = weighted(run)
    G = rows @ rows.T
    assert_same(MGDAWeighting()(G) @ rows, run.update, 1e-4)
    assert 0 <= run.totals["grad/ce_multiplier"][0] <= 1


def test_an_unknown_weighting_is_refused_before_anything_is_loaded(
    data: Path, require_all: bool
) -> None:
    if not require_all:
        pytest.importorskip("torchjd", reason="needs the extra torchjd")
    recipe = runs.recipe(data, Path("unused"), combine={"combiner": "torchjd:MDGA"})
    with pytest.raises(ValueError, match="MGDA"):
        plans.build(recipe)
