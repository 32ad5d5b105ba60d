"""What storing the teachers' attention costs and saves: bytes, error of the losses, time of a step.

    python benchmarks/store.py --size M --rounds 5

- `bytes`: of one sample and one map of a text→vision term, 200 text over 1,536 image tokens.
- `loss_error`: of the shipped teachers on scenes of the embedded world, relative error of each
  sample's attention losses by capability and type of stored numbers.
- `seconds`: one step of benchmarks/step.py's `exact_live` (three distinct teachers), in turn with
  the same step from a store (`stored`) and with targets that are simply handed over (`given`).
  `removed` is the share of the time that teachers add to a step which reading takes away,
  (live − stored) / (live − given). The one sample is read anew at each step, from the page cache.

Writes results/store.json, or store_quick.json where a setting is not that of `make store`; the last
line of output is one JSON object {"bytes", "loss_error", "seconds", "removed", "speed"}.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import step as steps
import torch
from provenance import write_result

from drivekd.demo.run import arm_recipe
from drivekd.distill import plan as plans
from drivekd.distill.objective import batch_of, losses
from drivekd.distill.order import windows
from drivekd.distill.plan import Plan
from drivekd.distill.run import prepare
from drivekd.distill.step import step
from drivekd.distill.targets.store_format import packed_bytes
from drivekd.distill.teachers import teacher
from drivekd.recipe import Cache, Recipe
from study import VALIDATION, worlds

ARMS = ("live", "stored", "given")
DTYPES = ("float32", "float16", "uint8")
TEXT, IMAGE = 200, 1536
SIZE, ROUNDS, SCENES = "M", 5, 40


def sample_bytes() -> dict[str, int]:
    """Of one sample and one text→vision map, by type of the stored numbers."""
    is_image = torch.arange(IMAGE + TEXT) < IMAGE
    return {
        dtype: sum(packed_bytes(is_image, IMAGE, whole=False, maps=1, dtype=dtype))
        for dtype in DTYPES
    }


# ------------------------------------------------------------------------------------- the error


def sample_losses(plan: Plan) -> torch.Tensor:
    """Attention losses [K, S] of all samples of a plan."""
    found = []
    for row in plan.schedule.order.rows:
        with losses(plan.models, batch_of(plan, [row])) as each:
            found.append(torch.stack(each.terms).detach())
    return torch.cat(found, dim=1)


def loss_errors(recipe: Recipe, **models: Any) -> dict[str, dict[str, dict[str, float]]]:
    """Type of numbers → capability → relative error of the samples' losses."""
    live = plans.build(recipe, **models)
    wanted, errors = sample_losses(live), {}
    names = [term.capability for term in live.models.terms]
    for dtype in DTYPES:
        with tempfile.TemporaryDirectory() as folder:
            found = sample_losses(plans.build(stored(recipe, folder, dtype), **models))
        error = (found - wanted).abs() / wanted
        errors[dtype] = {
            name: {"mean": float(f"{each.mean():.2g}"), "largest": float(f"{each.max():.2g}")}
            for name, each in zip(names, error, strict=True)
        }
    return errors


def stored(recipe: Recipe, folder: str, dtype: Any = "float16") -> Recipe:
    return recipe.model_copy(update={"cache": Cache(dir=folder, dtype=dtype)})


# -------------------------------------------------------------------------------------- the time


def make_steps(
    arm: str, size: steps.Size, sample: Path, folder: str
) -> Iterator[Callable[[], None]]:
    """The steps of one arm, one after the other."""
    recipe = steps.recipe_of("exact_live", sample)
    names = [each.teacher for each in recipe.capabilities.values()]
    teachers = {name: steps.model(size.teacher, 1 + i) for i, name in enumerate(names)}
    recipe = stored(recipe, folder) if arm == "stored" else recipe
    plan = plans.build(recipe, steps.model(size.student, 0), teachers)
    assert len(plan.models.teachers) == (0 if arm == "stored" else len(names))
    plans.fill_caches(plan)
    if arm == "given":
        batch = batch_of(plan, [(0,)])
        known = plan.models.targets(batch, teacher.text_rows(batch))
        plan = replace(plan, models=replace(plan.models, teachers=(), targets=lambda *_: known))
    run, schedule = prepare(plan), plan.schedule
    return (partial(step, run, w) for w in windows(schedule.order, 0, schedule.total_steps))


def measure(size: steps.Size, rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every round, per arm; the first two steps of an arm do not count."""
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        sample = steps.write_sample(size, Path(folder))
        arms = {arm: make_steps(arm, size, sample, f"{folder}/store") for arm in ARMS}
        for number in range(-2, rounds):
            for arm, coming in arms.items():
                take = next(coming)
                start = clock()
                take()
                found[arm].append(clock() - start)
            told = ", ".join(f"{arm} {each[-1]:.3g}" for arm, each in found.items())
            print(f"{f'round {number + 1}' if number >= 0 else 'warm-up'}: {told}", flush=True)
    return {arm: each[2:] for arm, each in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=tuple(steps.SIZES), default=SIZE)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--scenes", type=int, default=SCENES, help="of the embedded world")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    files = json.dumps([str(worlds("val", VALIDATION))])
    changes = [f"data.train={files}", f"data.max_scenes={given.scenes}", "train.max_steps=1"]
    errors = loss_errors(arm_recipe("drivekd", Path("unused"), changes))
    clock = time.perf_counter if given.clock == "wall" else time.process_time
    rounds = measure(steps.SIZES[given.size], given.rounds, clock)
    seconds = {arm: round(median(each), 4) for arm, each in rounds.items()}
    added = seconds["live"] - seconds["given"]
    line = {
        "bytes": sample_bytes(),
        "loss_error": errors,
        "seconds": seconds,
        "removed": round((seconds["live"] - seconds["stored"]) / added, 3),
        "speed": round(seconds["live"] / seconds["stored"], 2),
    }
    usual = (given.size, given.rounds, given.scenes, given.clock) == (SIZE, ROUNDS, SCENES, "wall")
    content = {**line, "rounds": rounds, **vars(given)}
    print(write_result("store" if usual else "store_quick", content))
    print(json.dumps(line))


if __name__ == "__main__":
    main()
