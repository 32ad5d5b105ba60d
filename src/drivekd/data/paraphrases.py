"""A question in other words: the same pictures, the same answer."""

from __future__ import annotations

from dataclasses import replace

from drivekd.data.rewording import reworded
from drivekd.data.sample import Message, Sample


def paraphrased(sample: Sample) -> list[Sample]:
    """The sample, then the same with each other wording of its last question in its place.

    The wordings are the sample's own; where it has none, those that a rule of
    `drivekd.data.rewording` makes. What stands around the question (placeholders, camera labels)
    stays.
    """
    others = sample.paraphrases or reworded(sample.question)
    return [sample, *(_worded(sample, words, i) for i, words in enumerate(others, 1))]


def _worded(sample: Sample, words: str, number: int) -> Sample:
    turns = list(sample.messages)
    last = max(i for i, turn in enumerate(turns) if turn.role == "user")
    before = turns[last].content.rpartition(sample.question)[0]
    turns[last] = Message("user", before + words)
    return replace(sample, id=f"{sample.id}~{number}", messages=tuple(turns), paraphrases=())
