"""The rows of an evaluation's page, as plain data for its script."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivekd.data.cameras import around, in_words
from drivekd.data.sample import CAMERAS, Sample
from drivekd.data.tags import Tag, read_tags
from drivekd.report.results import Row
from drivekd.report.thumbnails import Thumbnail

#: answers by question, one per run
Answers = Mapping[str, Sequence[Row]]

#: reasons for a missing total, in words
_UNSCORED = {
    "bad_reply": "the judge's reply could not be read",
    "transport": "no reply of the judge came",
    "over_budget": "the limit of cost was reached",
    "no_sheet": "there is no sheet for this question",
}


@dataclass(frozen=True, slots=True)
class Judged:
    """Verdicts by id and run of the answer; criteria by sheet, each with its most points."""

    verdicts: Mapping[tuple[str, str], Sequence[Row]]
    criteria: Mapping[str, Sequence[tuple[str, float | None]]]


def content(
    answers: Answers,
    samples: Mapping[str, Sample],
    copies: Mapping[Path, Thumbnail | None],
    judged: Judged,
    controls: Mapping[str, Answers],
) -> dict[str, Any]:
    """Gather the rows of the page; samples only where the data file still has them.

    Returns:
        {"views": pictures of a question, [[camera, file or null, width, height], …]; "criteria";
        "controls": names; "questions": [{"view": place in views or null, "marks": [[picture, x, y,
        name, role], …], "undrawn": tags that have no place, "replies": [{"run", "reply", "correct",
        "verdicts", "marks"}], "controls": [{"name", "reply", "correct", "same"}], …}]}.
    """
    views: dict[tuple[tuple[str, Path], ...], int] = {}
    questions = []
    for id, rows in answers.items():
        images = samples[id].images if id in samples else {}
        cameras = around(images)
        key = tuple((camera, images[camera]) for camera in cameras)
        replies = [_reply(row, cameras, judged.verdicts) for row in rows]
        shown = _question(rows[0], cameras) | {"replies": replies, "score": _mean(replies)}
        undrawn = shown["undrawn"] + [words for reply in replies for words in reply.pop("undrawn")]
        shown["undrawn"] = list(dict.fromkeys(undrawn))
        shown["view"] = views.setdefault(key, len(views)) if id in samples else None
        shown["controls"] = list(_beside(id, rows, controls))
        questions.append(shown)
    return {
        "views": [[_picture(c, copies.get(path)) for c, path in images] for images in views],
        "criteria": judged.criteria,
        "controls": list(controls),
        "questions": questions,
    }


def text_of(value: Any) -> str:
    """Write a value of a result file as text, None as ""."""
    return "" if value is None else str(value)


def number(value: Any) -> float | None:
    """Return a value of a result file where it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number of hundreds of digits
        return None


def _picture(camera: str, copy: Thumbnail | None) -> list[Any]:
    name = in_words(camera)
    return [name, copy.name, copy.width, copy.height] if copy else [name, None, 0, 0]


def _question(row: Row, cameras: Sequence[str]) -> dict[str, Any]:
    names = ("id", "capability", "template", "scene", "question", "expected")
    shown: dict[str, Any] = {name: text_of(row.get(name)) for name in names}
    marks, undrawn = _marks(shown["question"], "question", cameras)
    expected, lost = _marks(shown["expected"], "reference", cameras)
    return shown | {"marks": marks + expected, "undrawn": undrawn + lost}


def _reply(
    row: Row, cameras: Sequence[str], verdicts: Mapping[tuple[str, str], Sequence[Row]]
) -> dict[str, Any]:
    reply, run = text_of(row["reply"]), text_of(row.get("run", 0))
    marks, undrawn = _marks(reply, "reply", cameras)
    given = [_verdict(verdict) for verdict in verdicts.get((text_of(row["id"]), run), ())]
    return {
        "run": run,
        "reply": reply,
        "correct": bool(row["correct"]),
        "marks": marks,
        "undrawn": undrawn,
        "verdicts": given,
    }


def _verdict(row: Row) -> dict[str, Any]:
    scores = row.get("scores")
    status, reason = text_of(row["status"]), text_of(row.get("reason"))
    why = _UNSCORED.get(status, status)
    return {
        "run": text_of(row.get("run", 0)),
        "sheet": text_of(row.get("sheet")),
        "scores": [number(score) for score in scores] if isinstance(scores, list) else [],
        "total": number(row.get("total")),
        "reason": f"{why}: {reason}" if reason else why,
    }


def _mean(replies: Iterable[Row]) -> float | None:
    """Average over the replies to a question the mean of each one's totals, as it is scored."""
    runs = [[v["total"] for v in r["verdicts"] if v["total"] is not None] for r in replies]
    means = [sum(totals) / len(totals) for totals in runs if totals]
    return sum(means) / len(means) if means else None


def _beside(id: str, rows: Sequence[Row], controls: Mapping[str, Answers]) -> Iterable[Row]:
    """Yield the controls' replies to a question, and whether the replies are all among them."""
    replies = {_plain(row) for row in rows}
    for name, answers in controls.items():
        control = answers.get(id, ())
        same = replies <= {_plain(row) for row in control}
        for row in control:
            reply = text_of(row["reply"])
            yield {"name": name, "reply": reply, "correct": bool(row["correct"]), "same": same}


def _plain(row: Row) -> str:
    """Reduce a reply to what counts: neither case nor blanks."""
    return " ".join(text_of(row["reply"]).split()).casefold()


def _marks(text: str, role: str, cameras: Sequence[str]) -> tuple[list[list[Any]], list[str]]:
    """Return the tags of a text that have a place in a picture, and in words the others."""
    marks, undrawn = [], []
    for tag in dict.fromkeys(read_tags(text)):
        at = _picture_of(tag, cameras)
        if at is not None and tag.place is not None:
            marks.append([at, *tag.place, tag.name, role])
        elif cameras:
            why = "no such picture" if at is None else "no place in the picture"
            place = f"{in_words(tag.camera)}, {tag.x:g}, {tag.y:g}"
            undrawn.append(f"{tag.name} ({place}) of the {role}: {why}")
    return marks, undrawn


def _picture_of(tag: Tag, cameras: Sequence[str]) -> int | None:
    """Return the number of a tag's picture; the only one, where its camera is not known."""
    if len(cameras) == 1 and cameras[0] not in CAMERAS:
        return 0
    return cameras.index(tag.camera) if tag.camera in cameras else None
