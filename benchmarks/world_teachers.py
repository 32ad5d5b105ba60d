"""Make the models that ship with the package, score them on validation scenes, ship them.

    python benchmarks/world_teachers.py            # make, ship and score them: about an hour
    python benchmarks/world_teachers.py --shipped  # score what the package holds, train nothing

The first writes src/drivekd/assets (weights in half precision, each with its card); both write
results/world_teachers.json: the gate that every kind of question has to pass, which is that a
teacher with pictures beats a teacher trained blind, the majority answer and, where two things are
named, a guess between the two.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from provenance import provenance, write_result
from world_models.teachers import STAGES, TeachersRecipe, make_teachers, read_recipe

from drivekd.data.formats.readers import read
from drivekd.data.sample import CAPABILITIES
from drivekd.evaluate.answers.asking import Asking, answers
from drivekd.evaluate.score import as_json, majority, score
from drivekd.files.workers import side_by_side
from drivekd.models.vlm import ASSETS, load, save
from drivekd.world.make import make
from drivekd.world.questions import TEMPLATES

#: what is shipped, and the stage that it is
SHIPPED = {
    "teacher": "teacher",
    "teacher_blind": "teacher_blind",
    "student_base": "student_seeing",  # chosen on validation scenes, see docs/log.md
    **{f"teacher_{c}": f"teacher_{c}" for c in CAPABILITIES},
}
CONTROLS = ("teacher_blind", "majority")
#: a model that sees what is named but not what is asked guesses one of two colours
ONE_OF_TWO = ("nearer",)
RECIPE = Path(__file__).parent / "world_models" / "recipe.yaml"
CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags: [drivekd, autonomous-driving]
---
# {name}

A tiny model of drivekd's embedded driving world, in the classes and layout of plain transformers.
It knows that toy of traffic and nothing else: its scores are no evidence of road safety.

| percent right | {capabilities} | average |
|---|---|---|---|---|
| on {scenes} validation scenes{pictures} | {scores} |

- data: {train} scenes of the world's train split
- seed: {seed}
- made by: `make world-teachers`, commit {commit}, {date}
{stages}
"""


def ancestry(stage: str) -> list[str]:
    """A stage and all that it starts from, first to last."""
    return [*(name for start in STAGES[stage].after for name in ancestry(start)), stage]


def score_stage(stage: str, out: Path | None, questions: Path) -> dict[str, Any]:
    """Scores of a stage's model; the blind teacher sees grey pictures, as it did in training.

    Without a folder of stages, of the model that is shipped for the stage.
    """
    torch.set_num_threads(1)
    images = "grey" if stage == "teacher_blind" else "real"
    shipped = {made: name for name, made in SHIPPED.items()}
    vlm = load(f"world:{shipped[stage]}" if out is None else out / stage)
    given = answers(vlm, list(read(questions)), Asking(images=images))
    return as_json(score(given))


def gate(scores: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Per template, percent right of its capability's teacher and of the controls, the margin."""
    rows = {}
    for template, kind in TEMPLATES.items():
        teacher = scores[f"teacher_{kind.capability}"]["templates"][template]
        controls = {who: scores[who]["templates"][template]["accuracy"] for who in CONTROLS}
        if template in ONE_OF_TWO:
            controls["one_of_two"] = 50.0
        margin = teacher["accuracy"] - max(controls.values())
        row = {"n": teacher["n"], "teacher": teacher["accuracy"], **controls, "margin": margin}
        rows[template] = {name: round(value, 1) for name, value in row.items()}
    return rows


def in_brief(scores: Mapping[str, Any]) -> dict[str, float]:
    """Percent right per capability and on average."""
    row = {c: scores["capabilities"][c]["accuracy"] for c in CAPABILITIES}
    return row | {"average": scores["average"]["accuracy"]}


def ship(out: Path, recipe: TeachersRecipe, scores: Mapping[str, Any]) -> None:
    """Write weights in half precision and cards into the package."""
    about = provenance()
    for name, stage in SHIPPED.items():
        vlm = load(out / stage)
        save(replace(vlm, model=vlm.model.half(), source=name), ASSETS / name)
        made = []
        for each in ancestry(stage):
            facts = json.loads((out / each / "card.json").read_text())
            told = ", ".join(
                f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}"
                for k, v in facts.items()
                if k != "key"
            )
            made.append(f"- stage {each}" + (f": {told}" if told else ""))
        card = CARD.format(
            name=name,
            capabilities=" | ".join(CAPABILITIES),
            scenes=recipe.validation_scenes,
            pictures=", pictures grey" if name == "teacher_blind" else "",
            scores=" | ".join(f"{value:.1f}" for value in in_brief(scores[stage]).values()),
            train=f"{recipe.scenes:,}",
            seed=recipe.seed,
            stages="\n".join(made),
            **{key: about[key] for key in ("commit", "date")},
        )
        (ASSETS / name / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/world_teachers"))
    parser.add_argument("--shipped", action="store_true")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    recipe, started = read_recipe(RECIPE), time.monotonic()
    stages_at = None if given.shipped else given.out
    if given.shipped:
        make(given.out / "world", recipe.scenes, "train", workers=given.workers)
    else:
        make_teachers(recipe, given.out, workers=given.workers)
    questions = make(given.out / "val", recipe.validation_scenes, "val")
    stages = list(dict.fromkeys(SHIPPED.values()))
    found = side_by_side(
        partial(score_stage, out=stages_at, questions=questions), stages, given.workers
    )
    scores = dict(zip(stages, found, strict=True))
    train = list(read(given.out / "world" / "questions.jsonl"))
    scores["majority"] = as_json(score(majority(train, list(read(questions)))))
    if not given.shipped:
        ship(given.out, recipe, scores)
    rows = gate(scores)
    report = {
        "models": "shipped" if given.shipped else "made by this call",
        "scenes": recipe.validation_scenes,
        "scores": {name: in_brief(each) for name, each in scores.items()},
        "templates": rows,
        "recipe": recipe.model_dump(),
        "seconds_of_this_call": round(time.monotonic() - started),
    }
    path = write_result("world_teachers", report)
    for template, row in rows.items():
        told = "  ".join(f"{who} {value:5.1f}" for who, value in row.items() if who != "n")
        print(f"{template:<16} n {row['n']:4}  {told}  {'' if row['margin'] > 0 else 'FAILS'}")
    print(path)


if __name__ == "__main__":
    main()
