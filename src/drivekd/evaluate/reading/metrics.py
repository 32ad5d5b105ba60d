"""Compares a reply with its reference without a judge: exact text, readability, object tags.

Everything here is deterministic and knows no model. What an option question's reply takes is read
by `reading_options`.
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


def normalise(text: str) -> str:
    """Returns text in the form in which answers are compared.

    Unicode NFKC, case folded, one space between words, no quotes, markup or final punctuation.
    Articles and inner punctuation stay: tags and numbers must survive [ours].
    """
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return " ".join(folded.split()).strip(" \t\"'`*.,;:!?")


def exact_match(reply: str, answer: str) -> bool:
    """Whether reply and answer are the same text after `normalise`.

    Raises:
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
    """Whether a reply to a choice or a yes or no says none that can be read.

    Such a reply is no right answer, but neither has it taken a wrong one: how often a model gives
    no readable answer is worth a figure of its own. A reply to any other question is text, always
    readable.

    Args:
        reply: what the model said.
        expected: the reference; "yes" or "no" makes it such a question.
        options: letter to text, of a choice.

    Raises:
        ValueError: options that are none, see `read_option`.
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
        """Share of the named tags that were expected."""
        return self.matched / self.named if self.named else None

    @property
    def recall(self) -> float | None:
        """Share of the expected tags that were named."""
        return self.matched / self.expected if self.expected else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall: 2·matched / (named + expected)."""
        total = self.named + self.expected
        return 2 * self.matched / total if total else None


def match_tags(named: Sequence[Tag], expected: Sequence[Tag], threshold: float = 0.05) -> TagMatch:
    """Pairs named with expected tags: same camera, distance at most threshold, each used once.

    As many pairs as possible, and among those the ones with the smallest sum of distances.

    Args:
        named: tags of the reply; a tag named twice counts twice.
        expected: tags of the ground truth.
        threshold: largest Euclidean distance of a pair, in the tags' unit (fractions of the
            image's width and height in the world, pixels in DriveLM).

    Raises:
        ValueError: threshold is negative or not finite.
    """
    if not (math.isfinite(threshold) and threshold >= 0):
        raise ValueError(f"threshold of tag matching: expected a number >= 0, got {threshold}")
    if not named or not expected:
        return TagMatch(0, len(named), len(expected))
    far = [[math.hypot(a.x - b.x, a.y - b.y) for b in expected] for a in named]
    distance = np.asarray(far, dtype=np.float64)
    same = np.asarray([[a.camera == b.camera for b in expected] for a in named])
    allowed = same & (distance <= threshold)
    # A forbidden pair costs more than all allowed pairs together, so it is used only when it must.
    forbidden = 1.0 + threshold * (len(named) + len(expected))
    rows, columns = linear_sum_assignment(np.where(allowed, distance, forbidden))
    return TagMatch(int(allowed[rows, columns].sum()), len(named), len(expected))


@dataclass(frozen=True, slots=True)
class TagScores:
    """How well replies name the objects of their references."""

    overall: TagMatch  # counts of all tags together
    cameras: Mapping[str, TagMatch]  # counts by camera, those that a reply made up included
    questions: int  # whose reference has tags; no other is counted


def tag_scores(pairs: Iterable[tuple[str, str]], threshold: float = 0.05) -> TagScores:
    """Matches the tags of replies and references, question by question, and sums the counts.

    Tags in pixels of the 1600×900 picture and in fractions of it are compared as fractions, each
    by what it is beyond doubt (`data/tags.py`). Counts are summed before they are divided, so that
    a question weighs by its objects; a rate of nothing is None.

    Args:
        pairs: reply and reference.
        threshold: largest distance of a pair, in fractions of width and height: 0.05 is 80 pixels
            across and 45 down.

    Raises:
        ValueError: threshold is negative or not finite.
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
            found = match_tags(here[0], here[1], threshold)
            counts[camera] = _sum((counts.get(camera, TagMatch(0, 0, 0)), found))
    return TagScores(_sum(counts.values()), counts, questions)


def _sum(matches: Iterable[TagMatch]) -> TagMatch:
    each = list(matches)
    return TagMatch(
        sum(match.matched for match in each),
        sum(match.named for match in each),
        sum(match.expected for match in each),
    )
