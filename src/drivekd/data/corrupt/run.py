"""Corrupt the pictures of a data file: new pictures in a new folder, the questions unchanged.

Layout of the folder: the pictures under their names below the data's folder, `<data file>.jsonl`
(Drive-KD rows) beside them, and `corruption.json` (the settings). With the name `all` there is one
such folder per corruption.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from drivekd.data.convert import jsonl_row
from drivekd.data.corrupt.corruptions import CORRUPTIONS, View, corrupt, find, severity_of
from drivekd.data.corrupt.video import ffmpeg_path
from drivekd.data.formats.readers import read
from drivekd.data.formats.rows import line_count
from drivekd.data.pictures import read_image
from drivekd.data.sample import CAMERAS, Sample
from drivekd.files.lock import locked
from drivekd.files.progress import track
from drivekd.files.workers import side_by_side
from drivekd.files.writing import atomic_file, filling

FORMAT = 1
ALL = "all"
_NOTE, _LOCK = "corruption.json", ".lock"
_JPEG = (".jpg", ".jpeg")


@dataclass(frozen=True, slots=True)
class Source:
    """One picture of the data; `where` names file and row of a question about it."""

    path: Path
    view: View
    where: str


@dataclass(frozen=True, slots=True)
class Job:
    """One picture under one corruption."""

    source: Source
    target: Path
    name: str
    severity: int


def corrupt_data(
    path: Path,
    out: Path,
    name: str,
    severity: int | None = None,
    seed: int = 0,
    *,
    root: Path | None = None,
    workers: int | None = None,
) -> list[Path]:
    """Write a data file's pictures corrupted, and its questions; return the questions' files.

    Every picture is written once, whole or not at all; those that are there already are kept.

    Args:
        path: a data file that `read` understands.
        out: folder that receives the pictures and the questions.
        name: a corruption (see `corruptions.find`), or `all` for one folder of each below `out`.
        severity: 1 to 5; the one that DriveBench uses where None.
        seed: equal seeds give equal pictures, in whatever order and by however many processes.
        root: folder that relative image paths start from.
        workers: processes; by default one per core.

    Raises:
        ValueError: an unknown name or severity, a wrong row, no picture or an unreadable one, two
            of one name, a folder in use or with other files, or ffmpeg is needed and missing.
        OSError: a file is missing or the folder cannot be written.
        RuntimeError: ffmpeg failed.
        MemoryError: the system ended a worker process.
    """
    path, out = Path(path), Path(out)
    root = path.parent if root is None else Path(root)
    every = name.lower() == ALL
    kinds = CORRUPTIONS if every else (find(name),)
    severities = [severity_of(kind, severity) for kind in kinds]
    if any(kind.name in ("H.265", "BitError") for kind in kinds):
        ffmpeg_path()  # before anything is written
    sources = _sources(track(read(path, root=root), line_count(path), "reading questions"), root)
    if not sources:
        raise ValueError(f"{path} names no pictures: there is nothing to corrupt")
    _refuse_equal_targets(sources)
    folders = [out / kind.name if every else out for kind in kinds]
    if root.resolve() in {folder.resolve() for folder in (out, *folders)}:
        raise ValueError(f"{out} is the folder of the data itself: choose another one")
    with filling(out, "finished pictures"), locked(out):
        jobs = list[Job]()
        for folder, kind, level in zip(folders, kinds, severities, strict=True):
            _claim(folder, {"corruption": kind.name, "severity": level, "seed": seed}, root)
            jobs += [Job(s, folder / _target(s.view.picture), kind.name, level) for s in sources]
        missing = [job for job in jobs if not job.target.exists()]
        for _ in track(_made(missing, seed, workers), len(missing), "corrupting pictures"):
            pass
        return [_write_questions(path, root, folder) for folder in folders]


def _sources(samples: Iterable[Sample], root: Path) -> list[Source]:
    """Collect the pictures of the data, each once, in the order of their names."""
    sources = dict[Path, Source]()
    for sample in samples:
        for number, (camera, path) in enumerate(sample.images.items()):
            picture = path.relative_to(root).as_posix()
            place = CAMERAS.index(camera) if camera in CAMERAS else number
            view = View(picture, sample.frame or picture, place)
            # the least of several views: the order of the rows decides nothing
            if path not in sources or view < sources[path].view:
                sources[path] = Source(path, view, sample.source)
    return sorted(sources.values(), key=lambda source: source.view)


def _target(picture: str) -> str:
    """Name the new picture: the old name, with .png behind it unless it is JPEG or PNG."""
    return picture if picture.lower().endswith((*_JPEG, ".png")) else f"{picture}.png"


def _refuse_equal_targets(sources: Sequence[Source]) -> None:
    taken: dict[str, Source] = {}
    for source in sources:
        target = _target(source.view.picture)
        other = taken.setdefault(target, source)
        if other is not source:
            raise ValueError(
                f"{source.where}: {other.path} and {source.path} would both become {target}: "
                "rename one of them"
            )


def _claim(folder: Path, settings: dict[str, Any], root: Path) -> None:
    """Note the settings in the folder, or refuse one that holds anything else."""
    wanted = json.dumps({"format": FORMAT, **settings, "pictures": str(root.resolve())}) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / _NOTE
    if note.is_file():
        if (noted := note.read_text()) != wanted:
            raise ValueError(
                f"{folder} was made with other settings, {noted.strip()}: choose another folder or "
                "remove this one"
            )
    elif held := [entry.name for entry in folder.iterdir() if entry.name != _LOCK]:
        raise ValueError(f"{folder} holds other files ({held[0]}): choose an empty or a new folder")
    else:
        with atomic_file(note) as unfinished:
            unfinished.write_text(wanted)


def corruption_of(data: Path) -> dict[str, Any] | None:
    """Return {"name", "severity"} of a data file that `corrupt_data` wrote, None for other data."""
    note = Path(data).parent / _NOTE
    if not note.is_file():
        return None
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
        return {"name": find(noted["corruption"]).name, "severity": int(noted["severity"])}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{note}: {error}; expected the settings that `drivekd data corrupt` wrote there"
        ) from None


def _made(jobs: Sequence[Job], seed: int, workers: int | None) -> Iterator[Path]:
    count = workers or os.cpu_count() or 1
    make = partial(make_one, seed)
    return map(make, jobs) if count == 1 or len(jobs) < 8 else side_by_side(make, jobs, count)


def make_one(seed: int, job: Job) -> Path:
    """Read, corrupt and write one picture; errors name the row of a question about it."""
    source = job.source
    try:
        picture = np.asarray(read_image(source.path))
        corrupted = Image.fromarray(corrupt(picture, job.name, job.severity, seed, source.view))
    except ValueError as error:
        raise ValueError(f"{source.where}: {error}") from error
    except RuntimeError as error:
        raise RuntimeError(f"{source.where}: image {source.path}: {error}") from error
    with atomic_file(job.target) as unfinished:
        if job.target.suffix.lower() in _JPEG:
            corrupted.save(unfinished, "JPEG", quality=95, subsampling=0)
        else:
            corrupted.save(unfinished, "PNG", compress_level=1)
    return job.target


def _write_questions(path: Path, root: Path, folder: Path) -> Path:
    questions = folder / f"{path.stem}.jsonl"
    samples = track(read(path, root=root), line_count(path), "writing questions")
    with atomic_file(questions) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for sample in samples:
            row = jsonl_row(sample, root)
            row["images"] = [_target(path) for path in row.get("images", ())]
            file.write(json.dumps(row) + "\n")
    return questions
