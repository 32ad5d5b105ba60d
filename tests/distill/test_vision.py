"""Models that see alike run one vision tower, and nothing else about them changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import runs
from drivekd.distill import plan as plans
from drivekd.distill.held_out import held_out_loss
from drivekd.distill.objective import autocast, batch_of, losses
from drivekd.distill.plan import Plan
from drivekd.distill.teachers import teacher, vision
from drivekd.distill.train import train
from drivekd.models import vlm as vlms
from drivekd.models.features import FeatureCache, image_features
from drivekd.models.vlm import Vlm

CPU = torch.device("cpu")
A, B = "tiny:a", "tiny:b"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    runs.write_data(folder / "held_out", scenes=1, first=3)
    return runs.write_data(folder)


def seeing(other: Vlm, seed: int, **options: Any) -> Vlm:
    """Another decoder behind the same vision tower and projector."""
    made = runs.tiny_student(seed, **options)
    for mine, theirs in zip(vlms.vision_parts(made), vlms.vision_parts(other), strict=True):
        mine.load_state_dict(theirs.state_dict())
    return made


def pair() -> dict[str, Vlm]:
    first = runs.tiny_student(11, text_layers=4)
    return {A: first, B: seeing(first, 12, text_layers=4)}


def build(
    data: Path,
    teachers: dict[str, Vlm],
    student: Vlm | None = None,
    folder: str = "x",
    **train: Any,
) -> Plan:
    """A plan in which the second teacher has two capabilities."""
    names = dict(zip(runs.CAPABILITIES, [*teachers, list(teachers)[-1]], strict=True))
    one = runs.capability("", "1..penultimate", "full")
    capabilities = {name: {**one, "teacher": source} for name, source in names.items()}
    more: dict[str, Any] = {"data": {"eval": [str(data.parent / "held_out" / data.name)]}}
    recipe = runs.recipe(data, Path(folder), capabilities=capabilities, train=train, **more)
    given = {name: vlm for name, vlm in teachers.items() if not Path(name).is_dir()}
    return plans.build(recipe, student or runs.tiny_student(), given)


def apart(plan: Plan, cache: Callable[[], FeatureCache | None]) -> Plan:
    """The same plan with features of its own for every model."""
    teachers = tuple(replace(each, features=cache()) for each in plan.models.teachers)
    return replace(plan, models=replace(plan.models, features=cache(), teachers=teachers))


@contextmanager
def counted(plan: Plan) -> Iterator[list[int]]:
    """How often the vision towers of student and teachers run inside, in this order."""
    models = [plan.models.student, *(each.vlm for each in plan.models.teachers)]
    counts = [0] * len(models)

    def count(number: int, *_: Any) -> None:
        counts[number] += 1

    towers = [vlms.vision_parts(vlm)[0] for vlm in models]
    hooks = [each.register_forward_hook(partial(count, n)) for n, each in enumerate(towers)]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def tables(plan: Plan, batches: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """The losses of some batches, by live teachers."""
    live = partial(teacher.targets, plan.models.teachers)
    plan = replace(plan, models=replace(plan.models, targets=live))
    found = []
    for indices in batches:
        with losses(plan.models, batch_of(plan, runs.rows(plan, indices))) as each:
            found.append(each.table())
    return found


def test_kept_features_have_the_precision_of_training(data: Path) -> None:
    plan = build(data, pair(), bf16=True)
    plans.fill_caches(plan)
    for vlm, cache in (
        (plan.models.student, plan.models.features),
        *((each.vlm, each.features) for each in plan.models.teachers),
    ):
        assert cache is not None
        files = plan.schedule.encoded[0].images
        with torch.no_grad(), autocast(plan.models):
            live = image_features(vlm, files)
        with torch.no_grad():
            full = image_features(vlm, files)
        kept = cache.features(vlm, files)
        assert all(map(torch.equal, kept, live))
        assert not any(map(torch.equal, kept, full))


BATCHES = (range(5), range(5, 15))


def test_two_teacher_folders_with_one_tower_run_it_once(data: Path, tmp_path: Path) -> None:
    teachers = {str(tmp_path / name): vlm for name, vlm in zip("ab", pair().values(), strict=True)}
    for folder, vlm in teachers.items():
        vlms.save(vlm, folder)
    plan = build(data, teachers)
    with counted(plan) as counts:
        plans.fill_caches(plan)
        # The student's own tower, the one of both teachers. The held-out scene has the bytes of
        # the first one's pictures: known by these, it costs nothing.
        assert counts == [3, 3, 0]
        shared = tables(plan, BATCHES)
        assert counts == [3, 3, 0]
    alone = apart(plan, FeatureCache)
    with counted(alone) as counts:
        plans.fill_caches(alone)
        assert counts == [3, 3, 3]
    assert all(map(torch.equal, shared, tables(alone, BATCHES)))


@pytest.mark.parametrize("bf16", [False, True])
def test_without_room_the_tower_of_all_runs_once_per_batch(data: Path, bf16: bool) -> None:
    teachers = pair()
    student = seeing(teachers[A], 1)
    plan = build(data, teachers, student, cache_features_gb=0, bf16=bf16)
    with counted(plan) as counts:
        plans.fill_caches(plan)
        assert sum(counts) == 0
        shared = tables(plan, BATCHES)
        assert counts == [0, 2, 0]
        held_out = held_out_loss(plan)
        assert counts == [1, 2, 0]
    alone = apart(plan, lambda: None)
    with counted(alone) as counts:
        assert all(map(torch.equal, shared, tables(alone, BATCHES)))
        assert counts == [2, 2, 2]
    assert held_out == held_out_loss(alone)


def test_the_student_may_be_one_of_them(data: Path, tmp_path: Path) -> None:
    teachers = pair()
    plan = build(data, teachers, seeing(teachers[A], 1))
    with counted(plan) as counts:
        plans.fill_caches(plan)
        assert counts == [3, 0, 0]
    shared, alone = tables(plan, BATCHES), apart(plan, FeatureCache)
    plans.fill_caches(alone)
    assert all(map(torch.equal, shared, tables(alone, BATCHES)))
    trains = build(data, teachers, seeing(teachers[A], 1), trainable="everything").models
    assert trains.features is None
    assert trains.teachers[0].features is trains.teachers[1].features is not None


def test_a_run_says_who_sees_alike(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (replace(vlm, source=name) for name, vlm in pair().items())
    recipe = build(data, {A: first, B: second}, max_steps=1, folder=str(tmp_path)).recipe
    with caplog.at_level("INFO"):
        train(recipe, student=runs.tiny_student(), teachers={A: first, B: second})
    said = [line.getMessage() for line in caplog.records if "see alike" in line.getMessage()]
    assert said == ["tiny:a, tiny:b see alike: one vision tower runs for all of them"]
    assert json.loads((tmp_path / "run.json").read_text())["see_alike"] == [[A, B]]


def _weight(vlm: Vlm) -> None:
    with torch.no_grad():
        next(vlms.vision_parts(vlm)[0].parameters()).view(-1)[0] += 1e-6


def _projector(vlm: Vlm) -> None:
    with torch.no_grad():
        list(vlms.vision_parts(vlm)[-1].parameters())[-1].view(-1)[0] += 1e-6


def _precision(vlm: Vlm) -> None:
    vlm.model.bfloat16()


def _colours(vlm: Vlm) -> None:
    vlm.image_processor.image_mean = [0.5, 0.5, 0.5]


def _layer(vlm: Vlm) -> None:
    vlm.model.config.vision_feature_layer = -2


@pytest.mark.parametrize("change", [_weight, _projector, _precision, _colours, _layer])
def test_what_differs_is_not_shared(change: Callable[[Vlm], None]) -> None:
    first, second = pair().values()
    assert vision.alike([(first, CPU), (second, CPU)]) == [[0, 1]]
    assert vision.alike([(first, CPU), (second, torch.device("meta"))]) == [[0], [1]]
    change(second)
    third = seeing(first, 13)
    found = vision.alike([(first, CPU), (second, CPU), (third, CPU)])
    assert found == [[0, 2], [1]]


def test_a_changed_weight_is_another_tower_in_a_run(data: Path) -> None:
    teachers = pair()
    _weight(teachers[B])
    plan = build(data, teachers)
    with counted(plan) as counts:
        plans.fill_caches(plan)
    assert counts == [3, 3, 3]


@pytest.mark.parametrize("family", sorted(vlms.FAMILIES))
def test_a_saved_model_sees_as_before(family: str, tmp_path: Path) -> None:
    made = runs.tiny_student(family=family)
    vlms.save(made, tmp_path)
    loaded = vlms.load(tmp_path, num_layers=1, head=False)
    teacher.freeze(loaded)
    assert vision.alike([(made, CPU), (loaded, CPU)]) == [[0, 1]]
