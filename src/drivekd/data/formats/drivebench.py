"""DriveBench: a flat list of questions, tags as fractions of the picture."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from drivekd.data.cameras import camera_files, capability_of, question_sample
from drivekd.data.formats.rows import Row, need, optional_text
from drivekd.data.kinds import kind_of
from drivekd.data.sample import Sample

#: what the benchmark's `tag` says about a question [public benchmark]
_TAGS: dict[int | None, str] = {
    0: "choice",
    1: "planning",
    2: "important_objects",
    3: "first_second_third",
}
#: … and which capability such questions exercise; a choice may be about any of the three
_CAPABILITIES: dict[int | None, str] = {1: "planning", 2: "perception", 3: "reasoning"}
#: yes/no questions of the benchmark are predictions
_YES_NO = re.compile(r"\s*(?:is|are|will|would|does|do|can|could|should)\b", re.IGNORECASE)


def sample(row: Row) -> Sample:
    """Make a sample of a row.

    The corruption files call every question `robust_qas`. Its capability is then inferred from the
    tag and the wording, and `meta["inferred"]` says so.
    """
    question = need(row, "question", str, "text")
    kind = optional_text(row, "question_type")
    tag = _first(row.value.get("tag"))
    meta: dict[str, Any] = {"question_type": kind}
    if row.value.get("tag") is not None:
        meta |= {"tag": row.value["tag"], "asks": _TAGS.get(tag)}
    if "pred" in row.value:
        meta["pred"] = row.value["pred"]
    capability = capability_of(kind)
    if capability is None and (capability := inferred(question, tag)) is not None:
        meta["inferred"] = "capability"
    made = question_sample(
        row,
        id=optional_text(row, "id") or row.number,
        question=question,
        answer=optional_text(row, "answer"),
        files=camera_files(row, "image_path"),
        capability=capability,
        scene=optional_text(row, "scene_token"),
        frame=optional_text(row, "frame_token"),
        meta=meta,
    )
    template = optional_text(row, "template")  # of our own prediction files
    return made if template is None else replace(made, template=template)


def _first(tag: Any) -> int | None:
    tag = tag[0] if isinstance(tag, list) and tag else tag
    return tag if isinstance(tag, int) else None


def inferred(question: str, tag: int | None) -> str | None:
    """Infer the capability of a question that does not say it [ours].

    A tag other than 0 decides; else the wording, where it is one of the benchmark's; else a
    question that begins like one for yes or no is a prediction. None where nothing tells.
    """
    if tag in _CAPABILITIES:
        return _CAPABILITIES[tag]
    if kind := kind_of(question):
        return kind.capability
    return "reasoning" if tag == 0 and _YES_NO.match(question) else None
