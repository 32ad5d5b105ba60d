"""Rows that ask the same question about the same pictures, found among millions by their hashes.

16 bytes a row while reading, at most 32 while sorting. Two different rows share a 64-bit hash, and
are reported as a repeat, with a probability of 3e-8 in a million rows.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from drivekd.data.check.faults import plain
from drivekd.data.check.findings import Finding
from drivekd.data.formats.rows import shown
from drivekd.data.options import letter_of, options_of
from drivekd.data.sample import Sample

_YES_NO = re.compile(r"\s*(yes|no)\b", re.IGNORECASE)
#: the last bits of an answer's hash encode its choice: none, yes, no, or one of 26 letters
_TAKES, _YES, _NO, _LETTERS = 0b11111, 1, 2, 3
#: hashes are sorted in this many parts, by their first bits, so that no index of all is needed
_PARTS = 16

SAME, OTHER_WORDS, OTHER_CHOICE = 0, 1, 2
#: added for a row that another row's finding names
_NAMED = 4
#: rows whose places are remembered to be named; of any more the number is given
_PLACES = 10_000
#: a row's place in its file
_PLACE = re.compile(r"(?<=, )(?:row|scene) .*")


@dataclass(frozen=True, slots=True)
class Repeated:
    """Rows that ask what another row asks, by their places in the file counted from 0.

    Attributes:
        other: for each row one more than the place of the row that it repeats or that answers
            otherwise; one more than its place where that is any later row, 0 without a finding.
        answer: for each row how its answer relates to that row's.
        places: of rows that others' findings name, as they were gone through.
    """

    other: NDArray[np.uint32]
    answer: NDArray[np.uint8]
    places: dict[int, str] = field(default_factory=dict)

    def findings(self, sample: Sample, place: int) -> Iterator[Finding]:
        """Yield the finding about the row at a place, if there is one; rows come in order."""
        answer = int(self.answer[place])
        if answer & _NAMED and len(self.places) < _PLACES:
            match = _PLACE.search(sample.source)
            self.places[place] = match[0] if match else sample.source
        if not self.other[place]:
            return
        other = self._name(int(self.other[place]) - 1, place)
        if answer & ~_NAMED == SAME:
            yield Finding("duplicate", sample.source, f"says what {other} says")
            return
        check = "contradiction" if answer & OTHER_CHOICE else "answers_differ"
        message = f"answers {shown(sample.answer)}, {other} asks the same and answers otherwise"
        yield Finding(check, sample.source, message)

    def _name(self, other: int, place: int) -> str:
        if other >= place:
            return "a later row"
        return self.places.get(other) or f"question {other + 1} of the file"


@dataclass(slots=True)
class Repeats:
    """Question and answer of each row, as hashes."""

    questions: array[int] = field(default_factory=lambda: array("Q"))
    answers: array[int] = field(default_factory=lambda: array("Q"))

    def add(self, sample: Sample | None) -> None:
        """Add the next row; None for one that cannot be read, which is equal to no other."""
        if sample is None:
            self.questions.append(_hash(("unread", len(self.questions))))
            self.answers.append(0)
            return
        texts = tuple([message.content for message in sample.prompt])
        files = tuple([str(file) for file in sample.images.values()])
        self.questions.append(_hash((texts, files)))
        self.answers.append(_answer_hash(sample))

    def find(self) -> Repeated:
        """Mark the rows that ask the same."""
        questions = np.frombuffer(self.questions, dtype=np.uint64)
        answers = np.frombuffer(self.answers, dtype=np.uint64)
        marked = Repeated(np.zeros(len(questions), np.uint32), np.zeros(len(questions), np.uint8))
        parts = questions.view(np.uint8)[7::8] % _PARTS
        for part in range(_PARTS):
            places = np.flatnonzero(parts == part).astype(np.uint32)
            places = places[np.argsort(questions[places], kind="stable")]
            keys = questions[places]
            ends = np.flatnonzero(keys[1:] != keys[:-1]) + 1
            lengths = np.diff(ends, prepend=0, append=len(keys))
            begins = np.append(0, ends)
            for begin, length in zip(begins[lengths > 1], lengths[lengths > 1], strict=True):
                _mark(marked, places[int(begin) : int(begin + length)], answers)
        return marked


def _hash(value: object) -> int:
    return hash(value) & 0xFFFF_FFFF_FFFF_FFFF


def _answer_hash(sample: Sample) -> int:
    if sample.answer is None:
        return 0
    return _hash(plain(sample.answer)) & ~_TAKES | _takes(sample, sample.answer)


def _takes(sample: Sample, answer: str) -> int:
    """Encode an answer's choice, 0 for an open one; the word of an option counts as its letter."""
    letter = letter_of(answer)
    if word := _yes_or_no(answer):
        options = options_of(sample.question)
        letter = next((letter for letter, text in options if _yes_or_no(text) == word), None)
        if letter is None:
            return _YES if word == "yes" else _NO
    return 0 if letter is None else _LETTERS + ord(letter) - ord("A")


def _yes_or_no(text: str) -> str | None:
    match = _YES_NO.match(text)
    return match[1].lower() if match else None


def _mark(marked: Repeated, group: NDArray[np.uint32], answers: NDArray[np.uint64]) -> None:
    """Mark the rows of one question; the first one too, where others answer it differently."""
    first, answers = group[0], answers[group]
    marked.other[group[1:]] = first + 1
    if not (same := answers == answers[0]).all():
        marked.other[first] = first + 1
        marked.answer[group] = np.where(same, SAME, OTHER_WORDS)
        marked.answer[first] = OTHER_WORDS
        takes = answers & np.uint64(_TAKES)
        for alike in ((takes == _YES) | (takes == _NO), takes >= _LETTERS):
            _contradict(marked, group[alike], takes[alike])
    named = marked.other[group]
    marked.answer[named[named > 0] - 1] |= _NAMED


def _contradict(marked: Repeated, rows: NDArray[np.uint32], takes: NDArray[np.uint64]) -> None:
    """Mark all these rows where they take different sides: each with the first of another side."""
    otherwise = takes != takes[:1]
    if otherwise.any():
        marked.answer[rows] = OTHER_CHOICE
        marked.other[rows] = np.where(otherwise, rows[0], rows[otherwise.argmax()]) + 1
