"""Fills the store of the teachers' attention without training: `drivekd cache`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from drivekd.distill import plan as plans
from drivekd.distill.processes import launch, parallel
from drivekd.distill.run import settings
from drivekd.models import vlm as vlms
from drivekd.recipe import Recipe


def fill(
    recipe: Recipe,
    *,
    student: vlms.Vlm | None = None,
    teachers: Mapping[str, vlms.Vlm] | None = None,
) -> Path:
    """Let the teachers run on every sample of a recipe that the store lacks.

    Several processes, started as for training, share the samples.

    Args:
        recipe: of the runs that are to read it.
        student: used instead of loading `recipe.student`.
        teachers: used instead of loading them, by the name that the recipe gives them.

    Returns:
        The folder of the store.

    Raises:
        ValueError: the recipe has no store or no teachers, or the store is another's.
        OSError: it could not be written.
    """
    if recipe.cache.dir is None:
        raise ValueError(
            f"recipe {recipe.name} names no folder for the store: set cache.dir, or give --out"
        )
    if not recipe.capabilities:
        raise ValueError(f"recipe {recipe.name} has no capabilities, so no teacher to store")
    asked = launch.honoured(recipe)  # the precision, above all: that of the runs that will read
    whole = asked.model_copy(update={"train": asked.train.model_copy(update={"fsdp": False})})
    with parallel.joined() as ranks, settings(whole):
        plans.build(whole, student, teachers, ranks)
    return Path(recipe.cache.dir)
