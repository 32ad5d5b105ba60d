"""Makes the models that ship with the package, from scratch, on the embedded world.

Tokenizer and vision tower on dense labels; for the teacher and for the smaller student base alike
projector, whitening, region tokens, alignment; then questions and answers for one generalist
teacher, one teacher per capability, and a teacher that only ever saw grey pictures. Every stage
leaves a model behind, so that an interrupted run goes on where it stopped; a stage whose recipe,
data or start changed is made anew.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedTokenizerFast as Tokenizer

from drivekd.data.formats.readers import read
from drivekd.data.sample import CAMERAS, CAPABILITIES, Sample
from drivekd.distill.train import train
from drivekd.distill.trained import device
from drivekd.files.workers import side_by_side
from drivekd.files.writing import write_json
from drivekd.models.features import FeatureCache
from drivekd.models.tiny import build_tokenizer, tiny_vlm
from drivekd.models.vlm import Vlm, load, save, vision_parts
from drivekd.recipe import parse
from drivekd.world import make as worlds
from drivekd.world.questions import NOTHING, TEMPLATES
from drivekd.world.sight import ATTRIBUTES
from world_models.grounding import align, plant_regions, whiten
from world_models.tower import read_seen, train_tower, visual_tokens

Facts = dict[str, Any]
"""What a stage says about itself: how it was made and how well it does."""


class Shape(BaseModel):
    """Measures of a decoder and how long it is prepared."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text_hidden: int
    text_layers: int
    heads: int
    kv_heads: int
    projector_steps: int
    align_steps: int


class TeachersRecipe(BaseModel):
    """The whole recipe of the shipped models; see recipe.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int
    scenes: int
    validation_scenes: int
    statistics_scenes: int
    vocab_size: int
    vision: dict[str, Any]
    tower_steps: int
    whitening: float
    teacher: Shape
    student: Shape
    questions: dict[str, Any]  # the `train` part of a training recipe, for every teacher
    questions_per_row: int
    dense_per_scene: int
    generalist_steps: int
    capability_steps: int
    seeing_steps: int


@dataclass(frozen=True)
class Workshop:
    """What every stage is given: the recipe, the world's folder and the folder of all stages."""

    recipe: TeachersRecipe
    world: Path
    out: Path


@dataclass(frozen=True)
class Stage:
    """One step on the way to the shipped models."""

    #: starts from the models of `after` and returns a model with facts about it
    make: Callable[[Workshop, list[Vlm]], tuple[Vlm, Facts]]
    after: tuple[str, ...]  # names of the stages that it starts from
    uses: tuple[str, ...]  # the parts of the recipe that it depends on, beside `seed` and `scenes`


def read_recipe(path: Path) -> TeachersRecipe:
    """Read the recipe of the shipped models.

    Raises:
        ValueError: for a key or value that is wrong.
    """
    return TeachersRecipe.model_validate(yaml.safe_load(path.read_text()))


# ----------------------------------------------------------------------------------- the data


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


def lessons(world: Path, dense_per_scene: int, capability: str | None = None) -> Path:
    """Write questions (of one capability, or all) with a few dense ones per scene into one file."""
    rng = np.random.default_rng(41)
    path = world / f"mixed_{capability or 'all'}.jsonl"
    rows = (world / "questions.jsonl").read_text().splitlines()
    kept = [r for r in rows if capability in (None, json.loads(r)["question_type"])]
    scenes: dict[str, list[str]] = {}
    for row in (world / "dense.jsonl").read_text().splitlines():
        scenes.setdefault(json.loads(row)["scene"], []).append(row)
    for group in scenes.values():
        kept += [group[i] for i in rng.permutation(len(group))[:dense_per_scene]]
    # stages side by side write the same file: each its own, then one takes the place
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text("\n".join(kept) + "\n")
    return unfinished.replace(path)


# ---------------------------------------------------------------------------------- the stages


def see(shop: Workshop, _: list[Vlm]) -> tuple[Vlm, Facts]:
    """Tokenizer and vision tower, with the teacher's projector; the decoder is still random."""
    recipe = shop.recipe
    texts = tokenizer_texts(read(shop.world / "questions.jsonl"))
    tokenizer = build_tokenizer(texts, recipe.vocab_size)
    vlm = _new(recipe, recipe.teacher, tokenizer, recipe.seed)
    seen = read_seen(shop.world, recipe.scenes)
    return vlm, dict(train_tower(vlm, seen, steps=recipe.tower_steps, seed=recipe.seed))


def see_smaller(shop: Workshop, start: list[Vlm]) -> tuple[Vlm, Facts]:
    """A smaller decoder behind the same vision tower, with a projector of its own."""
    recipe, (eyes,) = shop.recipe, start
    seed = recipe.seed + 1
    vlm = _new(recipe, recipe.student, eyes.tokenizer, seed)
    vision_parts(vlm)[0].load_state_dict(vision_parts(eyes)[0].state_dict())
    seen, steps = read_seen(shop.world, recipe.scenes), recipe.student.projector_steps
    return vlm, dict(train_tower(vlm, seen, steps=steps, projector_only=True, seed=seed))


def ground(
    shop: Workshop, start: list[Vlm], *, who: str, points: bool = True, answers: bool = True
) -> tuple[Vlm, Facts]:
    """Whiten; plant the region tokens and learn to point; learn to answer about cells."""
    recipe, (vlm,) = shop.recipe, start
    pictures = read_seen(shop.world, recipe.statistics_scenes).pictures
    with torch.no_grad():
        whiten(vlm, visual_tokens(vlm, pictures), recipe.whitening)
        if not points:
            return vlm, {}
        plant_regions(vlm, visual_tokens(vlm, pictures), recipe.seed)
    cells, shape = by_scene(read(shop.world / "dense.jsonl")), getattr(recipe, who)
    found = align(vlm, cells, FeatureCache(), steps=shape.align_steps, answers=answers)
    return vlm, {"attention on the right cell": found.on_cell, "answer loss": found.loss}


def teach(
    shop: Workshop,
    start: list[Vlm],
    *,
    name: str,
    steps: str,
    lesson: Callable[[Workshop], Path],
    images: str = "real",
) -> tuple[Vlm, Facts]:
    """Train on questions and answers with plain cross-entropy.

    Args:
        shop: as for every stage.
        start: the model to start from.
        name: of this stage.
        steps: which part of the recipe counts them.
        lesson: the file of questions.
        images: real or grey pictures.
    """
    recipe, (vlm,) = shop.recipe, start
    count = getattr(recipe, steps)
    settings = {
        "name": name,
        "seed": recipe.seed,
        "student": vlm.source,
        "output_dir": str(shop.out / "runs" / f"{name}-{key(name, recipe)}"),
        "data": {
            "train": [str(lesson(shop))],
            "images": images,
            "questions_per_row": recipe.questions_per_row,
        },
        "train": dict(recipe.questions) | {"max_steps": count},
    }
    return load(train(parse(settings), resume=True)), {"steps": count, "images": images}


def _new(recipe: TeachersRecipe, shape: Shape, tokenizer: Tokenizer, seed: int) -> Vlm:
    sizes = recipe.vision | shape.model_dump(exclude={"projector_steps", "align_steps"})
    vlm = tiny_vlm(tokenizer=tokenizer, seed=seed, **sizes)
    model: Any = vlm.model
    model.to(device())
    return vlm


_GROUND = ("whitening", "statistics_scenes")
_TEACH = ("questions", "questions_per_row", "dense_per_scene")
_SEE = ("vision", "vocab_size", "tower_steps", "teacher")


def _mixed(shop: Workshop, capability: str | None = None) -> Path:
    return lessons(shop.world, shop.recipe.dense_per_scene, capability)


def _dense(shop: Workshop) -> Path:
    return shop.world / "dense.jsonl"


_general = partial(teach, steps="generalist_steps", lesson=_mixed)
_student = partial(ground, who="student")

STAGES: dict[str, Stage] = {
    "tower": Stage(see, (), _SEE),
    "teacher_aligned": Stage(partial(ground, who="teacher"), ("tower",), ("teacher", *_GROUND)),
    "small_tower": Stage(see_smaller, ("tower",), ("student",)),
    "teacher": Stage(
        partial(_general, name="teacher"), ("teacher_aligned",), ("generalist_steps", *_TEACH)
    ),
    "teacher_blind": Stage(
        partial(_general, name="teacher_blind", images="grey"),
        ("teacher_aligned",),
        ("generalist_steps", *_TEACH),
    ),
    "student_vision": Stage(partial(_student, points=False), ("small_tower",), _GROUND),
    "student_pointer": Stage(
        partial(_student, answers=False), ("small_tower",), ("student", *_GROUND)
    ),
    "student_aligned": Stage(_student, ("small_tower",), ("student", *_GROUND)),
    "student_seeing": Stage(
        partial(teach, name="student_seeing", steps="seeing_steps", lesson=_dense),
        ("student_aligned",),
        ("seeing_steps", *_TEACH),
    ),
} | {
    f"teacher_{c}": Stage(
        partial(
            teach,
            name=f"teacher_{c}",
            steps="capability_steps",
            lesson=partial(_mixed, capability=c),
        ),
        ("teacher",),
        ("capability_steps", *_TEACH),
    )
    for c in CAPABILITIES
}


def key(name: str, recipe: TeachersRecipe) -> str:
    """Digest of all that a stage depends on: its part of the recipe, the world, its starts."""
    stage, raw = STAGES[name], recipe.model_dump()
    depends = {part: raw[part] for part in ("seed", "scenes", *stage.uses)}
    starts = [key(start, recipe) for start in stage.after]
    text = json.dumps([name, worlds.FORMAT, depends, starts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_stage(name: str, shop: Workshop, threads: int = 1) -> None:
    """Run one stage in so many torch threads, unless it is complete as the recipe now says."""
    card, mark = shop.out / name / "card.json", key(name, shop.recipe)
    if card.exists() and json.loads(card.read_text()).get("key") == mark:
        return
    torch.set_num_threads(threads)
    card.unlink(missing_ok=True)
    stage = STAGES[name]
    starts = [load(shop.out / start, device=device()) for start in stage.after]
    vlm, facts = stage.make(shop, starts)
    save(vlm, shop.out / name)
    write_json(card, {"key": mark, **facts})  # last: the stage is complete


def rounds() -> list[list[str]]:
    """Names of stages, those that can run side by side together."""
    done: set[str] = set()
    order = []
    while len(done) < len(STAGES):
        ready = [n for n, s in STAGES.items() if n not in done and set(s.after) <= done]
        order.append(ready)
        done.update(ready)
    return order


def make_teachers(recipe: TeachersRecipe, out: Path, *, workers: int) -> None:
    """Make every stage, in processes side by side where stages do not need each other."""
    world = worlds.make(out / "world", recipe.scenes, "train").parent
    shop = Workshop(recipe, world, out)
    for names in rounds():
        threads = max(1, workers // len(names))
        for _ in side_by_side(partial(run_stage, shop=shop, threads=threads), names, workers):
            pass
