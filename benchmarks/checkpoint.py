"""What a checkpoint costs beside writing and syncing as many bytes plainly.

    python benchmarks/checkpoint.py --size M --rounds 15

A student of benchmarks/step.py trains one step, so that the optimizer's state exists. Then in turn:
- `checkpoint`: `run.save`, all of it: model, optimizer, processor, state and card into a folder of
  a temporary name, every file synced, renamed, and the checkpoint before the last one removed;
- `kept`: the same where all checkpoints are kept;
- `plain`: one file per file of that checkpoint, as long as it, written from memory and synced.

What `kept` and `plain` leave is removed while no clock runs. `seconds` are of the fastest round: a
virtual machine that lends its free memory out makes a writer wait for it now and then, in whichever
arm it happens, and a median would count how often. Writes results/checkpoint.json, or
checkpoint_quick.json where a setting is not that of `make checkpoint`; the last line of output is
one JSON object {"mb", "seconds", "ratio", "ratio_kept"}, ratios to `plain`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import step as steps
import torch
from provenance import write_result

from drivekd.distill import plan as plans
from drivekd.distill.order import windows
from drivekd.distill.run import Run, initial_state, prepare, save
from drivekd.distill.step import step

SIZE, ROUNDS, KEPT = "M", 15, 2
GOAL = 1.5


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def write_plainly(folder: Path, contents: Mapping[str, bytes]) -> None:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def measure(size: steps.Size, rounds: int, where: Path) -> tuple[int, dict[str, list[float]]]:
    """Bytes of a checkpoint and seconds of every round; the first rounds do not count."""
    recipe = steps.recipe_of("sft", steps.write_sample(size, where))
    run = prepare(plans.build(recipe, steps.model(size.student, 0), {}))
    step(run, next(iter(windows(run.plan.schedule.order, 0, 1))))
    state, plain, contents = initial_state(run, "none"), where / "plain", dict[str, bytes]()
    runs = {"checkpoint": keeping(run, KEPT), "kept": keeping(run, None)}
    found: dict[str, list[float]] = {name: [] for name in (*runs, "plain")}
    for number in range(1, rounds + KEPT + 1):
        for name, each in runs.items():
            take = partial(save, each, replace(state, step=number), where / name)
            found[name].append(seconds_of(take))
        written = where / f"kept/checkpoint-{number}"
        if {name: len(each) for name, each in contents.items()} != sizes(written):
            contents = {name: os.urandom(length) for name, length in sizes(written).items()}
        found["plain"].append(seconds_of(partial(write_plainly, plain, contents)))
        shutil.rmtree(plain)
        shutil.rmtree(written)
        told = ", ".join(f"{name} {each[-1]:.3f}" for name, each in found.items())
        print(f"round {number - KEPT}: {told}", flush=True)
    total = sum(map(len, contents.values()))
    return total, {name: each[KEPT:] for name, each in found.items()}  # from then on one is removed


def seconds_of(take: Callable[[], object]) -> float:
    start = time.perf_counter()
    take()
    return time.perf_counter() - start


def keeping(run: Run, limit: int | None) -> Run:
    """The run with another limit of checkpoints."""
    settings = run.plan.recipe.train.model_copy(update={"save_total_limit": limit})
    recipe = run.plan.recipe.model_copy(update={"train": settings})
    return replace(run, plan=replace(run.plan, recipe=recipe))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=tuple(steps.SIZES), default=SIZE)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: of TMPDIR")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        count, rounds = measure(steps.SIZES[given.size], given.rounds, Path(folder))
    seconds = {name: round(min(each), 4) for name, each in rounds.items()}
    ratios = {
        "ratio": round(seconds["checkpoint"] / seconds["plain"], 3),
        "ratio_kept": round(seconds["kept"] / seconds["plain"], 3),
    }
    line = {"mb": round(count / 1e6, 1), "seconds": seconds, **ratios}
    usual = (given.size, given.rounds) == (SIZE, ROUNDS)
    content = {**line, "goal": GOAL, "rounds": rounds, "size": given.size}
    print(write_result("checkpoint" if usual else "checkpoint_quick", content))
    print(json.dumps(line))


if __name__ == "__main__":
    main()
