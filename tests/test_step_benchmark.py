"""The benchmark of one step: its arms take the same update, and it says what it says it does."""

from __future__ import annotations

import json
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tests.scripts import script
from torch import Tensor

from drivekd.distill.objective import batch_of
from drivekd.distill.order import windows
from drivekd.distill.run import Run, prepare
from drivekd.distill.step import step
from drivekd.method.combine.projection import agp_coefficients


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("step")


@pytest.fixture
def sample(bench: ModuleType, tmp_path: Path) -> Path:
    return bench.write_sample(bench.SIZES["XS"], tmp_path)


def ours(bench: ModuleType, arm: str, sample: Path, steps: int = 1) -> Run:
    run = prepare(bench.make_plan(arm, bench.SIZES["XS"], sample))
    for window in windows(run.plan.schedule.order, 0, steps):
        step(run, window)
    return run


def twin(bench: ModuleType, sample: Path, steps: int = 1) -> Tensor:
    """The naive twin's clipped update."""
    run = bench.naive.prepare(bench.make_plan("naive", bench.SIZES["XS"], sample))
    for window in windows(run.plan.schedule.order, 0, steps):
        bench.naive.step(run, window)
    return torch.cat([p.grad.flatten() for p in run.plan.trained.parameters])


def assert_same(one: Tensor, other: Tensor, error: float) -> None:
    assert one.norm() > 0
    assert float((one - other).norm() / one.norm()) < error


@pytest.mark.parametrize("steps", [1, 2])
def test_the_naive_twin_takes_our_update(bench, sample, steps):
    run = ours(bench, "exact_live", sample, steps)
    assert_same(run.update, twin(bench, sample, steps), 1e-4)
    assert run.totals["grad/conflict_rate"][0] > 0  # stage 1 fired


def test_the_naive_twin_frees_one_teachers_maps_before_the_next(bench, sample, monkeypatch):
    run = bench.naive.prepare(bench.make_plan("naive", bench.SIZES["XS"], sample))
    plain, maps = bench.naive.run_model, []

    def watched(vlm, *rest):
        assert not [kept for kept in maps if kept() is not None], "another teacher's maps are held"
        logits, attention = plain(vlm, *rest)
        if vlm is not run.plan.models.student:
            maps.extend(map(weakref.ref, attention))
        return logits, attention

    monkeypatch.setattr(bench.naive, "run_model", watched)
    (window,) = windows(run.plan.schedule.order, 0, 1)
    bench.naive.step(run, window)
    assert len(maps) == 3 * bench.SIZES["XS"].teacher.layers


@pytest.mark.parametrize("seed", range(4))
def test_its_projection_of_lists_is_ours_of_the_gram_matrix(bench, seed):
    torch.manual_seed(seed)
    rows = torch.randn(4, 7)
    rows[1:] = 9 * (rows[1:] - rows[1:].mean(0))  # teachers that pull apart
    lists = [[row[:3].reshape(1, 3), row[3:]] for row in rows]
    found = torch.cat([part.flatten() for part in bench.naive.agp(lists, [2, 0, 1])])
    wide = rows.double()
    a = agp_coefficients(wide @ wide.T, [2, 0, 1])
    assert not torch.allclose(a[1:], torch.ones(3, dtype=torch.float64))  # stage 2 fired
    assert_same((a @ wide).float(), found, 1e-5)


def test_stored_targets_give_the_live_update(bench, sample):
    assert_same(
        ours(bench, "exact_shared", sample).update, ours(bench, "exact_cached", sample).update, 1e-7
    )


def test_all_arms_train_the_same_parameters(bench, sample):
    plans = [bench.make_plan(arm, bench.SIZES["XS"], sample) for arm in ("sft", "exact_live")]
    names, others = (plan.trained.names for plan in plans)
    assert names == others
    assert not any("embed" in name or "vision" in name for name in names)
    assert [len(plan.models.teachers) for plan in plans] == [0, 3]


@pytest.mark.parametrize("name", ["S", "M"])
def test_the_sample_is_as_long_as_announced(bench, tmp_path, name):
    size = bench.SIZES[name]
    small = bench.SIZES["XS"]
    size = replace(size, student=small.student, teacher=small.teacher)
    plan = bench.make_plan("sft", size, bench.write_sample(size, tmp_path))
    batch = batch_of(plan, [(0,)])
    assert batch.input_ids.shape == (1, size.tokens)
    assert int(batch.is_image.sum()) == 64 * size.pictures
    assert int((batch.labels >= 0).sum()) == size.answer


def test_sizes_are_those_announced(bench):
    wanted = {"S": (6.8, 35), "M": (35, 102)}
    for name, (student, teacher) in wanted.items():
        size = bench.SIZES[name]
        for decoder, millions in ((size.student, student), (size.teacher, teacher)):
            assert decoder.layers * decoder.linear / 1e6 == pytest.approx(millions, rel=0.06)


def test_floors_are_in_order(bench):
    for size in bench.SIZES.values():
        least = bench.floors(size)
        assert tuple(least) == bench.ARMS
        assert least["sft"] == 1
        assert least["refresh8"] < least["exact_cached"] < least["exact_shared"]
        assert least["exact_shared"] < least["exact_live"] < least["naive"]


def test_the_last_line_names_every_arm(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["step.py", "--size", "XS", "--rounds", "1"])
    bench.main()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert tuple(last) == bench.ARMS
    for row in last.values():
        assert set(row) == {"seconds", "peak_mb"}
        assert min(row.values()) > 0
    written = json.loads((tmp_path / "results" / "step_cpu_quick.json").read_text())
    assert written["arms"]["sft"]["seconds_over_sft"] == 1
    assert {"commit", "hardware", "threads", "size", "load_average"} <= written.keys()
