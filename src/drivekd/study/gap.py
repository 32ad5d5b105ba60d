"""How far a student's attention is from a teacher's, layer by layer, on questions of one kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from drivekd.distill.teachers import attention, teacher
from drivekd.distill.teachers.teacher import Teacher, Term
from drivekd.method.signals.layers import group_layers
from drivekd.method.signals.losses import text_to_vision_mask
from drivekd.models import vlm as vlms
from drivekd.models.batch import Batch, collate, forward
from drivekd.models.encode import Encoded
from drivekd.models.features import FeatureCache
from drivekd.models.generate import evaluating
from drivekd.models.vlm import Vlm

AT_ONCE = 8  # samples of one forward pass
Gap = dict[str, NDArray[np.float64]]  # capability to the distance at each layer of the student


def gap(student: Vlm, vlm: Vlm, encoded: Sequence[Encoded]) -> Gap:
    """Squared distance of text→vision maps, relative to the teacher's, per capability and layer.

    For student layer l with teacher layers M(l) (grouped in proportion), over all samples of a
    capability: Σ_b |S_l − mean_{m ∈ M(l)} T_m|² / Σ_b |mean T_m|², both sums over text rows ×
    image columns. 0: they look alike; 1: as far as looking nowhere. [ours] The teacher is frozen
    (`teacher.freeze`), the samples have pictures and are in the student's encoding.
    """
    depth = len(vlms.decoder_layers(student))
    theirs = list(range(len(vlms.decoder_layers(vlm))))
    matches = group_layers(list(range(depth)), theirs, "proportional")
    term = Term("all", "text_to_vision", matches, "mse", reachable=False, temperature=1.0)
    frozen = Teacher(vlm, (term,), FeatureCache(latest=True))
    sums: dict[str, NDArray[np.float64]] = {}
    attention.install(student.model)
    with evaluating(student.model):
        for start in range(0, len(encoded), AT_ONCE):
            part = encoded[start : start + AT_ONCE]
            squares = _squares(student, frozen, collate(student, part))
            for sample, square in zip(part, squares, strict=True):
                name = sample.sample.capability or "none"
                sums[name] = sums.get(name, np.zeros((2, depth))) + square
    return {name: parts[0] / parts[1] for name, parts in sums.items()}


@torch.no_grad()
def _squares(student: Vlm, frozen: Teacher, batch: Batch) -> NDArray[np.float64]:
    """Compute both sums of each sample and layer: [B, 2, L]."""
    rows = teacher.text_rows(batch)
    goals = teacher.targets([frozen], batch, rows)["all"].maps
    layers = vlms.decoder_layers(student)
    with attention.capture(layers, dict.fromkeys(goals, rows)) as maps:
        forward(student, batch, frozen.features)
    mask = text_to_vision_mask(batch.is_image, batch.valid)[:, rows].double()
    parts = [
        torch.stack(
            [
                ((maps[layer].double() - goals[layer].double()).square() * mask).sum((1, 2)),
                (goals[layer].double().square() * mask).sum((1, 2)),
            ],
            dim=1,
        )
        for layer in sorted(goals)
    ]
    stacked: NDArray[np.float64] = torch.stack(parts, dim=2).cpu().numpy()
    return stacked
