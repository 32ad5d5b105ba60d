"""What a run computes once and keeps: visual tokens of pictures, attention of the teachers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

from drivekd.distill.targets.cache import cached, layout_of, target_bytes
from drivekd.distill.targets.storing import Stored
from drivekd.distill.teachers import teacher, vision
from drivekd.distill.teachers.teacher import Teacher, Term
from drivekd.models import vlm as vlms
from drivekd.models.batch import Encoded, Row
from drivekd.models.features import FeatureCache, feature_bytes
from drivekd.recipe import Recipe

logger = logging.getLogger(__name__)


def visual(
    recipe: Recipe,
    student: vlms.Vlm,
    teachers: Sequence[Teacher],
    encoded: Sequence[Encoded],
    held_out: Sequence[Encoded],
) -> tuple[FeatureCache | None, tuple[Teacher, ...]]:
    """The student's cache of visual features, and the teachers with theirs.

    Models that see alike (vision.py) share one; its memory is counted once.
    """
    trains_vision = recipe.train.trainable == "everything"
    models = [(each.vlm, each.device or each.vlm.device) for each in teachers]
    if not trains_vision:
        models.append((student, student.device))
    caches: list[FeatureCache | None] = [None] * (len(teachers) + 1)
    for group in vision.alike(models):
        shown = [*encoded, *held_out] if len(teachers) in group else encoded
        vlm, shared = models[group[0]][0], len(group) > 1
        if shared:
            names = ", ".join(models[number][0].source for number in group)
            logger.info("%s see alike: one vision tower runs for all of them", names)
        cache = _feature_cache(recipe, vlm, shown, shared=shared)
        for number in group:
            caches[number] = cache
    pairs = zip(teachers, caches, strict=False)
    return caches[-1], tuple(replace(each, features=cache) for each, cache in pairs)


def _feature_cache(
    recipe: Recipe, vlm: vlms.Vlm, encoded: Sequence[Encoded], *, shared: bool
) -> FeatureCache | None:
    """Room for the visual tokens of all pictures; where it is too much, of those of a batch."""
    if recipe.data.images == "grey":  # one picture for all; without a cache the real one is read
        return FeatureCache(image_mode="grey", alike=shared)
    grids = {
        path: grid for each in encoded for path, grid in zip(each.images, each.grids, strict=True)
    }
    need, limit = feature_bytes(vlm, grids.values()) / 1e9, recipe.train.cache_features_gb
    if need <= limit:
        return FeatureCache(alike=shared)
    logger.warning(
        "visual tokens of %d pictures by %s would take %.1f GB, more than "
        "train.cache_features_gb = %g: its vision tower runs at every visit of a picture",
        len(grids), vlm.source, need, limit,
    )  # fmt: skip
    return FeatureCache(alike=True, latest=True) if shared else None


def targets(
    recipe: Recipe,
    teachers: Sequence[Teacher],
    terms: Sequence[Term],
    student: vlms.Vlm,
    encoded: Sequence[Encoded],
    stored: Stored | None,
    *,
    again: bool,
    batches: Iterable[Sequence[Row]],
) -> teacher.Targets:
    """Choose the store, or teachers behind a cache where samples are seen again; or the control.

    `batches`: of this process, in the order of the run.
    """
    targets: teacher.Targets = partial(teacher.targets, teachers)
    if stored is not None:
        targets = stored.targets
    elif again and terms and all(term.of_attention for term in terms):
        layout = layout_of(student, terms, encoded, recipe.data.images)
        need, limit = target_bytes(layout) / 1e9, recipe.train.cache_targets_gb
        if need <= limit:
            targets = cached(targets, layout, batches)
        elif limit > 0:
            logger.warning(
                "attention of the teachers on %d samples would take %.1f GB, more than "
                "train.cache_targets_gb = %g: the teachers run at every visit of a sample",
                len(encoded), need, limit,
            )  # fmt: skip
    return teacher.mismatching(targets, terms) if recipe.data.mismatch else targets
