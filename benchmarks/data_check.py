"""Speed and memory of `drivekd data check`: a million rows, and pictures for leakage.

    python benchmarks/data_check.py [--rows 1000000] [--pictures 10000]

Rows are questions in our JSONL without images, all different, of six templates.
Memory is measured in processes of their own: the peak of a tenth of the rows and of all of them;
their difference by the difference in rows is what a row costs. Pictures are 1600×900 JPEG files
(smooth random colours, quality 80), half of the test set saved again at quality 60; a few hundred
different ones under many names, since decoding does not get cheaper by that.

With DRIVEKD_REAL_DATA the fingerprints of its nuScenes and BDD100K pictures are compared too: with
copies of themselves (JPEG quality 30, 50, 75, 95; full and half size), with other frames of the
same camera and scene, and with all others. Writes results/data_check.json; the last line of the
output is the same as JSON.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from provenance import write_result

from drivekd.data.check.picture_hash import SAME_PICTURE, Hash, inspect
from drivekd.data.check.run import check

#: What is published; other numbers are a quick look.
ROWS, PICTURES = 1_000_000, 10_000

MOVES = "A. Going ahead. B. Turn left. C. Turn right. D. Stopped."
LATER = "Those objects will be considered for the future reasoning and driving decision."
CHOOSE = "Please select the correct answer from the following options:"
ASKED = (
    ("perception", f"What is the moving status of object {{}}? {CHOOSE} {MOVES}"),
    ("perception", f"What are the important objects in the current scene {{}}? {LATER}"),
    ("reasoning", "What is the future state of object {}?"),
    ("reasoning", "Would object {} be in the moving direction of the ego vehicle?"),
    ("planning", "What actions could the ego vehicle take based on {}? Why take this action?"),
    ("planning", "What actions taken by the ego vehicle can lead to a collision with {}?"),
)
ANSWERS = (
    ("A", "B", "C", "D"),
    ("A white sedan <c1,CAM_FRONT,0.4123,0.5123>.", "A black SUV <c1,CAM_BACK,0.9,0.4>."),
    ("Keep going straight.", "Turn left.", "Stationary."),
    ("Yes.", "No."),
    ("The action is to keep going at the same speed.", "The action is to brake gently to a stop."),
    ("Accelerate and go straight.", "No such action will lead to a collision."),
)
#: different pictures of the training set, and of the test set besides those of the training set
DIFFERENT, OTHERS = 300, 30
#: noise in pictures [grey levels]: with it a file is as large as one of nuScenes, about 110 KB
GRAIN = 2


def row(number: int) -> dict[str, Any]:
    kind = number % len(ASKED)
    capability, text = ASKED[kind]
    answer = ANSWERS[kind][number // 6 % len(ANSWERS[kind])]
    turns = [
        {"role": "user", "content": text.format(number)},
        {"role": "assistant", "content": answer},
    ]
    place = {"scene": f"s{number // 500}", "frame": f"f{number // 50}"}
    return {"id": f"q{number}", "messages": turns, "question_type": capability, **place}


def write_rows(path: Path, rows: int) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            file.write(json.dumps(row(number)) + "\n")
    return path


def in_a_process(path: Path) -> dict[str, float]:
    """Seconds, processor seconds and peak memory [MB] of checking a file."""
    command = [sys.executable, __file__, "--measure", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(path: Path) -> None:
    started = time.monotonic()
    report = check(path)
    used = resource.getrusage(resource.RUSAGE_SELF)
    assert report["checks"] == [], report["checks"]
    figures = {
        "seconds": time.monotonic() - started,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_mb": used.ru_maxrss * 1024 / 1e6,
    }
    print(json.dumps(figures))


def rows_figures(folder: Path, rows: int) -> dict[str, float]:
    small = in_a_process(write_rows(folder / "small.jsonl", rows // 10))
    large = in_a_process(write_rows(folder / "large.jsonl", rows))
    grown = (large["peak_mb"] - small["peak_mb"]) * 1e6
    return {
        "rows": rows,
        "rows_per_second": round(rows / large["seconds"]),
        "rows_per_cpu_second": round(rows / large["cpu_seconds"]),
        "peak_mb": round(large["peak_mb"]),
        "bytes_per_row": round(grown / (rows - rows // 10), 1),
    }


def picture(rng: np.random.Generator) -> Image.Image:
    coarse = rng.integers(0, 255, (18, 32, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((1600, 900), Image.Resampling.BICUBIC)
    grain = rng.integers(-GRAIN, GRAIN + 1, (900, 1600, 1))
    return Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8))


def write_pictures(folder: Path, count: int) -> tuple[Path, Path, int]:
    """A training file of `count` pictures, a test file of a tenth, and how many of it leak."""
    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        (folder / name).mkdir()
    files = [folder / f"{number}.jpg" for number in range(min(DIFFERENT, count))]
    for file in files:
        picture(rng).save(file, quality=80)
    train = [f"train/{number:06d}.jpg" for number in range(count)]
    for number, name in enumerate(train):
        os.link(files[number % len(files)], folder / name)
    test = [f"test/{number:06d}x.jpg" for number in range(count // 10)]
    leaking = min(len(files), count // 20)
    others = [picture(rng) for _ in range(OTHERS)]
    for number, name in enumerate(test):
        again = Image.open(files[number]) if number < leaking else others[number % OTHERS]
        again.save(folder / name, quality=60)
    paths = []
    for name, images in (("train", train), ("test", test)):
        turns = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "x"}]
        rows = [{"messages": turns, "images": [image], "capability": "a"} for image in images]
        paths.append(folder / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = [number for number in range(count) if number % len(files) < leaking]
    return paths[0], paths[1], len(names)


def picture_figures(folder: Path, count: int) -> dict[str, float]:
    train, test, leaking = write_pictures(folder, count)
    started, used = time.monotonic(), time.process_time()
    report = check(train, test)
    seconds, used = time.monotonic() - started, time.process_time() - used
    assert report["leakage"]["pictures"] == leaking, report["leakage"]
    looked_at = count + count // 10
    return {
        "pictures": looked_at,
        "pictures_per_second": round(looked_at / seconds),
        "pictures_per_cpu_second": round(looked_at / used),
    }


def distance(one: Hash, other: Hash) -> int:
    return int(np.bitwise_count(one ^ other).sum())


def known(source: Path | io.BytesIO) -> Hash:
    """The fingerprint of a picture that is known to have one."""
    fingerprint = inspect(source)
    assert isinstance(fingerprint, np.ndarray), fingerprint
    return fingerprint


def copies(path: Path) -> Iterator[Hash]:
    """Fingerprints of a picture that was saved again."""
    with Image.open(path) as stored:
        full = stored.convert("RGB")
    half = full.resize((full.width // 2, full.height // 2), Image.Resampling.LANCZOS)
    for image, quality in itertools.product((full, half), (30, 50, 75, 95)):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        yield known(buffer)


def series(path: Path) -> tuple[str, str]:
    """Camera and drive of a nuScenes picture; other pictures are alone in theirs."""
    drive, camera, _ = f"{path.stem}__{path.stem}__".split("__")[:3]
    return drive, camera


def hash_figures(folder: Path) -> dict[str, Any]:
    paths = [*folder.glob("drivelm/nuscenes/samples/*/*.jpg"), *folder.glob("bdd100k/*.jpg")]
    paths = sorted([*paths, *folder.glob("nuscenes_mini/*.jpg")])
    hashes = [known(path) for path in paths]
    again = [
        distance(mine, copy) for p, mine in zip(paths, hashes, strict=True) for copy in copies(p)
    ]
    pairs: dict[bool, list[int]] = {True: [], False: []}
    for (a, one), (b, other) in itertools.combinations(zip(paths, hashes, strict=True), 2):
        pairs[series(a) == series(b)].append(distance(one, other))
    return {
        "real_pictures": len(paths),
        "copies": len(again),
        "copies_found": sum(bits <= SAME_PICTURE for bits in again),
        "farthest_copy_bits": max(again),
        "pairs_of_one_camera_and_scene": len(pairs[True]),
        "of_these_alike": sum(bits <= SAME_PICTURE for bits in pairs[True]),
        "nearest_not_alike_bits": min(bits for bits in pairs[True] if bits > SAME_PICTURE),
        "other_pairs": len(pairs[False]),
        "nearest_other_bits": min(pairs[False]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure is not None:
        measure(given.measure)
        return
    with tempfile.TemporaryDirectory() as folder:
        content: dict[str, Any] = rows_figures(Path(folder), given.rows)
        content |= picture_figures(Path(folder), given.pictures)
    if real := os.environ.get("DRIVEKD_REAL_DATA"):
        content |= hash_figures(Path(real))
    complete = (given.rows, given.pictures) == (ROWS, PICTURES)
    write_result("data_check" if complete else "data_check_quick", content)
    print(json.dumps(content))


if __name__ == "__main__":
    main()
