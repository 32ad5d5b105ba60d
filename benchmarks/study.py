"""Does distillation help? Arms over seeds on the embedded world, chosen on validation scenes.

    python benchmarks/study.py start   # which start, on validation scenes: choice_start.json
    python benchmarks/study.py rho     # ρ and signals from the demo's start: choice_rho.json
    python benchmarks/study.py scenes --seeds 3  # how few training scenes: choice_scenes.json
    python benchmarks/study.py test    # the frozen recipe on test scenes: study.json

All in results/. A seed draws training scenes, data order and projection order; all arms of a seed
share the scenes, their order, the steps and the start. `ce_long` alone has three times the steps:
about as many as take the time of Drive-KD. `test` notes each look at the test scenes in
results/test_log.json.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from provenance import COMMIT, RESULTS, provenance, write_result

from drivekd.data.sample import CAPABILITIES
from drivekd.demo.run import arm_recipe, score_team
from drivekd.evaluate.answers.answer import Answer
from drivekd.evaluate.score import Scores, majority, score
from drivekd.files.workers import side_by_side
from drivekd.files.writing import write_json
from drivekd.recipe import Recipe, load, to_yaml
from drivekd.statistics import paired

POOL, VALIDATION, TEST = 1500, 200, 300  # scenes
RHOS = (2.0, 5.4, 10.0)
STARTS = ("student_vision", "student_pointer", "student_aligned", "student_seeing")
FEW = (50, 100, 200)  # training scenes
SIGNALS = ("drivekd", "full_everywhere")
ARMS = ("ce_only", "drivekd", "full_everywhere", "mismatched", "blind", "ce_long")
COMPARED = (
    ("drivekd", "ce_only"),
    ("full_everywhere", "ce_only"),
    ("mismatched", "ce_only"),
    ("drivekd", "mismatched"),
    ("drivekd", "ce_long"),
    ("ce_only", "blind"),
)
LONG = 3  # ce_long's steps for each of ce_only's
OUT = Path("out/study")


@dataclass(frozen=True)
class Job:
    """One training run and the scenes that score it."""

    name: str
    recipe: Recipe
    scenes: Path


def run_job(job: Job) -> list[Answer]:
    """Train and answer; what an earlier call of the same commit finished is read back."""
    import torch

    from drivekd.data.formats.readers import read
    from drivekd.distill.train import train
    from drivekd.evaluate.answers.asking import Asking, answers
    from drivekd.models.vlm import load as load_model

    torch.set_num_threads(1)
    folder = Path(job.recipe.output_dir)
    model = load_model(train(job.recipe, resume=True))
    asked = list(read(job.scenes))
    asking = Asking(images=job.recipe.data.images)
    return answers(model, asked, asking, folder / "answers.jsonl")


def run_jobs(jobs: Sequence[Job], workers: int) -> dict[str, list[Answer]]:
    """Answers of all jobs, run in as many processes as asked for."""
    found = {}
    for each, given in zip(jobs, side_by_side(run_job, jobs, workers), strict=True):
        found[each.name] = given
        print(f"{each.name}: {brief(score(given))}", flush=True)
    return found


def brief(scores: Scores) -> dict[str, float]:
    """Percent right per capability and on average."""
    assert scores.average is not None
    row = {c: round(scores.capabilities[c].accuracy, 2) for c in CAPABILITIES}
    return row | {"average": round(scores.average.accuracy, 2)}


@cache
def worlds(split: str, scenes: int) -> Path:
    """The scenes of a split, made if they are missing."""
    from drivekd.world.make import make

    return make(OUT / "world" / split, scenes, split)  # type: ignore[arg-type]


def job(name: str, arm: str, seed: int, scenes: Path, changes: Sequence[str] = ()) -> Job:
    """An arm of the demo's recipe, on scenes that the seed draws from the pool.

    Its folder is named after the commit, so that nothing older is ever reported as of this one.

    Raises:
        SystemExit: the code is not committed, so that a name does not say what ran.
    """
    if COMMIT.endswith("-dirty"):
        raise SystemExit("commit first: finished runs are found again by their commit")
    files = json.dumps([str(worlds("student", POOL))])
    given = [f"data.train={files}", f"seed={seed}", *changes]
    if arm == "ce_long":
        arm, steps = "ce_only", load("demo").train.max_steps
        given.append(f"train.max_steps={LONG * steps}")
    return Job(name, arm_recipe(arm, OUT / COMMIT / name, given), scenes)


def starts(seeds: Sequence[int]) -> Iterator[Job]:
    """Every start with and without teachers; the starts are stages of `make world-teachers`."""
    for seed, start, arm in itertools.product(seeds, STARTS, ("ce_only", "drivekd")):
        change = f"student=out/world_teachers/{start}"
        yield job(f"{start}/{arm}/{seed}", arm, seed, worlds("val", VALIDATION), [change])


def strengths(seeds: Sequence[int]) -> Iterator[Job]:
    """Every ρ with the paper's signals and with full maps for all, from the demo's start."""
    for seed, rho, arm in itertools.product(seeds, RHOS, SIGNALS):
        changes = [f"capabilities.{c}.rho={rho}" for c in CAPABILITIES]
        name = f"{arm}-rho{rho:g}/{seed}"
        yield job(name, arm, seed, worlds("val", VALIDATION), changes)


def sizes(seeds: Sequence[int]) -> Iterator[Job]:
    """Every number of training scenes with and without teachers, at equal steps."""
    for seed, scenes, arm in itertools.product(seeds, FEW, ("ce_only", "drivekd")):
        change = f"data.max_scenes={scenes}"
        yield job(f"{scenes}/{arm}/{seed}", arm, seed, worlds("val", VALIDATION), [change])


CHOICES = {"start": starts, "rho": strengths, "scenes": sizes}


def choose(what: str, seeds: Sequence[int], workers: int) -> None:
    """Compare settings on validation scenes."""
    jobs = list(CHOICES[what](seeds))
    scores = {name: brief(score(given)) for name, given in run_jobs(jobs, workers).items()}
    recipe = to_yaml(arm_recipe("drivekd", OUT))
    print(write_result(f"choice_{what}", {"scores": scores, "recipe": recipe}))


def test(seeds: Sequence[int], workers: int) -> None:
    """Run the frozen recipe on the test scenes and compare the arms over seeds."""
    if len(seeds) < 2:
        raise SystemExit(f"study.py test: expected at least 2 seeds, got {len(seeds)}")
    scenes = worlds("test", TEST)
    jobs = [job(f"{arm}/{seed}", arm, seed, scenes) for seed, arm in itertools.product(seeds, ARMS)]
    recipe = jobs[1].recipe
    note_look(recipe)  # before the first score can be seen
    scores = {name: brief(score(given)) for name, given in run_jobs(jobs, workers).items()}
    scores |= references(recipe, scenes)
    compared = compare(scores, COMPARED, seeds)
    report = {"scores": scores, "paired": compared, "seeds": list(seeds)}
    print(json.dumps(compared, indent=1))
    print(write_result("study", {**report, "recipe": to_yaml(recipe)}))


def compare(
    scores: Mapping[str, Mapping[str, float]],
    pairs: Sequence[tuple[str, str]],
    seeds: Sequence[int],
) -> dict[str, dict[str, float | None]]:
    """Two-sided paired t over seeds, per capability and on average."""
    compared = {}
    for (one, other), part in itertools.product(pairs, (*CAPABILITIES, "average")):
        mine, theirs = ([scores[f"{arm}/{s}"][part] for s in seeds] for arm in (one, other))
        compared[f"{one} - {other}, {part}"] = {
            name: None if value is None else round(float(value), 4)
            for name, value in asdict(paired(mine, theirs)).items()
        }
    return compared


def references(recipe: Recipe, scenes: Path) -> dict[str, dict[str, float]]:
    """What students are held against: their teachers, a teacher trained blind, the majority."""
    from drivekd.data.formats.readers import read

    asked, folder = list(read(scenes)), OUT / COMMIT
    teachers = {c: recipe.capabilities[c].teacher for c in CAPABILITIES}
    blind = dict.fromkeys(CAPABILITIES, "world:teacher_blind")
    found = {
        "majority": score(majority(list(read(worlds("student", POOL))), asked)),
        "teacher": score_team(teachers, asked, "real", folder / "teacher"),
        "teacher_blind": score_team(blind, asked, "grey", folder / "teacher_blind"),
    }
    return {name: brief(each) for name, each in found.items()}


def recipe_hash(recipe: Recipe) -> str:
    """Digest of a recipe without its paths and its seed."""
    raw = recipe.model_dump(mode="json", exclude={"output_dir": True, "seed": True})
    raw["data"].pop("train")
    return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()[:12]


def note_look(recipe: Recipe) -> None:
    """Append to the list of looks at the test scenes."""
    path = RESULTS / "test_log.json"
    looks = json.loads(path.read_text()) if path.exists() else []
    looks.append({"recipe_hash": recipe_hash(recipe), **provenance()})
    write_json(path, looks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=(*CHOICES, "test"))
    parser.add_argument("--seeds", type=int, help="how many; 1 to choose, 5 to test")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    seeds = range(given.seeds or (5 if given.what == "test" else 1))
    if given.what == "test":
        test(seeds, given.workers)
    else:
        choose(given.what, seeds, given.workers)


if __name__ == "__main__":
    main()
