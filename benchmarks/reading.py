"""What `train.dataloader_num_workers` saves: pictures of 1600×900 px read by threads.

    DRIVEKD_REAL_DATA=FOLDER python benchmarks/reading.py [--steps 24] [--rounds 3]

One question about each six-camera frame of the nuScenes scenes, one a step, 448 px, nothing kept
(`cache_features_gb: 0`), with no thread and with one and two of them, in rounds that take turns;
medians.

- `picture_ms`: reading and processing alone, per picture: what a device waits for that computes
  faster than pictures are read.
- `step_s`: training steps of a tiny student on the CPU, which needs a core for itself.

Writes results/reading.json, or reading_quick.json with other settings; the last line of the output
is the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from provenance import write_result

from drivekd.data.formats.readers import read
from drivekd.data.sample import Sample
from drivekd.distill.train import train
from drivekd.models.ahead import ahead
from drivekd.models.images import image_size, pixels
from drivekd.models.tiny import build_tokenizer, tiny_vlm
from drivekd.models.vlm import Vlm
from drivekd.recipe import parse

WORKERS = (0, 1, 2)
STEPS, ROUNDS = 24, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    folder = Path(os.environ.get("DRIVEKD_REAL_DATA", "")).absolute() / "drivelm"
    if not (folder / "train_sample.json").is_file():
        print("DRIVEKD_REAL_DATA names no folder with drivelm/train_sample.json", file=sys.stderr)
        sys.exit(2)
    result = measure(folder, given.steps, given.rounds)
    usual = (given.steps, given.rounds) == (STEPS, ROUNDS)
    write_result("reading" if usual else "reading_quick", result)
    print(json.dumps(result))


def measure(folder: Path, steps: int, rounds: int) -> dict[str, Any]:
    """Milliseconds per picture and seconds per step, by the number of threads."""
    frames = {s.frame: s for s in read(folder / "train_sample.json") if len(s.images) == 6}
    samples = list(frames.values())
    words = [message.content for sample in samples for message in sample.messages]
    tokenizer = build_tokenizer(words, 600)
    pictures: dict[int, list[float]] = {count: [] for count in WORKERS}
    trained: dict[int, list[float]] = {count: [] for count in WORKERS}
    for _ in range(rounds):
        for count in WORKERS:
            pictures[count].append(reading(student(tokenizer), samples, steps, count))
            trained[count].append(training(student(tokenizer), samples, folder, steps, count))
    return {
        "frames": len(samples),
        "steps": steps,
        "rounds": rounds,
        "size": image_size(next(iter(samples[0].images.values()))),
        "cores": len(os.sched_getaffinity(0)),
        "picture_ms": {str(n): round(1e3 * median(pictures[n]), 2) for n in WORKERS},
        "step_s": {str(n): round(median(trained[n]), 4) for n in WORKERS},
    }


def student(tokenizer: Any) -> Vlm:
    return tiny_vlm(
        tokenizer=tokenizer, image_size=448, patch_size=28, vision_hidden=128, text_hidden=128
    )


def reading(vlm: Vlm, samples: list[Sample], steps: int, workers: int) -> float:
    """Seconds per picture."""
    rows = [tuple(sample.images.values()) for sample in samples]
    rows = [rows[number % len(rows)] for number in range(steps)]
    started = time.perf_counter()
    with ahead(rows, lambda row: [(vlm, path) for path in row], workers) as coming:
        for files in coming:
            pixels(vlm, files)
    return (time.perf_counter() - started) / (6 * steps)


def training(vlm: Vlm, samples: list[Sample], root: Path, steps: int, workers: int) -> float:
    """Seconds per optimizer step, the first one left out."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "train.jsonl"
        data.write_text("".join(json.dumps(row(sample)) + "\n" for sample in samples))
        raw = {
            "name": "reading",
            "student": "tiny",
            "output_dir": folder,
            "data": {"train": [str(data)], "root": str(root), "pack": False},
            "train": {
                "per_device_train_batch_size": 1,
                "max_steps": steps,
                "logging_steps": 1,
                "report_to": "none",
                "cache_features_gb": 0,
                "dataloader_num_workers": workers,
            },
        }
        train(parse(raw), student=vlm)
        lines = (Path(folder) / "log.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    return (seconds[-1] - seconds[0]) / (steps - 1)


def row(sample: Sample) -> dict[str, Any]:
    turns = [{"role": message.role, "content": message.content} for message in sample.messages]
    return {"messages": turns, "images": [str(path) for path in sample.images.values()]}


if __name__ == "__main__":
    main()
