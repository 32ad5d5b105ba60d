"""DriveBench: a flat list of questions, tags as fractions of the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drivekd.data.cameras import camera_files, question_sample
from drivekd.data.rows import Row, need, optional_text
from drivekd.data.sample import Sample

#: what the benchmark's `tag` says about a question [public benchmark]
_TEMPLATES = {0: "choice", 1: "planning", 2: "important_objects", 3: "first_second_third"}


def sample(row: Row) -> Sample:
    """One row as a sample.

    Raises:
        ValueError: a key is missing or of the wrong kind.
    """
    question = need(row, "question", str, "text")
    kind = optional_text(row, "question_type")
    scene, frame = optional_text(row, "scene_token"), optional_text(row, "frame_token")
    tag = row.value.get("tag")
    return question_sample(
        row,
        id=str(row.value.get("id", row.where.rpartition(", row ")[2])),
        question=question,
        answer=optional_text(row, "answer"),
        files=camera_files(row, "image_path"),
        kind=kind,
        scene=scene,
        frame=frame,
        meta=_meta(row.value, tag),
    )


def _meta(value: Mapping[str, Any], tag: Any) -> dict[str, Any]:
    first = tag[0] if isinstance(tag, list) and tag else tag
    meta: dict[str, Any] = {} if tag is None else {"tag": tag, "asks": _TEMPLATES.get(first)}
    return meta | {k: value[k] for k in ("pred",) if k in value}
