"""Faults of one sample by itself, without a look at its pictures or at other rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from drivekd.data.cameras import named
from drivekd.data.check.findings import Finding
from drivekd.data.formats.rows import shown
from drivekd.data.options import letter_of, options_of
from drivekd.data.sample import CAMERAS, IMAGE_PLACEHOLDER, Sample
from drivekd.data.tags import Unit

#: an object tag that was begun but not ended: `<c4,CAM_FRONT,0.8441,0.83`
_OPEN_TAG = re.compile(r"<[A-Za-z]{1,30}\d{0,9}\s{0,9},[^<>]{0,80}$")
#: words after which a sentence goes on
_GOES_ON = {"a", "an", "the", "and", "or", "but", "of", "with", "than", "because", "which", "to"}
_PAIRS = (("(", ")"), ("[", "]"), ("{", "}"))


def faults(sample: Sample, unit: Unit) -> Iterator[Finding]:
    """Yield the findings about one sample, whose object tags should be in this unit."""
    for check, fault in _FAULTS:
        if message := fault(sample):
            yield Finding(check, sample.source, message)
    yield from _options(sample)
    yield from _tags(sample, unit)


def _tags(sample: Sample, unit: Unit) -> Iterator[Finding]:
    """Yield one finding for the first tag of each kind of fault."""
    first: dict[str, str] = {}
    for tag in sample.tags:
        text = f"<{tag.name},{tag.camera},{tag.x:g},{tag.y:g}>"
        if tag.unit not in (None, unit):
            first.setdefault("tag_unit", f"{text} is in {tag.unit}s, the file in {unit}s")
        elif not tag.inside(unit):
            first.setdefault("tag_range", f"{text} is outside the picture, in {unit}s")
    yield from (Finding(check, sample.source, message) for check, message in first.items())


def _unassigned(sample: Sample) -> str | None:
    kind = sample.meta.get("question_type")
    return None if sample.capability else f"question_type is {shown(kind) if kind else 'absent'}"


def _unanswered(sample: Sample) -> str | None:
    return "the last turn is not the assistant's" if sample.answer is None else None


def _empty_turn(sample: Sample) -> str | None:
    for number, message in enumerate(sample.messages, 1):
        text = message.content.replace(IMAGE_PLACEHOLDER, "")
        if not text or text.isspace():
            return f"turn {number} ({message.role}) holds no words"
    return None


def _camera_absent(sample: Sample) -> str | None:
    """Name absent cameras, where every image is known to be of a camera."""
    users = [message.content for message in sample.messages if message.role == "user"]
    wanted = set[str]().union(*map(named, users))
    if not wanted or not all(camera in CAMERAS for camera in sample.images):
        return None
    absent = sorted(wanted - set(sample.images))
    has = ", ".join(sample.images) or "no image"
    return f"names {', '.join(absent)}, has {has}" if absent else None


def _truncated(sample: Sample) -> str | None:
    for message in sample.messages:
        if message.role == "assistant" and (sign := _breaks_off(message.content.rstrip())):
            return f"ends in {shown(message.content.rstrip()[-40:])}: {sign}"
    return None


def _breaks_off(answer: str) -> str | None:
    """Find a sign that an answer was cut [ours]: an open tag or bracket, or a word that goes on."""
    if not answer:
        return None
    if "<" in answer and _OPEN_TAG.search(answer):
        return "a tag is not closed"
    if any(answer.count(opened) > answer.count(closed) for opened, closed in _PAIRS):
        return "a bracket is not closed"
    if answer[-1] in ",;:(" or (" " in answer and answer.rsplit(None, 1)[-1] in _GOES_ON):
        return "the sentence goes on"
    return None


def _options(sample: Sample) -> Iterator[Finding]:
    """Yield what is wrong with the options of a turn, and with the answer that follows it."""
    turns = sample.messages
    for turn, answer in zip(turns, [*turns[1:], None], strict=True):
        options = options_of(turn.content) if turn.role == "user" else []
        if not options:
            continue
        if message := _repeated(options):
            yield Finding("option_repeat", sample.source, message)
        letters = [letter for letter, _ in options]
        taken = letter_of(answer.content) if answer and answer.role == "assistant" else None
        if taken and taken not in letters:
            message = f"answers {taken}, offered are {', '.join(letters)}"
            yield Finding("answer_option", sample.source, message)


def _repeated(options: list[tuple[str, str]]) -> str | None:
    seen: dict[str, str] = {}
    for letter, text in options:
        key = plain(text)
        if letter in seen.values():
            return f"the letter {letter} is offered twice"
        if key in seen:
            return f"options {seen[key]} and {letter} are both {shown(text)}"
        seen[key] = letter
    return None


def plain(text: str) -> str:
    """Reduce text to what rows are compared by: case, spaces and final stops do not count."""
    return " ".join(text.casefold().split()).strip(" .!")


_FAULTS: tuple[tuple[str, Callable[[Sample], str | None]], ...] = (
    ("unassigned", _unassigned),
    ("unanswered", _unanswered),
    ("empty_turn", _empty_turn),
    ("camera_absent", _camera_absent),
    ("truncated", _truncated),
)
