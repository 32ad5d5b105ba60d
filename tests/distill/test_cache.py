"""Kept targets are those of live teachers, in whatever batch the samples are laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tests import runs

from drivekd.distill import plan as plans
from drivekd.distill.order import Order, windows
from drivekd.distill.plan import Plan
from drivekd.distill.targets.cache import Layout, TargetCache, cached, layout_of, target_bytes
from drivekd.distill.teachers import teacher
from drivekd.distill.teachers.teacher import Maps
from drivekd.distill.train import train
from drivekd.models.batch import Batch, Row, collate, rows_of

FAMILIES = (
    {"family": "internvl"},
    {"family": "qwen2_5_vl", "image_size": 48},
    {"family": "qwen3_vl", "image_size": 48},
)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda options: options["family"])
def plan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    data = runs.write_data(tmp_path_factory.mktemp("data"))
    recipe = runs.recipe(data, Path("unused"), train={"max_steps": 9})
    return plans.build(
        recipe, runs.tiny_student(**request.param), runs.tiny_teachers(**request.param)
    )


def laid_out(plan: Plan, indices: Sequence[int], *, pack: bool = True) -> Batch:
    """These samples as a batch."""
    encoded = [plan.schedule.encoded[i] for i in indices]
    return collate(plan.models.student, encoded, rows_of(encoded, pack=pack))


def maps(plan: Plan, batch: Batch, *, live: bool) -> dict[str, Maps]:
    """Targets with everything zero that no sample's loss reads."""
    rows = teacher.text_rows(batch)
    targets = partial(teacher.targets, plan.models.teachers) if live else plan.models.targets
    found = targets(batch, rows)
    pairs = torch.zeros_like(batch.attention_mask[:, 0])
    for row, members in zip(batch.row, batch.members, strict=True):
        pairs[row] |= members[:, None] & members
    kept = {}
    for term in plan.models.terms:
        own = pairs if term.whole else pairs[:, rows]
        kept[term.capability] = {n: m * own for n, m in found[term.capability].maps.items()}
    return kept


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("indices", [(0, 1, 2, 3, 4), (3,), (7, 1, 13, 2, 0), tuple(range(15))])
def test_kept_targets_are_live_ones(plan: Plan, indices: tuple[int, ...], pack: bool) -> None:
    batch = laid_out(plan, indices, pack=pack)
    assert isinstance(plan.models.targets, TargetCache)
    torch.testing.assert_close(
        maps(plan, batch, live=False), maps(plan, batch, live=True), atol=2e-6, rtol=0
    )


def test_a_sample_gets_its_own_target_and_no_other(plan: Plan) -> None:
    one, other = (laid_out(plan, [i]) for i in (0, 5))  # the same question of two scenes
    here, there = (maps(plan, batch, live=False)["reasoning"][0] for batch in (one, other))
    assert here.shape == there.shape
    assert float((here - there).abs().max()) > 1e-3


def test_the_size_is_what_is_kept(plan: Plan) -> None:
    kept = plan.models.targets
    assert isinstance(kept, TargetCache)
    maps(plan, laid_out(plan, range(15)), live=False)
    parts = [part for of in kept.parts.values() for part in of.values()]
    assert len(kept.parts) == 3 + 15
    assert target_bytes(kept.layout) == sum(part.untyped_storage().nbytes() for part in parts)


@pytest.mark.parametrize(("pack", "at_once"), [(True, None), (True, 2), (False, None)])
def test_teachers_never_run_more_often_than_without_a_cache(
    plan: Plan, pack: bool, at_once: int | None
) -> None:
    """Each batch is at most one pass, of what no earlier batch had; some batches are none."""
    asked: list[int] = []

    def live(batch: Batch, rows: torch.Tensor) -> dict[str, teacher.Trace]:
        asked.append(len(batch.samples))
        return teacher.targets(plan.models.teachers, batch, rows)

    rows = rows_of(plan.schedule.encoded, pack=pack)
    order = Order(rows, seed=3, rows_per_batch=2, batches_per_step=2, questions_per_row=at_once)
    batches = [batch for window in windows(order, 0, 12) for batch in window.batches]
    kept = cached(live, layout(plan), batches)
    for rows in batches:
        before = len(asked)
        kept(*with_rows(plan, rows))
        assert len(asked) - before <= 1
    assert sum(asked) == 15  # each sample once
    assert len(asked) < len(batches) / 2


def layout(plan: Plan) -> Layout:
    """What a cache of its teachers' maps holds."""
    return layout_of(plan.models.student, plan.models.terms, plan.schedule.encoded)


def with_rows(plan: Plan, rows: Sequence[Row]) -> tuple[Batch, torch.Tensor]:
    """What targets are asked with."""
    batch = collate(plan.models.student, plan.schedule.encoded, rows)
    return batch, teacher.text_rows(batch)


def test_what_a_resumed_run_computes_again_is_the_same_bit_by_bit(plan: Plan) -> None:
    order = Order(rows_of(plan.schedule.encoded), 3, 2, 1, questions_per_row=2)
    batches = [batch for window in windows(order, 0, 12) for batch in window.batches]
    live = partial(teacher.targets, plan.models.teachers)
    whole, resumed = (cached(live, layout(plan), batches) for _ in range(2))
    for number, rows in enumerate(batches):
        known = whole(*with_rows(plan, rows))
        if number >= 5:
            again = resumed(*with_rows(plan, rows))
            for name, trace in known.items():
                for layer, map_ in trace.maps.items():
                    assert torch.equal(map_, again[name].maps[layer])


def test_training_from_kept_targets_is_training_with_live_teachers(tmp_path: Path) -> None:
    data = runs.write_data(tmp_path / "data")
    losses = {}
    for limit in (4.0, 0.0):
        out = tmp_path / f"{limit}"
        recipe = runs.recipe(data, out, train={"max_steps": 6, "cache_targets_gb": limit})
        train(recipe, student=runs.tiny_student(), teachers=runs.tiny_teachers())
        losses[limit] = runs.lines(out)
    for kept, live in zip(losses[4.0], losses[0.0], strict=True):
        for name in (name for name in live if name.startswith(("loss/", "grad/", "lambda/"))):
            assert kept[name] == pytest.approx(live[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize(
    ("steps", "limit", "signal", "kept"),
    [
        (9, 4.0, "full", True),
        (9, 0.0, "full", False),
        (9, 1e-6, "full", False),
        (2, 4.0, "full", False),  # one epoch: nothing is seen twice
        (9, 4.0, "hidden", False),
    ],
)
def test_targets_are_kept_where_that_saves_something(
    tmp_path: Path, steps: int, limit: float, signal: str, kept: bool
) -> None:
    capabilities = runs.recipe(tmp_path, Path("unused")).model_dump()["capabilities"]
    capabilities["reasoning"]["signal"] = signal
    recipe = runs.recipe(
        runs.write_data(tmp_path),
        Path("unused"),
        train={"max_steps": steps, "cache_targets_gb": limit},
        capabilities=capabilities,
    )
    made = plans.build(recipe, runs.tiny_student(), runs.tiny_teachers())
    assert isinstance(made.models.targets, TargetCache) is kept


def with_targets(plan: Plan, targets: teacher.Targets) -> Plan:
    """A plan whose teachers' maps come from elsewhere."""
    return replace(plan, models=replace(plan.models, targets=targets))


def test_exchanged_targets_are_exchanged_from_kept_ones_too(plan: Plan) -> None:
    batch = laid_out(plan, range(5))
    live = partial(teacher.targets, plan.models.teachers)
    kept, wanted = (
        maps(with_targets(plan, teacher.mismatching(of, plan.models.terms)), batch, live=False)
        for of in (plan.models.targets, live)
    )
    torch.testing.assert_close(kept, wanted, atol=2e-6, rtol=0)
    straight = maps(plan, batch, live=False)["planning"][1]
    assert float((kept["planning"][1] - straight).abs().max()) > 1e-3
