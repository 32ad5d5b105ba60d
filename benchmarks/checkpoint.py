"""What a checkpoint costs beside writing and syncing as many bytes plainly.

    python benchmarks/checkpoint.py --size M --rounds 15

A student of benchmarks/step.py trains one step, so that the optimizer's state exists. Then in turn:
- `checkpoint`: `run.save`, all of it: model, optimizer, processor, state and card into a folder of
  a temporary name, every file synced, renamed, and the checkpoint before the last one removed;
- `plain`: one file per file of that checkpoint, as long as it, written from memory and synced.

Writes results/checkpoint.json, or checkpoint_quick.json where a setting is not that of
`make checkpoint`; the last line of output is one JSON object {"mb", "seconds", "ratio"}.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import step as steps
import torch
from provenance import write_result

from drivekd.distill import plan as plans
from drivekd.distill import train
from drivekd.distill.order import windows
from drivekd.distill.run import initial_state, prepare, save

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
    """Bytes of a checkpoint and seconds of every round; the first round does not count."""
    recipe = steps.recipe_of("sft", steps.write_sample(size, where))
    limited = recipe.train.model_copy(update={"save_total_limit": KEPT})
    recipe = recipe.model_copy(update={"train": limited})
    run = prepare(plans.build(recipe, steps.model(size.student, 0), {}))
    train.step(run, next(iter(windows(run.plan.order, 0, 1))))
    state, out, plain = initial_state(run, "none"), where / "run", where / "plain"
    found: dict[str, list[float]] = {"checkpoint": [], "plain": []}
    contents: dict[str, bytes] = {}
    for number in range(1, rounds + KEPT + 1):
        start = time.perf_counter()
        save(run, replace(state, step=number), out)
        saved = time.perf_counter() - start
        lengths = sizes(out / f"checkpoint-{number}")
        if {name: len(each) for name, each in contents.items()} != lengths:
            contents = {name: os.urandom(length) for name, length in lengths.items()}
        start = time.perf_counter()
        write_plainly(plain, contents)
        written = time.perf_counter() - start
        shutil.rmtree(plain)
        if number > KEPT:  # from then on an old checkpoint is removed each time
            found["checkpoint"].append(saved)
            found["plain"].append(written)
            print(f"round {number - KEPT}: checkpoint {saved:.3f}, plain {written:.3f}", flush=True)
    return sum(lengths.values()), found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=tuple(steps.SIZES), default=SIZE)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: of TMPDIR")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        count, rounds = measure(steps.SIZES[given.size], given.rounds, Path(folder))
    seconds = {name: round(median(each), 4) for name, each in rounds.items()}
    ratio = round(seconds["checkpoint"] / seconds["plain"], 3)
    line = {"mb": round(count / 1e6, 1), "seconds": seconds, "ratio": ratio}
    usual = (given.size, given.rounds) == (SIZE, ROUNDS)
    content = {**line, "goal": GOAL, "rounds": rounds, "size": given.size}
    print(write_result("checkpoint" if usual else "checkpoint_quick", content))
    print(json.dumps(line))


if __name__ == "__main__":
    main()
