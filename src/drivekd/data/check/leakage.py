"""Leaks of a test set into training: its scenes, frames, image names and pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from drivekd.data.check.findings import Finding
from drivekd.data.check.picture_hash import SAME_PICTURE, Hash, inspect, nearest
from drivekd.data.formats import drivelm
from drivekd.data.formats.readers import open_data
from drivekd.data.formats.rows import RowError, line_count, shown
from drivekd.data.sample import Sample
from drivekd.files.progress import track

_HEXADECIMAL = re.compile(r"[0-9a-fA-F]{8,}")


@dataclass(frozen=True, slots=True)
class Exposed:
    """Scenes, frames and images of a data set, by the place that first names them.

    `skipped` counts rows that cannot be read, so that nobody knows what they show.
    """

    scenes: dict[str, str] = field(default_factory=dict)
    frames: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    files: dict[Path, str] = field(default_factory=dict)
    skipped: int = 0

    def add(self, sample: Sample) -> None:
        if sample.scene:
            self.scenes.setdefault(sample.scene, sample.source)
        if sample.frame:
            self.frames.setdefault(sample.frame, sample.source)
        for file in sample.images.values():
            if file not in self.files:
                self.files[file] = sample.source
                self.names.setdefault(name_of(file), sample.source)


def exposed_by(path: Path, root: str | Path | None) -> Exposed:
    """Read what a test file shows.

    Of a file shaped like DriveLM's all key frames count, also those without questions: DriveBench's
    visual_description.json lists the frames of the benchmark so.
    """
    exposed, opened, read = Exposed(), open_data(path, root=root), 0
    wrong: list[RowError] = []
    for entry in track(opened.entries, line_count(path), "reading the test set"):
        if isinstance(entry.result, RowError):
            wrong.append(entry.result)
        else:
            exposed.add(entry.result)
            read += 1
    without = _add_frames(exposed, path) if opened.format == "drivelm" else 0
    if not (read or exposed.frames):
        raise wrong[0] if wrong else ValueError(f"{path} holds no samples")
    return replace(exposed, skipped=len(wrong) - without)


def _add_frames(exposed: Exposed, path: Path) -> int:
    """Add all key frames of a file, and count those without questions, which are no fault here."""
    without = 0
    for scene, frames in drivelm.key_frames(path):
        if isinstance(frames, RowError):
            continue
        exposed.scenes.setdefault(scene, str(path))
        for token, frame in frames.items():
            exposed.frames.setdefault(token, str(path))
            without += isinstance(frame, Mapping) and "QA" not in frame
    return without


def name_of(file: Path) -> str:
    """Identify an image by its name: a nuScenes name alone, `00012/front.png` with its folder.

    A name with a token or a time stamp is unique in the world [ours]: 8 or
    more hexadecimal digits behind leading zeros, 4 of them different. Decimal digits alone have to
    be 10, for `0000001234` and `20240117` are a counter and a day.
    """
    unique = any(_token(run.lstrip("0")) for run in _HEXADECIMAL.findall(file.name))
    return file.stem if unique else f"{file.parent.name}/{file.stem}"


def _token(run: str) -> bool:
    return len(run) >= (10 if run.isdecimal() else 8) and len(set(run)) >= 4


def inspect_all(files: Iterable[Path], label: str) -> dict[Path, Hash | str | None]:
    """Return the fingerprint of every picture, or its fault; a thread for each core."""
    files = list(files)
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        hashes = track(pool.map(inspect, files), len(files), label)
        return dict(zip(files, hashes, strict=True))
    finally:  # an interrupt does not wait for pictures that nobody needs any more
        pool.shutdown(cancel_futures=True)


def alike(
    train: Mapping[Path, Hash | str | None], test: Mapping[Path, Hash | str | None]
) -> dict[Path, tuple[Path, int]]:
    """Map training pictures to the alike one of the test set and its distance [bits]."""
    mine = {file: bits for file, bits in train.items() if isinstance(bits, np.ndarray)}
    theirs = {file: bits for file, bits in test.items() if isinstance(bits, np.ndarray)}
    if not mine or not theirs:
        return {}
    pairs = nearest(np.stack([*mine.values()]), np.stack([*theirs.values()]))
    others = list(theirs)
    return {
        file: (others[other], distance)
        for file, (other, distance) in zip(mine, pairs, strict=True)
        if distance <= SAME_PICTURE
    }


def leaks(
    sample: Sample, test: Exposed, pictures: Mapping[Path, tuple[Path, int]]
) -> Iterator[Finding]:
    """Yield the findings about one training sample; `pictures` are those of `alike`."""

    def finding(kind: str, message: str) -> Finding:
        return Finding(f"leak_{kind}", sample.source, message)

    if (scene := sample.scene) and scene in test.scenes:
        yield finding("scene", f"scene {shown(scene)}: {test.scenes[scene]}")
    if (frame := sample.frame) and frame in test.frames:
        yield finding("frame", f"frame {shown(frame)}: {test.frames[frame]}")
    named = [name for file in sample.images.values() if (name := name_of(file)) in test.names]
    if named:
        yield finding("name", f"{_and_more(named)}: {test.names[named[0]]}")
    seen = [file for file in sample.images.values() if file in pictures]
    if seen:
        other, distance = pictures[seen[0]]
        message = f"{_and_more([str(f) for f in seen])} is like {other} ({distance} of 256 bits)"
        yield finding("picture", message)


def _and_more(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
