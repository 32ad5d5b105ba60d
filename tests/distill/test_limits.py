"""What is too long is refused before training; long packed rows are cut, samples never."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import runs
from drivekd.distill import plan as plans
from drivekd.distill.held_out import held_out_loss
from drivekd.distill.objective import batch_of
from drivekd.distill.order import windows
from drivekd.distill.plan import Plan
from drivekd.distill.run import Run, initial_state, prepare
from drivekd.distill.saving import log
from drivekd.distill.step import step
from drivekd.distill.targets.cache import TargetCache
from drivekd.distill.train import train
from drivekd.models.batch import group, rows_of
from drivekd.models.vlm import Vlm


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    runs.write_data(folder / "held_out", scenes=2, first=3)
    return runs.write_data(folder)


@pytest.fixture(scope="module")
def teachers() -> dict[str, Vlm]:
    return runs.tiny_teachers()


def held_out(data: Path) -> list[str]:
    return [str(data.parent / "held_out" / data.name)]


def lengths(plan: Plan) -> list[int]:
    return [len(each.input_ids) for each in plan.schedule.encoded]


# ---------------------------------------------------------------------------------- refused


def refusal(data: Path, student: Vlm | None = None, **limits: Any) -> str:
    recipe = runs.recipe(data, Path("unused"), capabilities={}, data=limits)
    with pytest.raises(ValueError) as caught:
        plans.build(recipe, student or runs.tiny_student())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_samples_that_are_too_long_are_named_with_their_lengths(data: Path, tmp_path: Path) -> None:
    recipe = runs.recipe(data, tmp_path, capabilities={}, train={"max_steps": 1})
    plan = plans.build(recipe, runs.tiny_student())
    longest = max(lengths(plan))
    ids = [e.sample.id for e in plan.schedule.encoded if len(e.input_ids) == longest]
    said = refusal(data, max_length=longest - 1)
    assert said.startswith(f"training samples {ids[0]} ({longest} tokens)")
    assert f"than the {longest - 1} of data.max_length; leave them out" in said
    assert len(ids) == said.count(f"({longest} tokens)")
    assert "raise it" in said
    fits = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"max_length": longest})}
    )
    assert lengths(plans.build(fits, runs.tiny_student())) == lengths(plan)
    # Nothing is left of a run that is refused.
    short = recipe.data.model_copy(update={"max_length": longest - 1})
    with pytest.raises(ValueError, match="max_length"):
        train(recipe.model_copy(update={"data": short}), student=runs.tiny_student())
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".jsonl", ".json")]


def test_by_default_a_model_says_how_long(data: Path) -> None:
    student = runs.tiny_student()
    student.model.config.get_text_config().max_position_embeddings = 20
    said = refusal(data, student)
    assert "than the 20 of max_position_embeddings of tiny:internvl; leave them out" in said
    assert "set data.max_length if it can take more" in said
    recipe = runs.recipe(data, Path("unused"), capabilities={}, data={"max_length": 500})
    assert plans.build(recipe, student).schedule.encoded


def test_a_teacher_may_be_the_one_that_cannot(data: Path) -> None:
    short = runs.tiny_teachers()
    short["tiny:reasoning"].model.config.get_text_config().max_position_embeddings = 20
    short["tiny:reasoning"] = replace(short["tiny:reasoning"], source="the short one")
    with pytest.raises(ValueError, match=r"20 .*max_position_embeddings"):
        plans.build(runs.recipe(data, Path("unused")), runs.tiny_student(), short)


def test_held_out_samples_have_the_same_limits(data: Path) -> None:
    path = Path(held_out(data)[0])
    longer = path.with_name("longer.jsonl")
    longer.write_text(path.read_text().replace("Turn?", "Turn? " * 30))
    said = refusal(data, eval=[str(longer)], max_length=60)
    assert said.startswith("evaluation samples s3q4 (")


def test_samples_with_too_many_pictures_are_named(data: Path) -> None:
    said = refusal(data, max_images=1)
    assert said.startswith("training samples s0q0 (2 pictures), s0q1 (2 pictures)")
    assert "more pictures than data.max_images = 1; leave them out" in said
    recipe = runs.recipe(data, Path("unused"), capabilities={}, data={"max_images": 2})
    assert plans.build(recipe, runs.tiny_student()).schedule.encoded


# -------------------------------------------------------------------------------------- cut


@pytest.mark.parametrize(
    ("own", "limit", "at_once", "sizes"),
    [
        ((5, 5, 5, 5), 30, None, [4]),
        ((5, 5, 5, 5), 29, None, [2, 2]),
        ((5, 5, 5, 5), 19, None, [1, 1, 1, 1]),
        ((5, 5, 5, 5), 3, None, [1, 1, 1, 1]),  # a sample is never cut
        ((5, 5, 5, 5), 20, 2, [4]),
        ((5, 9, 5, 9), 27, 2, [2, 2]),
        ((5, 9, 5, 9), 28, 2, [4]),
        ((7, 7, 7), None, None, [3]),
    ],
)
def test_rows_are_cut_into_equal_parts(
    own: tuple[int, ...], limit: int | None, at_once: int | None, sizes: list[int]
) -> None:
    rows = group([0] * len(own), [(10, length) for length in own], limit, at_once)
    assert [len(row) for row in rows] == sizes
    assert [index for row in rows for index in row] == list(range(len(own)))


def stepped(data: Path, teachers: dict[str, Vlm], batch: int, **limits: Any) -> Run:
    """A step that sees all rows at once."""
    train = {"per_device_train_batch_size": batch, "max_steps": 1}
    recipe = runs.recipe(data, Path("unused"), train=train, data={**limits, "eval": held_out(data)})
    run = prepare(plans.build(recipe, runs.tiny_student(), teachers))
    for window in windows(run.plan.schedule.order, 0, 1):
        step(run, window)
    return run


def test_cut_rows_take_the_same_step(data: Path, teachers: dict[str, Vlm]) -> None:
    whole = stepped(data, teachers, 3)
    longest = max(lengths(whole.plan))
    cut = stepped(data, teachers, 15, max_row_tokens=longest + 20)
    assert [len(row) for row in whole.plan.schedule.order.rows] == [5, 5, 5]
    counts = [len(row) for row in cut.plan.schedule.order.rows]
    assert sum(counts) == 15
    assert 3 < len(counts) < 15
    plans_ = (whole.plan, cut.plan)
    shapes = [batch_of(plan, plan.schedule.order.rows).input_ids.shape for plan in plans_]
    assert shapes[0][0] == 3
    assert shapes[1][0] == len(counts)
    assert shapes[1][1] <= longest + 20 < shapes[0][1]
    error = (whole.update - cut.update).norm() / whole.update.norm()
    assert float(error) < 1e-5
    means = [log.means(run.totals) for run in (whole, cut)]
    assert means[1] == pytest.approx(means[0], rel=1e-4, abs=1e-5)
    losses = [held_out_loss(run.plan) for run in (whole, cut)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    data = [initial_state(run, "").data for run in (whole, cut)]
    assert data[0] != data[1]  # so a checkpoint of one is not resumed by the other


def test_kept_teachers_see_cut_rows(data: Path, teachers: dict[str, Vlm]) -> None:
    settings = {"train": {"max_steps": 99}, "data": {"max_row_tokens": 1}}
    recipe = runs.recipe(data, Path("unused"), **settings)
    plan = plans.build(recipe, runs.tiny_student(), teachers)
    assert isinstance(plan.models.targets, TargetCache)
    assert plan.schedule.order.rows == tuple((n,) for n in range(15))
    kept = {row for group in plan.models.targets.groups for row in group}
    assert kept == set(plan.schedule.order.rows)


def test_rows_that_are_drawn_from_are_cut_by_what_is_drawn(data: Path) -> None:
    plan = plans.build(runs.recipe(data, Path("unused"), capabilities={}), runs.tiny_student())
    prefix = plan.schedule.encoded[0].prefix
    own = sorted((length - prefix for length in lengths(plan)[:5]), reverse=True)
    limit = prefix + sum(own[:2])
    encoded = plan.schedule.encoded
    first = [each for each in encoded if each.images == encoded[0].images]
    for most, expected in ((limit, 1), (limit - 1, 2)):
        assert len(rows_of(first, max_tokens=most, at_once=2)) == expected
    assert len(rows_of(first, max_tokens=limit)) > 1
    assert rows_of(encoded, pack=False, max_tokens=1) == tuple((n,) for n in range(15))


def test_a_run_with_cut_rows_ends(data: Path, teachers: dict[str, Vlm], tmp_path: Path) -> None:
    changes = {"data": {"max_row_tokens": 60}, "train": {"num_train_epochs": 2}}
    student = runs.tiny_student()
    train(runs.recipe(data, tmp_path, **changes), student=student, teachers=teachers)
    assert all(torch.isfinite(p).all() for p in student.model.parameters())
