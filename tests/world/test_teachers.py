"""The chain of stages that makes the shipped models: what runs when, and what is made anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from world_models import teachers
from world_models.teachers import STAGES, Stage, TeachersRecipe, Workshop, key, read_recipe

from drivekd.data.sample import CAPABILITIES
from drivekd.models.tiny import tiny_vlm
from drivekd.models.vlm import Vlm, load

RECIPE = Path(teachers.__file__).parent / "recipe.yaml"


@pytest.fixture
def recipe() -> TeachersRecipe:
    return read_recipe(RECIPE)


def changed(recipe: TeachersRecipe, **parts: Any) -> TeachersRecipe:
    return TeachersRecipe.model_validate(recipe.model_dump() | parts)


def test_every_stage_runs_once_and_after_what_it_starts_from() -> None:
    done: set[str] = set()
    for names in teachers.rounds():
        for name in names:
            assert set(STAGES[name].after) <= done
        assert not done & set(names)
        done |= set(names)
    assert done == set(STAGES)
    assert {f"teacher_{c}" for c in CAPABILITIES} <= done


def test_stages_use_parts_that_the_recipe_has(recipe: TeachersRecipe) -> None:
    used = {part for stage in STAGES.values() for part in stage.uses} | {"seed", "scenes"}
    assert used == set(recipe.model_dump()) - {"validation_scenes"}


@pytest.mark.parametrize(
    ("part", "value", "stale"),
    [
        ("capability_steps", 1, {f"teacher_{c}" for c in CAPABILITIES}),
        ("validation_scenes", 1, set()),
        ("seed", 7, set(STAGES)),
        ("tower_steps", 1, set(STAGES)),
        (
            "generalist_steps",
            1,
            {n for n in STAGES if n.startswith("teacher")} - {"teacher_aligned"},
        ),
    ],
)
def test_a_changed_recipe_makes_what_depends_on_it_stale(
    recipe: TeachersRecipe, part: str, value: int, stale: set[str]
) -> None:
    other = changed(recipe, **{part: value})
    assert {name for name in STAGES if key(name, recipe) != key(name, other)} == stale


def test_a_complete_stage_is_kept_and_a_stale_one_made_anew(
    recipe: TeachersRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def first(shop: Workshop, start: list[Vlm]) -> tuple[Vlm, dict[str, Any]]:
        assert start == []
        made.append("first")
        return tiny_vlm(vision_layers=1), {"kind": 0.5}

    def second(shop: Workshop, start: list[Vlm]) -> tuple[Vlm, dict[str, Any]]:
        made.append("second")
        return start[0], {}

    chain = {"a": Stage(first, (), ("tower_steps",)), "b": Stage(second, ("a",), ())}
    monkeypatch.setattr(teachers, "STAGES", chain)
    shop = Workshop(recipe, tmp_path / "world", tmp_path)
    for _ in range(2):
        for name in chain:
            teachers.run_stage(name, shop)
    assert made == ["first", "second"]
    card = json.loads((tmp_path / "a" / "card.json").read_text())
    assert card == {"key": key("a", recipe), "kind": 0.5}
    assert load(tmp_path / "b").source == str(tmp_path / "b")
    shop = Workshop(changed(recipe, tower_steps=1), tmp_path / "world", tmp_path)
    for name in chain:
        teachers.run_stage(name, shop)
    assert made == ["first", "second"] * 2


def test_an_interrupted_stage_is_not_complete(
    recipe: TeachersRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(shop: Workshop, start: list[Vlm]) -> tuple[Vlm, dict[str, Any]]:
        raise KeyboardInterrupt

    monkeypatch.setattr(teachers, "STAGES", {"a": Stage(fail, (), ())})
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "card.json").write_text(json.dumps({"key": "of an earlier recipe"}))
    with pytest.raises(KeyboardInterrupt):
        teachers.run_stage("a", Workshop(recipe, tmp_path, tmp_path))
    assert not (tmp_path / "a" / "card.json").exists()


def test_lessons_mix_questions_with_a_few_dense_ones(world: Path) -> None:
    path = teachers.lessons(world, 3, "planning")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    scored = [row for row in rows if not row["template"].startswith("cell_")]
    dense = [row for row in rows if row["template"].startswith("cell_")]
    assert scored
    assert {row["question_type"] for row in scored} == {"planning"}
    assert len(dense) == 3 * len({row["scene"] for row in dense})
    assert not list(world.glob("mixed_planning.*[0-9]"))


def test_a_mistyped_part_of_the_recipe_is_named(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.read_text().replace("tower_steps", "tower_step"))
    with pytest.raises(ValueError, match="tower_step"):
        read_recipe(file)
