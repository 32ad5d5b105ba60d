"""What a run computes once and keeps: visual tokens of pictures, attention of the teachers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from drivekd.distill import teacher
from drivekd.distill.cache import TargetCache, layout_of, target_bytes
from drivekd.distill.storing import Stored
from drivekd.distill.teacher import Teacher, Term
from drivekd.models import vlm as vlms
from drivekd.models.batch import Encoded
from drivekd.models.features import FeatureCache, feature_bytes
from drivekd.recipe import Recipe

logger = logging.getLogger(__name__)


def feature_cache(recipe: Recipe, vlm: vlms.Vlm, encoded: Sequence[Encoded]) -> FeatureCache | None:
    """Room for the visual tokens of all pictures, None where they would take too much memory."""
    if recipe.data.images == "grey":  # one picture for all; without a cache the real one is read
        return FeatureCache(image_mode="grey")
    grids = {
        path: grid for each in encoded for path, grid in zip(each.images, each.grids, strict=True)
    }
    need, limit = feature_bytes(vlm, grids.values()) / 1e9, recipe.train.cache_features_gb
    if need <= limit:
        return FeatureCache()
    logger.warning(
        "visual tokens of %d pictures by %s would take %.1f GB, more than "
        "train.cache_features_gb = %g: its vision tower runs at every visit of a picture",
        len(grids), vlm.source, need, limit,
    )  # fmt: skip
    return None


def targets(
    recipe: Recipe,
    teachers: Sequence[Teacher],
    terms: Sequence[Term],
    student: vlms.Vlm,
    encoded: Sequence[Encoded],
    stored: Stored | None,
    *,
    again: bool,
) -> teacher.Targets:
    """The store, or the teachers behind a cache where samples are seen again; or the control."""
    targets: teacher.Targets = partial(teacher.targets, teachers)
    if stored is not None:
        targets = stored.targets
    elif again and terms and all(term.of_attention for term in terms):
        layout = layout_of(student, terms, encoded, recipe.data.questions_per_row)
        need, limit = target_bytes(layout) / 1e9, recipe.train.cache_targets_gb
        if need <= limit:
            targets = TargetCache(targets, layout)
        elif limit > 0:
            logger.warning(
                "attention of the teachers on %d samples would take %.1f GB, more than "
                "train.cache_targets_gb = %g: the teachers run at every visit of a sample",
                len(encoded), need, limit,
            )  # fmt: skip
    return teacher.mismatching(targets, terms) if recipe.data.mismatch else targets
