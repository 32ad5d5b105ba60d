"""DriveLM-nuScenes: scene → key_frames → QA, in the training and the challenge style."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from drivekd.data.cameras import camera_files, capability_of, question_sample
from drivekd.data.formats.rows import Row, RowError, content, optional_text, shown
from drivekd.data.sample import Sample

Flat = tuple[str, Mapping[str, Any] | RowError]


def flat(scenes: Mapping[str, Any], path: Path) -> Iterator[Flat]:
    """Yield each question's place and row, which holds its frame and scene, in the file's order.

    A scene or a frame without questions comes as an error.
    """
    for scene, body in scenes.items():
        where = f"{path}, scene {_token(scene)}"
        frames = _mapping(body, "key_frames", where)
        if isinstance(frames, RowError):
            yield where, frames
            continue
        for token, frame in frames.items():
            yield from _frame(frame, f"{where}, frame {_token(token)}", scene, token)


def _frame(frame: Any, where: str, scene: str, token: str) -> Iterator[Flat]:
    sections = _mapping(frame, "QA", where)
    if isinstance(sections, RowError):
        yield where, sections
        return
    for kind, pairs in sections.items():
        if not isinstance(pairs, list):
            message = f"{where}: `QA.{_token(kind)}` must be a list, got {shown(pairs)}"
            yield f"{where}, {_token(kind)}", RowError(message)
            continue
        for number, pair in enumerate(pairs, 1):
            at = {"scene": scene, "token": token, "kind": kind, "number": number}
            yield f"{where}, {_token(kind)} row {number}", {"frame": frame, "pair": pair, **at}


def sample(row: Row) -> Sample:
    """Make a sample of a flat row.

    Tags stay in pixels of 1600×900, as the file has them. `meta` holds DriveLM's own
    `question_type`, the challenge's `tag` where there is one, and `objects`, the frame's
    key_object_infos.
    """
    frame, pair = Row(row.value["frame"], row.where, row.folder), row.value["pair"]
    if not isinstance(pair, Mapping) or not isinstance(pair.get("Q"), str):
        raise RowError(f"{row.where}: expected a mapping with a question `Q`, got {shown(pair)}")
    scene, token, kind = row.value["scene"], row.value["token"], row.value["kind"]
    meta = {"question_type": kind, "objects": frame.value.get("key_object_infos") or {}}
    if pair.get("tag") is not None:
        meta["tag"] = pair["tag"]
    return question_sample(
        row,
        id=f"{scene}/{token}/{kind}/{row.value['number']}",
        question=pair["Q"],
        answer=optional_text(Row(pair, row.where, row.folder), "A"),
        files=camera_files(frame, "image_paths"),
        capability=capability_of(kind),
        scene=scene,
        frame=token,
        meta=meta,
    )


def without(scenes: Mapping[str, Any], path: Path, dropped: Container[str]) -> dict[str, Any]:
    """Leave out the questions, frames and scenes at the dropped places.

    Frames and scenes that lose their last question go too; those that never had one stay.
    """
    kept: dict[str, Any] = {}
    for scene, body in scenes.items():
        frames = _mapping(body, "key_frames", "")
        if isinstance(frames, RowError):
            continue
        where = f"{path}, scene {_token(scene)}, frame "
        rest = {
            token: left
            for token, frame in frames.items()
            if (left := _rest(frame, where + _token(token), dropped)) is not None
        }
        if rest or not frames:
            kept[scene] = {**body, "key_frames": rest}
    return kept


def _rest(frame: Any, where: str, dropped: Container[str]) -> dict[str, Any] | None:
    """Leave out a frame's dropped questions; None where none is left of those it had."""
    rows = list(_frame(frame, where, "", ""))
    left = [row for place, row in rows if place not in dropped and not isinstance(row, RowError)]
    if rows and not left:
        return None
    sections: dict[str, Any] = {
        kind: [] for kind, pairs in frame["QA"].items() if isinstance(pairs, list)
    }
    for row in left:
        sections[row["kind"]].append(row["pair"])
    return {**frame, "QA": sections}


def _token(text: str) -> str:
    """Quote a key of the file for messages."""
    return text if text.isalnum() and len(text) <= 64 else shown(text)


def _mapping(value: Any, key: str, where: str) -> Mapping[str, Any] | RowError:
    inner = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(inner, Mapping):
        return inner
    return RowError(f"{where}: no `{key}`; expected scene → key_frames → frame → QA")


def key_frames(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | RowError]]:
    """Yield each scene's token and its key frames by their tokens, with or without questions.

    DriveBench's `visual_description.json` lists the benchmark's frames so.
    """
    scenes = content(path)
    if not isinstance(scenes, Mapping):
        raise ValueError(f"{path}: expected scene → key_frames, got a list")
    for scene, body in scenes.items():
        yield scene, _mapping(body, "key_frames", f"{path}, scene {_token(scene)}")
