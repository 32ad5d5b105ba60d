"""Does distillation help? Arms over seeds on the embedded world, chosen on validation scenes.

`study.py choose` compares settings on the validation split and writes results/choice.json.
`study.py test` runs the frozen recipe on the test split, writes results/study.json and notes the
look at the test scenes in results/test_log.json. A seed draws training scenes, data order and
projection order; all arms of a seed share the scenes, their order, the steps and the start.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import itertools
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivekd.data.processes import side_by_side
from drivekd.data.sample import CAPABILITIES
from drivekd.demo import arm_recipe
from drivekd.recipe import Recipe, load, parse, to_yaml

POOL, VALIDATION, TEST = 1500, 200, 300  # scenes
RHOS = (2.0, 5.4, 10.0)
BASES = ("student_vision", "student_pointer", "student_aligned")
ARMS = ("ce_only", "drivekd", "full_everywhere", "mismatched")
OUT, RESULTS = Path("out/study"), Path("results")


@dataclass(frozen=True)
class Job:
    """One training run and the scenes that score it."""

    name: str
    recipe: Recipe
    scenes: Path


def run_job(job: Job) -> dict[str, Any]:
    """Train, answer, score; what an earlier call finished is read back."""
    import torch

    from drivekd.data.readers import read
    from drivekd.distill.train import train
    from drivekd.evaluate.answer import answers
    from drivekd.evaluate.score import as_json, score
    from drivekd.models.vlm import load as load_model

    torch.set_num_threads(1)
    folder = Path(job.recipe.output_dir)
    model = load_model(train(job.recipe, resume=True))
    given = answers(model, list(read(job.scenes)), job.recipe.data.images, folder / "answers.jsonl")
    return {"name": job.name, **as_json(score(given))}


def run_jobs(jobs: Sequence[Job], workers: int) -> dict[str, dict[str, Any]]:
    """All jobs, in as many processes as asked for."""
    found = {}
    for result in side_by_side(run_job, jobs, workers):
        print(f"{result['name']}: {brief(result)}", flush=True)
        found[result["name"]] = result
    return found


def brief(result: Mapping[str, Any]) -> dict[str, float]:
    """Percent right per capability and on average."""
    row = {c: round(result["capabilities"][c]["accuracy"], 2) for c in CAPABILITIES}
    return row | {"average": round(result["average"]["accuracy"], 2)}


def worlds(split: str, scenes: int) -> Path:
    """The scored scenes of a split, made if they are missing."""
    from drivekd.world.make import make

    return make(OUT / "world" / split, scenes, split)  # type: ignore[arg-type]


def base_recipe(seed: int, changes: Sequence[str] = ()) -> Recipe:
    """The demo's recipe on the pool from which each seed draws its own scenes."""
    pool = worlds("student", POOL)
    files = json.dumps([str(pool), str(pool.with_name("dense.jsonl"))])
    return load("demo", [f"data.train={files}", f"seed={seed}", *changes])


def choices(seeds: Sequence[int], scenes: Path) -> Iterator[Job]:
    """Every setting of the grid that is chosen from, and its cross-entropy-only counterpart.

    The starts are stages of `make world-teachers`, which has to run first.
    """
    for seed, start in itertools.product(seeds, BASES):
        plain = base_recipe(seed, [f"student=out/world_teachers/{start}"])
        name = f"{start}/ce_only/{seed}"
        yield Job(name, arm_recipe(plain, "ce_only", OUT / "choose" / name), scenes)
        for rho, arm in itertools.product(RHOS, ("drivekd", "full_everywhere")):
            name = f"{start}/{arm}-rho{rho:g}/{seed}"
            recipe = arm_recipe(with_rho(plain, rho), arm, OUT / "choose" / name)
            yield Job(name, recipe, scenes)


def with_rho(recipe: Recipe, rho: float) -> Recipe:
    """The recipe with one ρ for all capabilities."""
    raw = recipe.model_dump(mode="json")
    for capability in raw["capabilities"].values():
        capability["rho"] = rho
    return parse(raw)


def choose(seeds: Sequence[int], workers: int) -> None:
    """Compare the grid on validation scenes."""
    found = run_jobs(list(choices(seeds, worlds("val", VALIDATION))), workers)
    write("choice.json", {"scores": {name: brief(r) for name, r in found.items()}}, base_recipe(0))


def test(seeds: Sequence[int], workers: int) -> None:
    """Run the frozen recipe on the test scenes and compare the arms over seeds."""
    from drivekd.evaluate.score import paired

    if len(seeds) < 2:
        raise SystemExit(f"study.py test: expected at least 2 seeds, got {len(seeds)}")
    note_look(base_recipe(0))  # before the first score can be seen
    scenes = worlds("test", TEST)
    jobs = [
        Job(
            f"{arm}/{seed}",
            arm_recipe(base_recipe(seed), arm, OUT / "test" / f"{arm}-{seed}"),
            scenes,
        )
        for seed, arm in itertools.product(seeds, ARMS)
    ]
    scores = {name: brief(result) for name, result in run_jobs(jobs, workers).items()}
    compared = {}
    for arm, part in itertools.product(ARMS[1:], (*CAPABILITIES, "average")):
        mine, plain = ([scores[f"{a}/{s}"][part] for s in seeds] for a in (arm, "ce_only"))
        compared[f"{arm} - ce_only, {part}"] = vars_of(paired(mine, plain))
    report = {"scores": scores, "paired": compared, "seeds": list(seeds)}
    write("study.json", report, base_recipe(0))
    print(json.dumps(compared, indent=1))


def vars_of(comparison: Any) -> dict[str, float]:
    """A comparison as plain numbers: mean difference in points, its 95 % interval, p."""
    names = ("mean", "low", "high", "p", "n")
    return {name: round(float(getattr(comparison, name)), 4) for name in names}


def recipe_hash(recipe: Recipe) -> str:
    """Digest of a recipe without its paths."""
    raw = recipe.model_dump(mode="json")
    raw["data"].pop("train")
    raw.pop("output_dir")
    return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()[:12]


def commit() -> str:
    """The commit that ran, `unknown` outside a checkout."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def today() -> str:
    """The date in UTC."""
    return datetime.datetime.now(tz=datetime.UTC).date().isoformat()


def write(name: str, content: Mapping[str, Any], recipe: Recipe) -> None:
    """Write a result with the recipe, commit and hardware that made it."""
    about = {
        "commit": commit(),
        "recipe_hash": recipe_hash(recipe),
        "recipe": to_yaml(recipe),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, one torch thread per run",
        "date": today(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps({**content, **about}, indent=1) + "\n")


def note_look(recipe: Recipe) -> None:
    """Append to the list of looks at the test scenes."""
    path = RESULTS / "test_log.json"
    looks = json.loads(path.read_text()) if path.exists() else []
    looks.append(
        {
            "date": today(),
            "commit": commit(),
            "recipe_hash": recipe_hash(recipe),
        }
    )
    path.write_text(json.dumps(looks, indent=1) + "\n")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("choose", "test"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    {"choose": choose, "test": test}[given.what](range(given.seeds), given.workers)


if __name__ == "__main__":
    main()
