"""Data sets of the embedded world: pictures, questions and the ground truth beside them.

Layout of the folder: `images/<seed>/<CAMERA>.png`, `truth/<seed>.json` (one per scene, written
last, so that an interrupted run goes on where it stopped), `questions.jsonl` and `dense.jsonl`
(Drive-KD rows) and `world.json` (what the folder holds).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from drivekd.data.cameras import prompt
from drivekd.data.sample import CAMERAS
from drivekd.files.lock import locked
from drivekd.files.progress import track
from drivekd.files.workers import side_by_side
from drivekd.files.writing import atomic_file, filling
from drivekd.world.drawing.camera import Renderer, open_renderer, render
from drivekd.world.drawing.rig import refuse_size
from drivekd.world.questions import WORDINGS, Question, ask, ask_about_cells
from drivekd.world.scene import SPLIT_SIZE, SPLITS, Scene, Split, make_scene
from drivekd.world.sight import ATTRIBUTES, Sighting, cells, sightings

FORMAT = 4
DENSE = 24  # short questions about cells, per scene


@dataclass(frozen=True, slots=True)
class Job:
    """What every scene of a data set shares."""

    out: Path
    size: int


def make(
    out: Path,
    scenes: int,
    split: Split = "train",
    *,
    first: int = 0,
    size: int = 96,
    workers: int | None = None,
) -> Path:
    """Write `scenes` scenes of a split, from its `first` on; scenes that are there already stay.

    Pictures have sides of `size` pixels; there is one process per core unless `workers` says else.

    Returns:
        the path of `questions.jsonl`.

    Raises:
        ValueError: for an unknown split, scenes that it does not have, a folder made with other
            settings or in use by another process, or a damaged file of truth.
        OSError: where the folder cannot be written, the disk is full, or libX11 is missing.
        MemoryError: the system ended a worker process.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown: choose one of {', '.join(SPLITS)}")
    if first < 0 or scenes < 1 or first + scenes > SPLIT_SIZE:
        raise ValueError(
            f"expected scenes between 0 and {SPLIT_SIZE - 1} of split {split}, got {scenes} from "
            f"{first} on: choose fewer, or another first one"
        )
    refuse_size(size)  # before a folder is claimed for a size that cannot be drawn
    job = Job(Path(out), size)
    seeds = range(SPLITS[split] + first, SPLITS[split] + first + scenes)
    with filling(job.out, "complete scenes"), locked(job.out):
        _claim(job, split)
        missing = [s for s in seeds if not _truth(job, s).exists()]
        count = workers or os.cpu_count() or 1
        for _ in track(_made(job, missing, count), len(missing), f"world {split}"):
            pass
        return _write_questions(job, seeds)


def _claim(job: Job, split: str) -> None:
    """Note the settings in the folder, or refuse a folder that was made with others."""
    for folder in ("images", "truth"):
        (job.out / folder).mkdir(parents=True, exist_ok=True)
    settings = {
        "format": FORMAT,
        "split": split,
        "size": job.size,
        "wordings": list(WORDINGS),
        "attributes": {name: list(values) for name, values in ATTRIBUTES.items()},
    }
    note = job.out / "world.json"
    if not note.exists():
        _write(note, [json.dumps(settings, indent=1)])
        return
    noted = _read(note)
    differing = [k for k in settings if noted.get(k) != settings[k]]
    if differing:
        raise ValueError(
            f"{job.out} holds a world made with another {', '.join(differing)}: "
            "choose another folder or remove this one"
        )


def _write(path: Path, pieces: Iterable[str]) -> None:
    with atomic_file(path) as draft, draft.open("w", encoding="utf-8") as file:
        file.writelines(pieces)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged, expected a JSON object: delete it and run again")
    return content


def _made(job: Job, seeds: list[int], workers: int) -> Iterator[int]:
    """Make scenes in this process or in several, and yield each seed when its files are there."""
    make = partial(make_one, job)
    few = workers == 1 or len(seeds) < 8
    return map(make, seeds) if few else side_by_side(make, seeds, workers)


def _truth(job: Job, seed: int) -> Path:
    return job.out / "truth" / f"{seed}.json"


@lru_cache(maxsize=1)  # opening a graphics engine takes longer than a scene
def _renderer(size: int) -> Renderer:
    return open_renderer(size)


def make_one(job: Job, seed: int) -> int:
    """Make one scene's pictures and truth."""
    scene = make_scene(seed)
    views = render(_renderer(job.size), scene.frame)
    folder = job.out / "images" / str(seed)
    folder.mkdir(exist_ok=True)
    for view in views:
        Image.fromarray(view.rgb).save(folder / f"{view.camera}.png", compress_level=1)
    seen = sightings(scene.frame, {v.camera: v.ids for v in views})
    labels = cells(scene.frame, [v.ids for v in views])
    truth = truth_of(scene, seen)
    truth["cells"] = labels.ravel().tolist()
    truth["questions"] = [
        _row(seed, f"q{i}", q) | {"paraphrases": list(q.paraphrases)}
        for i, q in enumerate(ask(scene, seen, seed))
    ]
    truth["dense"] = [
        _row(seed, f"d{i}", q)
        for i, q in enumerate(ask_about_cells(labels, DENSE, np.random.default_rng([seed, 29])))
    ]
    _write(_truth(job, seed), [json.dumps(truth, allow_nan=False)])
    return seed


def truth_of(scene: Scene, seen: tuple[Sighting, ...]) -> dict[str, Any]:
    """Return everything that is known about a scene as plain data; a gap to nothing is None."""
    return {
        "frame": asdict(scene.frame),
        "road_type": scene.road_type,
        "event": scene.event,
        "best": scene.best,
        "margin": scene.margin,
        "cause": scene.cause,
        "cause_id": scene.cause_id,
        "outcomes": {
            a: asdict(o) | {"gap": o.gap if math.isfinite(o.gap) else None}  # JSON has no infinity
            for a, o in scene.outcomes.items()
        },
        "futures": {str(i): asdict(f) for i, f in scene.futures.items()},
        "sightings": [
            {"id": s.thing.id, "camera": s.camera, "u": s.u, "v": s.v, "pixels": s.pixels}
            | {"box": s.box, "region": s.region}
            for s in seen
        ],
    }


def _row(seed: int, number: str, question: Question) -> dict[str, Any]:
    """Return a Drive-KD row: messages, images and question_type, and what only this world knows."""
    return {
        "id": f"w{seed}-{number}",
        "messages": [
            {"role": "user", "content": prompt(question.text, CAMERAS)},
            {"role": "assistant", "content": question.answer},
        ],
        "images": [f"images/{seed}/{camera}.png" for camera in CAMERAS],
        "cameras": list(CAMERAS),
        "question_type": question.capability,
        "template": question.template,
        "scene": f"w{seed}",
        "frame": f"w{seed}",
    }


def _write_questions(job: Job, seeds: range) -> Path:
    """Gather the rows of every scene, in the order of the seeds, into the two files."""
    for part in ("dense", "questions"):
        path = job.out / f"{part}.jsonl"
        truths = (_read(_truth(job, seed)) for seed in seeds)
        _write(path, (json.dumps(row) + "\n" for truth in truths for row in truth[part]))
    return path
