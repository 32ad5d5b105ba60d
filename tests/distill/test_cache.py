"""Kept targets are those of live teachers, in whatever batch the samples are laid out."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tests import runs

from drivekd.distill import plan as plans
from drivekd.distill.plan import Plan
from drivekd.distill.targets.cache import TargetCache, layout_of, target_bytes
from drivekd.distill.teachers import teacher
from drivekd.distill.teachers.teacher import Maps
from drivekd.distill.train import train
from drivekd.models.batch import Batch, collate

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


def maps(plan: Plan, batch: Batch, *, live: bool) -> dict[str, Maps]:
    """Targets with everything zero that no sample's loss reads."""
    rows = teacher.text_rows(batch)
    targets = partial(teacher.targets, plan.teachers) if live else plan.targets
    found = targets(batch, rows)
    pairs = torch.zeros_like(batch.attention_mask[:, 0])
    for row, members in zip(batch.row, batch.members, strict=True):
        pairs[row] |= members[:, None] & members
    kept = {}
    for term in plan.terms:
        own = pairs if term.whole else pairs[:, rows]
        kept[term.capability] = {n: m * own for n, m in found[term.capability].maps.items()}
    return kept


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("indices", [(0, 1, 2, 3, 4), (3,), (7, 1, 13, 2, 0), tuple(range(15))])
def test_kept_targets_are_live_ones(plan: Plan, indices: tuple[int, ...], pack: bool) -> None:
    batch = collate(plan.student, [plan.encoded[i] for i in indices], pack=pack)
    assert isinstance(plan.targets, TargetCache)
    torch.testing.assert_close(
        maps(plan, batch, live=False), maps(plan, batch, live=True), atol=2e-6, rtol=0
    )


def test_a_sample_gets_its_own_target_and_no_other(plan: Plan) -> None:
    one, other = (
        collate(plan.student, [plan.encoded[i]], pack=True) for i in (0, 5)
    )  # the same question of two scenes
    here, there = (maps(plan, batch, live=False)["reasoning"][0] for batch in (one, other))
    assert here.shape == there.shape
    assert float((here - there).abs().max()) > 1e-3


def test_the_size_is_what_is_kept(plan: Plan) -> None:
    kept = plan.targets
    assert isinstance(kept, TargetCache)
    maps(plan, collate(plan.student, plan.encoded, pack=True), live=False)
    parts = [
        part for each in (kept.prefixes, kept.own) for of in each.values() for part in of.values()
    ]
    assert len(kept.prefixes) == 3 and len(kept.own) == 15
    assert target_bytes(kept.layout) == sum(part.untyped_storage().nbytes() for part in parts)


@pytest.mark.parametrize(("at_once", "seen"), [(None, [5, 5]), (2, [2, 2, 1] * 2)])
def test_teachers_see_each_row_once(plan: Plan, at_once: int | None, seen: list[int]) -> None:
    asked: list[int] = []

    def live(batch: Batch, rows: torch.Tensor) -> dict[str, teacher.Trace]:
        asked.append(len(batch.samples))
        return teacher.targets(plan.teachers, batch, rows)

    kept = TargetCache(live, layout_of(plan.student, plan.terms, plan.encoded, at_once))
    for indices in ((0, 7), (1,), (2, 8, 3)):
        batch = collate(plan.student, [plan.encoded[i] for i in indices], pack=True)
        found = maps(replace(plan, targets=kept), batch, live=False)
        torch.testing.assert_close(found, maps(plan, batch, live=True), atol=2e-6, rtol=0)
    assert asked == seen


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
    assert isinstance(made.targets, TargetCache) is kept


def test_exchanged_targets_are_exchanged_from_kept_ones_too(plan: Plan) -> None:
    batch = collate(plan.student, [plan.encoded[i] for i in range(5)], pack=True)
    live = replace(plan, targets=partial(teacher.targets, plan.teachers))
    kept, wanted = (
        maps(replace(p, targets=teacher.mismatching(p.targets, p.terms)), batch, live=False)
        for p in (plan, live)
    )
    torch.testing.assert_close(kept, wanted, atol=2e-6, rtol=0)
    straight = maps(plan, batch, live=False)["planning"][1]
    assert float((kept["planning"][1] - straight).abs().max()) > 1e-3
