"""Other words for a question: its own, or by the rules of paraphrases.yaml; the answer stays."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources

import yaml

from drivekd.data.sample import Message, Sample

_TAG = r"<[^<>]{1,120}>"

#: pattern of each placeholder of a rule
SLOTS = {
    "a": _TAG,
    "b": _TAG,
    "side": "(?:front|back)(?: left| right)?",
    "things": "[a-z][a-z ]{1,60}",
    "be": "is|are",
    "deed": "[a-z][a-z ]{1,80}",
    "form": r"[^?]{1,600}",
}
#: options behind a question stay as they are
_OPTIONS = re.compile(
    r"\s{1,3}Please select the correct answer from the following options:.*", re.DOTALL
)


@dataclass(frozen=True)
class Rule:
    """A question of the benchmarks and two other wordings, with placeholders of `SLOTS`."""

    question: str
    second: str
    third: str

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Pattern of the whole question."""
        parts = re.split(r"\{(\w+)\}", self.question)
        named = (
            f"(?P<{part}>{SLOTS[part]})" if i % 2 else re.escape(part)
            for i, part in enumerate(parts)
        )
        return re.compile("".join(named))


_FILE = resources.files("drivekd") / "data" / "paraphrases.yaml"
RULES = tuple(Rule(*wordings) for wordings in yaml.safe_load(_FILE.read_text(encoding="utf-8")))


def reworded(question: str) -> tuple[str, ...]:
    """Return two other wordings of a question that a rule matches as a whole, () of another one.

    Case and spaces count: what no rule matches is left alone.
    """
    options = _OPTIONS.search(question)
    stem = question[: options.start()] if options else question
    tail = options[0] if options else ""
    for rule in RULES:
        if match := rule.pattern.fullmatch(stem):
            words = match.groupdict()
            return rule.second.format(**words) + tail, rule.third.format(**words) + tail
    return ()


def paraphrased(sample: Sample) -> list[Sample]:
    """Return the sample, and the same with each other wording in place of its last question.

    Placeholders and camera labels around the question stay.
    """
    others = sample.paraphrases or reworded(sample.question)
    return [sample, *(_worded(sample, words, i) for i, words in enumerate(others, 1))]


def _worded(sample: Sample, words: str, number: int) -> Sample:
    turns = list(sample.messages)
    last = max(i for i, turn in enumerate(turns) if turn.role == "user")
    before = turns[last].content.rpartition(sample.question)[0]
    turns[last] = Message("user", before + words)
    return replace(sample, id=f"{sample.id}~{number}", messages=tuple(turns), paraphrases=())
