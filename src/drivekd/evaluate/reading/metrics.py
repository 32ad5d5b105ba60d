"""Comparisons of a reply with its reference without a judge: exact text, readability, object tags.

Everything here is deterministic and knows no model. `options` reads which option a reply takes.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from drivekd.data.tags import Tag, in_unit, read_tags
from drivekd.evaluate.reading.options import read_option as read_option
from drivekd.evaluate.reading.options import yes_no

#: largest distance of a pair of tags, in fractions of width and height: 80 px across, 45 px down
TAG_DISTANCE = 0.05


def normalise(text: str) -> str:
    """Return text in the form in which answers are compared.

    Unicode NFKC, case folded, one space between words, no quotes, markup or final punctuation.
    Articles and inner punctuation stay: tags and numbers must survive [ours].
    """
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return " ".join(folded.split()).strip(" \t\"'`*.,;:!?")


def exact_match(reply: str, answer: str) -> bool:
    """Whether reply and answer are the same text after `normalise`.

    ValueError: answer is empty, so that an empty reply would count as right.
    """
    expected = normalise(answer)
    if not expected:
        raise ValueError(
            f"expected answer {answer!r} is empty after normalising: nothing can be compared with"
            " it; drop this sample from the evaluation"
        )
    return normalise(reply) == expected


def unreadable(reply: str, expected: str, options: Mapping[str, str] | None = None) -> bool:
    """Whether a reply to a choice or a yes or no takes none that can be read.

    Such a reply is no right answer, but neither has it taken a wrong one: how often a model gives
    no readable answer is worth a figure of its own. A reply to any other question is text, always
    readable. `expected` of "yes" or "no" makes it such a question; `options` are those of a choice.
    """
    if options:
        return read_option(reply, options) is None
    return normalise(expected) in ("yes", "no") and yes_no(reply) is None


@dataclass(frozen=True, slots=True)
class TagMatch:
    """Counts of a one-to-one matching of tags.

    precision is None when nothing was named, recall when nothing was expected, f1 when both.
    """

    matched: int
    named: int
    expected: int

    @property
    def precision(self) -> float | None:
        return self.matched / self.named if self.named else None

    @property
    def recall(self) -> float | None:
        return self.matched / self.expected if self.expected else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall: 2·matched / (named + expected)."""
        total = self.named + self.expected
        return 2 * self.matched / total if total else None


def match_tags(named: Sequence[Tag], expected: Sequence[Tag]) -> TagMatch:
    """Pair named with expected tags: same camera, distance at most TAG_DISTANCE, each used once.

    As many pairs as possible, and among those the ones with the smallest sum of distances. A tag
    named twice counts twice.
    """
    if not named or not expected:
        return TagMatch(0, len(named), len(expected))
    far = [[math.hypot(a.x - b.x, a.y - b.y) for b in expected] for a in named]
    distance = np.asarray(far, dtype=np.float64)
    same = np.asarray([[a.camera == b.camera for b in expected] for a in named])
    allowed = same & (distance <= TAG_DISTANCE)
    # A forbidden pair costs more than all allowed pairs together, so it is used only when it must.
    forbidden = 1.0 + TAG_DISTANCE * (len(named) + len(expected))
    rows, columns = linear_sum_assignment(np.where(allowed, distance, forbidden))
    return TagMatch(int(allowed[rows, columns].sum()), len(named), len(expected))


@dataclass(frozen=True, slots=True)
class TagScores:
    """Agreement of replies with the objects of their references."""

    overall: TagMatch  # counts of all tags together
    cameras: Mapping[str, TagMatch]  # counts by camera, those that a reply made up included
    questions: int  # whose reference has tags; no other is counted


def tag_scores(pairs: Iterable[tuple[str, str]]) -> TagScores:
    """Match the tags of replies and references, question by question, and sum the counts.

    Tags in pixels of the 1600×900 picture and in fractions of it are compared as fractions, each
    by what it is beyond doubt (`data/tags.py`). Counts are summed before they are divided, so that
    a question weighs by its objects; a rate of nothing is None.
    """
    questions, counts = 0, dict[str, TagMatch]()
    for reply, reference in pairs:
        expected = read_tags(in_unit(reference, "fraction"))
        if not expected:
            continue
        questions += 1
        named = read_tags(in_unit(reply, "fraction"))
        for camera in dict.fromkeys(tag.camera for tag in (*expected, *named)):
            here = [[tag for tag in tags if tag.camera == camera] for tags in (named, expected)]
            pair = counts.get(camera, TagMatch(0, 0, 0)), match_tags(*here)
            counts[camera] = _sum(pair)
    return TagScores(_sum(counts.values()), counts, questions)


def _sum(matches: Iterable[TagMatch]) -> TagMatch:
    counts = [(match.matched, match.named, match.expected) for match in matches]
    return TagMatch(*map(sum, zip(*counts, strict=True))) if counts else TagMatch(0, 0, 0)
