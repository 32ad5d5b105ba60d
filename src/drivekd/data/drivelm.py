"""DriveLM-nuScenes: scene → key_frames → QA, in the training and the challenge style."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from drivekd.data.cameras import camera_files, question_sample
from drivekd.data.rows import Row, content
from drivekd.data.sample import Sample


def samples(scenes: Mapping[str, Any], path: Path, folder: Path) -> Iterator[Sample]:
    """The questions of a file, scene by scene, frame by frame, in the file's order.

    Tags stay in pixels of 1600×900, as the file has them. `meta` holds DriveLM's own
    `question_type`, the challenge's `tag` where there is one, and `objects`, the frame's
    key_object_infos.

    Raises:
        ValueError: something is missing; file, scene, frame and row are named.
    """
    for scene, body in scenes.items():
        for token, frame in _mapping(body, "key_frames", f"{path}, scene {scene}").items():
            where = f"{path}, scene {scene}, frame {token}"
            for kind, pairs in _mapping(frame, "QA", where).items():
                if not isinstance(pairs, list):
                    raise ValueError(f"{where}: `QA.{kind}` must be a list, got {pairs!r:.60}")
                for number, pair in enumerate(pairs, 1):
                    row = Row(frame, f"{where}, {kind} row {number}", folder)
                    yield _sample(row, pair, scene, token, kind, number)


def _sample(row: Row, pair: Any, scene: str, token: str, kind: str, number: int) -> Sample:
    if not isinstance(pair, Mapping) or not isinstance(pair.get("Q"), str):
        raise ValueError(f"{row.where}: expected a mapping with a question `Q`, got {pair!r:.60}")
    answer = pair.get("A")
    meta = {"objects": row.value.get("key_object_infos") or {}}
    if pair.get("tag") is not None:
        meta["tag"] = pair["tag"]
    return question_sample(
        row,
        id=f"{scene}/{token}/{kind}/{number}",
        question=pair["Q"],
        answer=None if answer is None else str(answer),
        files=camera_files(row, "image_paths"),
        kind=kind,
        scene=scene,
        frame=token,
        meta=meta,
    )


def _mapping(value: Any, key: str, where: str) -> Mapping[str, Any]:
    inner = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(inner, Mapping):
        raise ValueError(f"{where}: no `{key}`; expected scene → key_frames → frame → QA")
    return inner


def frame_tokens(path: str | Path) -> frozenset[str]:
    """Tokens of the key frames of a file shaped like DriveLM's, with or without questions.

    DriveBench's `visual_description.json` is one: its tokens are the frames to keep out of
    training, because the benchmark was drawn from DriveLM's training frames.
    """
    scenes = content(Path(path))
    if not isinstance(scenes, Mapping):
        raise ValueError(f"{path}: expected scene → key_frames, got a list")
    return frozenset(
        token
        for scene, body in scenes.items()
        for token in _mapping(body, "key_frames", f"{path}, scene {scene}")
    )
