"""Rows that ask the same question about the same pictures, found among millions by their hashes.

16 bytes a row while reading, at most 32 while sorting. Two different rows share a 64-bit hash with
a probability of 3e-8 in a million rows; such a pair would be told as a repeat that it is not.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from drivekd.data.faults import plain
from drivekd.data.findings import Finding
from drivekd.data.options import letter_of
from drivekd.data.rows import shown
from drivekd.data.sample import Sample

_YES_NO = re.compile(r"\s*(yes|no)\b", re.IGNORECASE)
#: the last bits of an answer's hash say what it takes: nothing, yes, no, or one of 26 letters
_TAKES = 0b11111
#: hashes are sorted in this many parts, by their first bits, so that no index of all is needed
_PARTS = 16

SAME, OTHER_WORDS, OTHER_CHOICE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Repeated:
    """Which rows ask what another row asks, by their places in the file counted from 0.

    Attributes:
        first: for each row one more than the place of the first row that asks the same; 0 where
            nothing is to be told.
        answer: for each row how its answer stands to that row's; for the first row itself how the
            others' stand to its own.
    """

    first: NDArray[np.uint32]
    answer: NDArray[np.uint8]

    def findings(self, sample: Sample, place: int) -> Iterator[Finding]:
        """The finding about the row at a place, if there is one."""
        if not self.first[place]:
            return
        other = f"question {self.first[place]} of the file"
        if self.answer[place] == SAME:
            yield Finding("duplicate", sample.source, f"says what {other} says")
            return
        check = "contradiction" if self.answer[place] == OTHER_CHOICE else "answers_differ"
        if self.first[place] == place + 1:
            other = "a later question"
        message = f"answers {shown(sample.answer)}, {other} asks the same and answers otherwise"
        yield Finding(check, sample.source, message)


@dataclass(slots=True)
class Repeats:
    """What each row asks and answers, as hashes."""

    asked: array[int] = field(default_factory=lambda: array("Q"))
    answered: array[int] = field(default_factory=lambda: array("Q"))

    def add(self, sample: Sample | None) -> None:
        """Add the next row; None for one that cannot be read, which is equal to no other."""
        if sample is None:
            self.asked.append(_hash(("unread", len(self.asked))))
            self.answered.append(0)
            return
        texts = tuple([message.content for message in sample.prompt])
        files = tuple([str(file) for file in sample.images.values()])
        self.asked.append(_hash((texts, files)))
        self.answered.append(_answer_hash(sample.answer))

    def find(self) -> Repeated:
        """The rows that ask the same."""
        asked = np.frombuffer(self.asked, dtype=np.uint64)
        answered = np.frombuffer(self.answered, dtype=np.uint64)
        found = Repeated(np.zeros(len(asked), np.uint32), np.zeros(len(asked), np.uint8))
        parts = asked.view(np.uint8)[7::8] % _PARTS
        for part in range(_PARTS):
            places = np.flatnonzero(parts == part).astype(np.uint32)
            places = places[np.argsort(asked[places], kind="stable")]
            keys = asked[places]
            ends = np.flatnonzero(keys[1:] != keys[:-1]) + 1
            lengths = np.diff(ends, prepend=0, append=len(keys))
            begins = np.append(0, ends)
            for begin, length in zip(begins[lengths > 1], lengths[lengths > 1], strict=True):
                _mark(found, places[int(begin) : int(begin + length)], answered)
        return found


def _hash(value: object) -> int:
    return hash(value) & 0xFFFF_FFFF_FFFF_FFFF


def _answer_hash(answer: str | None) -> int:
    if answer is None:
        return 0
    takes = 0
    if match := _YES_NO.match(answer):
        takes = 1 if match[1].lower() == "yes" else 2
    elif letter := letter_of(answer):
        takes = 3 + ord(letter) - ord("A")
    return _hash(plain(answer)) & ~_TAKES | takes


def _mark(found: Repeated, group: NDArray[np.uint32], answered: NDArray[np.uint64]) -> None:
    """Mark the rows of one question; the first one too, where others answer it differently."""
    first, answers = group[0], answered[group]
    takes = answers & np.uint64(_TAKES)
    choice = (takes != takes[0]) & (takes > 0) & (takes[0] > 0)
    answer = np.where(answers == answers[0], SAME, np.where(choice, OTHER_CHOICE, OTHER_WORDS))
    found.first[group[1:]] = first + 1
    found.answer[group] = answer
    if (worst := answer.max()) != SAME:
        found.first[first] = first + 1
        found.answer[first] = worst
