"""Makes the models that ship with the package, from scratch, on the embedded world.

Order of stages: tokenizer; vision tower on dense labels; for the teacher and for the smaller
student base alike projector, whitening, region tokens, alignment; then questions and answers for
one generalist teacher, one teacher per capability, and a teacher that only ever saw grey pictures.
Every stage leaves a model behind, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict

from drivekd.data.processes import side_by_side
from drivekd.data.readers import read
from drivekd.data.sample import CAMERAS, CAPABILITIES, Sample
from drivekd.distill.train import train
from drivekd.models.features import FeatureCache
from drivekd.models.tiny import build_tokenizer, tiny_vlm
from drivekd.models.vlm import ASSETS, Vlm, load, save, vision_parts
from drivekd.recipe import parse
from drivekd.world.dense import NOTHING
from drivekd.world.grounding import align, plant_regions, whiten
from drivekd.world.make import make
from drivekd.world.questions import TEMPLATES
from drivekd.world.sight import ATTRIBUTES
from drivekd.world.tower import read_seen, train_tower, visual_tokens

Stage = Literal["vision", "pointer", "aligned"]
_STATISTICS = 400  # scenes that whitening and region tokens are computed from


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
    """The whole recipe of the shipped models; see `recipes/world_teachers.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int
    scenes: int
    validation_scenes: int
    vocab_size: int
    vision: dict[str, int]
    tower_steps: int
    whitening: float
    teacher: Shape
    student: Shape
    questions: dict[str, Any]  # the `train` part of a training recipe, for every teacher
    questions_per_row: int
    dense_per_scene: int
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


def see(recipe: TeachersRecipe, world: Path, out: Path) -> None:
    """Tokenizer and vision tower, with the teacher's projector; the decoder is still random."""
    tokenizer = build_tokenizer(tokenizer_texts(read(world / "questions.jsonl")), recipe.vocab_size)
    sizes = _sizes(recipe.teacher, recipe.vision)
    vlm = tiny_vlm(tokenizer=tokenizer, seed=recipe.seed, **sizes)
    accuracy = train_tower(
        vlm, read_seen(world, recipe.scenes), steps=recipe.tower_steps, seed=recipe.seed
    )
    _done(vlm, out / "tower", accuracy)


def see_smaller(recipe: TeachersRecipe, world: Path, out: Path) -> None:
    """A smaller decoder behind the same vision tower, with a projector of its own."""
    eyes = load(out / "tower")
    sizes = _sizes(recipe.student, recipe.vision)
    vlm = tiny_vlm(tokenizer=eyes.tokenizer, seed=recipe.seed + 1, **sizes)
    vision_parts(vlm)[0].load_state_dict(vision_parts(eyes)[0].state_dict())
    steps, seen = recipe.student.projector_steps, read_seen(world, 1500)
    accuracy = train_tower(vlm, seen, steps=steps, projector_only=True, seed=recipe.seed + 1)
    _done(vlm, out / "small_tower", accuracy)


def ground(shape: Shape, recipe: TeachersRecipe, world: Path, start: Path, out: Path) -> None:
    """Whiten, plant the region tokens and align; `out` names how far: vision, pointer, aligned."""
    vlm, stage = load(start), out.name.rsplit("_", 1)[-1]
    pictures = read_seen(world, _STATISTICS).pictures
    with torch.no_grad():
        whiten(vlm, visual_tokens(vlm, pictures), recipe.whitening)
        if stage != "vision":
            plant_regions(vlm, visual_tokens(vlm, pictures), recipe.seed)
    quality = {}
    if stage != "vision":
        cells = by_scene(read(world / "dense.jsonl"))
        found = align(
            vlm, cells, FeatureCache(), steps=shape.align_steps, answers=stage == "aligned"
        )
        quality = {"attention on the right cell": found.on_cell, "answer loss": found.loss}
    _done(vlm, out, quality)


def teach(
    recipe: TeachersRecipe, start: Path, out: Path, file: Path, *, steps: int, images: str = "real"
) -> None:
    """Train on the questions and answers of a file with plain cross-entropy."""
    run = parse(
        {
            "name": out.name,
            "seed": recipe.seed,
            "student": str(start),
            "output_dir": str(out) + ".run",
            "data": {
                "train": [str(file)],
                "images": images,
                "questions_per_row": recipe.questions_per_row,
            },
            "train": dict(recipe.questions) | {"max_steps": steps},
        }
    )
    _done(load(train(run, resume=True)), out, {"steps": steps, "images": images})


def _sizes(shape: Shape, vision: Mapping[str, int]) -> dict[str, Any]:
    decoder = shape.model_dump(exclude={"projector_steps", "align_steps"})
    return {**decoder, **vision, "text_intermediate": 3 * shape.text_hidden}


def _done(vlm: Vlm, folder: Path, card: Mapping[str, Any]) -> None:
    """Save a stage; the card comes last and says that the stage is complete."""
    save(vlm, folder)
    (folder / "card.json").write_text(json.dumps(card, indent=1))


def _stage(name: str, recipe: TeachersRecipe, world: Path, out: Path) -> None:
    """Run one stage, unless it is complete."""
    if (out / name / "card.json").exists():
        return
    torch.set_num_threads(1)
    target, aligned, dense = out / name, out / "teacher_aligned", recipe.dense_per_scene
    if name == "tower":
        torch.set_num_threads(os.cpu_count() or 1)
        see(recipe, world, out)
    elif name == "small_tower":
        see_smaller(recipe, world, out)
    elif name == "teacher_aligned":
        ground(recipe.teacher, recipe, world, out / "tower", target)
    elif name.startswith("student"):
        ground(recipe.student, recipe, world, out / "small_tower", target)
    elif name in ("teacher", "teacher_blind"):
        images = "grey" if name == "teacher_blind" else "real"
        steps, file = recipe.generalist_steps, lessons(world, dense)
        teach(recipe, aligned, target, file, steps=steps, images=images)
    else:
        file = lessons(world, dense, name.removeprefix("teacher_"))
        teach(recipe, out / "teacher", target, file, steps=recipe.capability_steps)


#: which stages can run side by side, in order
STAGES: tuple[tuple[str, ...], ...] = (
    ("tower",),
    ("teacher_aligned", "small_tower"),
    (
        "teacher",
        "teacher_blind",
        "student_vision",
        "student_pointer",
        "student_aligned",
    ),
    tuple(f"teacher_{c}" for c in CAPABILITIES),
)
#: what is shipped, and the stage that it is
SHIPPED = {
    "teacher": "teacher",
    "teacher_blind": "teacher_blind",
    "student_base": "student_pointer",  # chosen on validation scenes, see docs/log.md
    **{f"teacher_{c}": f"teacher_{c}" for c in CAPABILITIES},
}


def make_teachers(recipe: TeachersRecipe, out: Path, *, workers: int) -> None:
    """Make every stage, in processes side by side where stages do not need each other."""
    world = make(out / "world", recipe.scenes, "train").parent
    for stages in STAGES:
        stage = partial(_stage, recipe=recipe, world=world, out=out)
        for _ in side_by_side(stage, stages, workers):
            pass


def ship(out: Path, assets: Path) -> None:
    """Write the models that ship with the package in half precision, each with its card."""
    for name, stage in SHIPPED.items():
        vlm = load(out / stage)
        half = copy.deepcopy(vlm.model).half()
        save(Vlm(half, vlm.tokenizer, vlm.image_processor, vlm.family, name), assets / name)
        card = json.loads((out / stage / "card.json").read_text())
        lines = [f"# {name}", "", "A tiny model of drivekd's embedded driving world.", ""]
        lines += [f"- {key}: {value}" for key, value in card.items()]
        (assets / name / "README.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """`python -m drivekd.world.teachers`: make and ship all models."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/world_teachers"))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    recipe = read_recipe(Path(__file__).parent.parent / "recipes" / "world_teachers.yaml")
    make_teachers(recipe, given.out, workers=given.workers)
    ship(given.out, ASSETS)


if __name__ == "__main__":
    main()
