"""What a step asks of the device: few transfers to the host, no work for layers out of reach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import runs
from drivekd.distill import plan as plans
from drivekd.distill import step as steps
from drivekd.distill.gradients import accumulate, stretches
from drivekd.distill.objective import batch_of, losses
from drivekd.distill.order import windows
from drivekd.distill.run import Run, prepare
from drivekd.distill.step import step
from drivekd.method.signals import head_mean

#: Operators whose result the host waits for: a number, or a size that depends on numbers.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique")


class Count(TorchDispatchMode):
    """Counts operators by name, and ways to the host that are none."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        for name in ("cpu", "tolist", "numpy"):
            patch.setattr(Tensor, name, self._counting(name, getattr(Tensor, name)))
        self.on = True

    def _counting(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.seen[name] += self.on
            return method(tensor, *args, **kwargs)

        return counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.overloadpacket.__name__.lstrip("_")] += self.on
        return func(*args, **(kwargs or {}))


def prepared(folder: Path, layers: int = 3, **changes: Any) -> Run:
    data = runs.write_data(folder / "data")
    recipe = runs.recipe(data, folder / "out", **changes)
    return prepare(plans.build(recipe, runs.tiny_student(text_layers=layers), runs.tiny_teachers()))


def counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """All that the third step does, without what only a CPU does or what happens on the host.

    Left out: laying out batches, and looking at masks for the columns that rows attend to.
    """
    first, second, third = windows(run.plan.schedule.order, 0, 3)
    for window in (first, second):
        step(run, window)

    with monkeypatch.context() as patch:
        count = Count(patch)

        def uncounted(function: Callable[..., Any]) -> Callable[..., Any]:
            def run_uncounted(*args: Any) -> Any:
                count.on = False
                result = function(*args)
                count.on = True
                return result

            return run_uncounted

        patch.setattr(steps, "batch_of", uncounted(batch_of))
        patch.setattr(head_mean, "_blocks", uncounted(head_mean._blocks))
        with count:
            step(run, third)
    return count.seen


def waits(seen: Counter[str]) -> Counter[str]:
    return Counter({name: seen[name.lstrip("_")] for name in (*WAITS, "cpu", "tolist")})


def test_one_transfer_per_step_whatever_the_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = (
        waits(counted(prepared(tmp_path / str(layers), layers), monkeypatch)) for layers in (3, 6)
    )
    assert small == large
    assert small["cpu"] == 1  # Gram matrices and losses together
    assert small["tolist"] == 1  # of the Gram matrix, which is on the host by then
    # Checks of the batch: image tokens of four models, answers, rows of two text→vision terms.
    assert small["_local_scalar_dense"] <= 4 + 1 + 2
    assert small.total() <= 11


def test_micro_batches_need_one_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {
        "data": {"pack": False},
        "combine": {"granularity": "micro_batch"},
        "train": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3},
    }
    assert waits(counted(prepared(tmp_path, **changes), monkeypatch))["cpu"] == 3


def test_a_step_with_kept_coefficients_runs_backward_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = counted(prepared(tmp_path / "exact"), monkeypatch)
    kept = counted(prepared(tmp_path / "kept", combine={"refresh": 8}), monkeypatch)
    assert waits(kept)["cpu"] == 1
    # Feed-forward blocks of three layers; the two losses on the second layer see the first one's.
    assert (exact["silu_backward"], kept["silu_backward"]) == (3 + 1 + 1, 3)


def test_the_layer_one_loss_does_no_work_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its backward pass is the same for three layers as for six, and so is what it writes."""
    work, written = [], []
    for layers in (3, 6):
        run = prepared(tmp_path / str(layers), layers)
        indices = range(len(run.plan.schedule.encoded))
        with losses(run.plan.models, batch_of(run.plan, runs.rows(run.plan, indices))) as found:
            perception = found.sums()[1]
            assert perception is not None
            with monkeypatch.context() as patch, Count(patch) as count:
                torch.autograd.grad(
                    perception, run.plan.trained.parameters, allow_unused=True, retain_graph=True
                )
            possible = [True] * len(run.plan.schedule.rows)
            accumulate(run.unit, run.plan.trained.parameters, found, indices, possible)
        work.append(count.seen)
        written.append(int(run.unit.reached[1].sum()))
        reached = [stretch for stretch in stretches(run.unit) if 1 in stretch.rows]
        size = sum(stretch.stop - stretch.start for stretch in reached)
        assert size < 0.1 * run.unit.gradients.shape[1]
    assert work[0] == work[1]
    assert written == [5, 5]  # norm, and weight and bias of q and k


def test_gradients_have_the_parameters_type(tmp_path: Path) -> None:
    run = prepared(tmp_path)
    assert {p.dtype for p in run.plan.trained.parameters} == {run.unit.gradients.dtype}
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in run.plan.trained.parameters)
