"""Makes the models that ship with the package, from scratch, on the embedded world.

Order of stages: tokenizer; vision tower on dense labels; for the teacher and for the smaller
student base alike projector, whitening, region tokens, alignment; then questions and answers for
one generalist teacher, one teacher per capability, and a teacher that only ever saw grey pictures.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict

from drivekd.data.readers import read
from drivekd.data.sample import CAMERAS, CAPABILITIES, Sample
from drivekd.distill.train import train
from drivekd.models.features import FeatureCache
from drivekd.models.tiny import build_tokenizer, tiny_vlm
from drivekd.models.vlm import Vlm, load, save, vision_parts
from drivekd.recipe import parse
from drivekd.world.dense import NOTHING
from drivekd.world.grounding import align, plant_regions, whiten
from drivekd.world.questions import TEMPLATES
from drivekd.world.sight import ATTRIBUTES
from drivekd.world.tower import Seen, read_seen, train_tower, visual_tokens


class Shape(BaseModel):
    """Measures of a decoder and how long it is aligned."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text_hidden: int
    text_layers: int
    heads: int
    kv_heads: int
    projector_steps: int
    align_steps: int


class TeachersRecipe(BaseModel):
    """The whole recipe of the shipped models; see `recipes/world_teachers.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int
    scenes: int
    vocab_size: int
    vision: dict[str, int]
    tower_steps: int
    whitening: float
    teacher: Shape
    student: Shape
    questions: dict[str, Any]  # `train` part of a training recipe, for every teacher
    questions_per_row: int
    generalist_steps: int
    capability_steps: int


def read_recipe(path: Path) -> TeachersRecipe:
    """Read the recipe of the shipped models.

    Raises:
        ValueError: for a key or value that is wrong.
    """
    return TeachersRecipe.model_validate(yaml.safe_load(path.read_text()))


def tokenizer_texts(samples: Iterable[Sample]) -> list[str]:
    """Everything that the world can say: questions with tags, all wordings, all answers."""
    texts = [w for t in TEMPLATES.values() for w in t.wordings]
    texts += [f"{camera}: \n" for camera in CAMERAS] * 50
    texts += [NOTHING, *ATTRIBUTES, *itertools.chain(*ATTRIBUTES.values())] * 20
    for sample in samples:
        texts += [sample.question, sample.answer or ""]
    return texts


def by_scene(samples: Iterable[Sample]) -> list[list[Sample]]:
    """Samples grouped by their scene, in order of first appearance."""
    groups: dict[str | None, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.scene, []).append(sample)
    return list(groups.values())


def see(recipe: TeachersRecipe, seen: Seen, tokenizer: Any) -> Vlm:
    """A model with a trained vision tower; its decoder is still random."""
    vlm = tiny_vlm(tokenizer=tokenizer, seed=recipe.seed, **_sizes(recipe.teacher, recipe.vision))
    train_tower(vlm, seen, steps=recipe.tower_steps, seed=recipe.seed)
    return vlm


def ground(
    vlm: Vlm,
    shape: Shape,
    recipe: TeachersRecipe,
    seen: Seen,
    cells: Sequence[Sequence[Sample]],
    *,
    stage: str = "aligned",
) -> Vlm:
    """Whiten, plant the region tokens, and align as far as `stage` says (vision, pointer, aligned).

    Args:
        vlm: with a trained tower and projector; changed in place.
        shape: how long to align.
        recipe: for seeds and the whitening power.
        seen: pictures to take statistics from.
        cells: dense questions by scene.
        stage: where to stop.
    """
    with torch.no_grad():
        tokens = visual_tokens(vlm, seen.pictures[:400])
        whiten(vlm, tokens, recipe.whitening)
        if stage != "vision":
            plant_regions(vlm, visual_tokens(vlm, seen.pictures[:400]), recipe.seed)
    if stage != "vision":
        steps = shape.align_steps
        align(vlm, cells, FeatureCache(), steps=steps, answers=stage == "aligned")
    return vlm


def student(recipe: TeachersRecipe, eyes: Vlm, seen: Seen) -> Vlm:
    """A smaller decoder behind the same vision tower, with a projector of its own."""
    sizes = _sizes(recipe.student, recipe.vision)
    vlm = tiny_vlm(tokenizer=eyes.tokenizer, seed=recipe.seed + 1, **sizes)
    vision_parts(vlm)[0].load_state_dict(vision_parts(eyes)[0].state_dict())
    steps = recipe.student.projector_steps
    train_tower(vlm, seen, steps=steps, projector_only=True, seed=recipe.seed + 1)
    return vlm


def teach(
    vlm: Vlm,
    recipe: TeachersRecipe,
    files: Sequence[Path],
    out: Path,
    *,
    steps: int,
    images: str = "real",
) -> Vlm:
    """Train on questions and answers with plain cross-entropy; the model given stays as it is."""
    run = parse(
        {
            "name": out.name,
            "seed": recipe.seed,
            "student": vlm.source,
            "output_dir": str(out),
            "data": {
                "train": [str(f) for f in files],
                "images": images,
                "questions_per_row": recipe.questions_per_row,
            },
            "train": dict(recipe.questions) | {"max_steps": steps},
        }
    )
    own = Vlm(
        copy.deepcopy(vlm.model), vlm.tokenizer, vlm.image_processor, vlm.family, vlm.source
    )
    return load(train(run, student=own))


def _sizes(shape: Shape, vision: Mapping[str, int]) -> dict[str, Any]:
    decoder = shape.model_dump(exclude={"projector_steps", "align_steps"})
    return {**decoder, **vision, "text_intermediate": 3 * shape.text_hidden}


def write_asset(vlm: Vlm, folder: Path, card: Mapping[str, Any]) -> None:
    """Save a model in half precision with a card that says how it was made."""
    half = copy.deepcopy(vlm.model).half()
    save(Vlm(half, vlm.tokenizer, vlm.image_processor, vlm.family, vlm.source), folder)
    lines = [f"# {folder.name}", "", "A tiny model of drivekd's embedded driving world.", ""]
    lines += [f"- {key}: {json.dumps(value)}" for key, value in card.items()]
    (folder / "README.md").write_text("\n".join(lines) + "\n")


__all__ = [
    "CAPABILITIES",
    "TeachersRecipe",
    "by_scene",
    "ground",
    "read",
    "read_recipe",
    "read_seen",
    "see",
    "student",
    "teach",
    "tokenizer_texts",
    "write_asset",
]
