"""Turns answers into percentages with intervals.

All percentages are 0 … 100. What has no questions has no score: it is left out, never 0.0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drivekd.data.sample import CAPABILITIES, Sample
from drivekd.evaluate.answers.answer import Answer, answer_of
from drivekd.evaluate.reading.metrics import normalise
from drivekd.files.writing import write_json
from drivekd.statistics import estimate

#: means beside those of the capabilities
AVERAGE, EVERYTHING = "average", "everything"


@dataclass(frozen=True, slots=True)
class Score:
    """Share of right answers [percent] among n questions, with its 95 % interval.

    low, high and the standard error, clustered by scene, are None where some capability has fewer
    than five scenes.
    """

    n: int
    accuracy: float
    low: float | None
    high: float | None
    scenes: int
    standard_error: float | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores per capability, per template and of all questions.

    average, the mean of the capabilities, is None unless all three have a score; everything is
    None without questions. The intervals say how the figures would vary with other test scenes,
    and with other training seeds where answers of several were given.
    """

    capabilities: Mapping[str, Score]
    templates: Mapping[str, Score]
    average: Score | None
    everything: Score | None


@dataclass(frozen=True, slots=True)
class Grouped:
    """Questions of one mean, by id; the average is over their capabilities."""

    ids: Sequence[str]
    scenes: Sequence[str]
    capabilities: Sequence[str] | None = None


def score(answers: Sequence[Answer], *seeds: Sequence[Answer]) -> Scores:
    """Score answers per template and capability, with errors clustered by scene [ours].

    A question that was answered in several runs counts once, with the mean of its answers. The
    average is the plain mean of the three capabilities; see `drivekd.statistics.estimate`.

    Args:
        answers: of one model; those without scene count as a scene each.
        seeds: answers to the same questions of the same recipe, trained with other seeds.

    Raises:
        ValueError: the seeds answer other questions.
    """
    rights = by_seed(answers, *seeds)
    questions = {answer.id: answer for answer in answers}

    def of(group: Grouped | None) -> Score | None:
        if group is None:
            return None
        values = [[right[id] for id in group.ids] for right in rights]
        e = estimate(values, group.scenes, group.capabilities)
        return Score(e.n, e.mean, e.low, e.high, e.scenes, e.standard_error)

    def by_name(groups: Mapping[str, Grouped]) -> dict[str, Score]:
        return {name: made for name, group in groups.items() if (made := of(group)) is not None}

    capabilities = grouped(questions, "capability")
    average, everything = (capabilities.pop(name, None) for name in (AVERAGE, EVERYTHING))
    templates = grouped(questions, "template")
    for name in (AVERAGE, EVERYTHING):
        templates.pop(name, None)
    return Scores(by_name(capabilities), by_name(templates), of(average), of(everything))


def accuracies(answers: Iterable[Answer]) -> dict[str, float]:
    """The share of right answers [percent] of each question by its id, a mean over its runs."""
    runs: dict[str, list[float]] = {}
    for answer in answers:
        runs.setdefault(answer.id, []).append(100.0 * answer.correct)
    return {id: sum(values) / len(values) for id, values in runs.items()}


def by_seed(*seeds: Sequence[Answer]) -> list[dict[str, float]]:
    """`accuracies` of each training seed.

    Raises:
        ValueError: they answer other questions than the first.
    """
    rights = [accuracies(answers) for answers in seeds]
    if any(right.keys() != rights[0].keys() for right in rights):
        raise ValueError(
            "answers of several seeds: expected the same questions in every list; score all of"
            " them on one file"
        )
    return rights


def grouped(questions: Mapping[str, Answer], field: str) -> dict[str, Grouped]:
    """Questions by the value of a field, in its order; then `AVERAGE` and `EVERYTHING`.

    Questions without a value are in the last alone; the average is absent unless all three
    capabilities have questions, everything without any.
    """
    by_name: dict[str, list[str]] = {}
    for id, answer in questions.items():
        if (name := getattr(answer, field)) is not None:
            by_name.setdefault(name, []).append(id)

    def of(ids: Sequence[str], capabilities: Sequence[str] | None = None) -> Grouped:
        return Grouped(ids, [scene_of(questions[id]) for id in ids], capabilities)

    groups = {name: of(by_name[name]) for name in in_order(by_name)}
    if all(name in by_name for name in CAPABILITIES):
        three = [(id, name) for name in CAPABILITIES for id in by_name[name]]
        groups[AVERAGE] = of([id for id, _ in three], [name for _, name in three])
    if questions:
        groups[EVERYTHING] = of(list(questions))
    return groups


def scene_of(answer: Answer) -> str:
    """The scene of an answer's question; one of its own where the data name none."""
    return answer.scene if answer.scene is not None else f"\0{answer.id}"


def in_order(names: Iterable[str]) -> list[str]:
    """Capabilities in their order, then other names in the alphabet's."""
    order = {name: i for i, name in enumerate(CAPABILITIES)}
    return sorted(names, key=lambda name: (order.get(name, len(order)), name))


def as_json(scores: Scores) -> dict[str, Any]:
    """The scores as plain data; what has no score is absent."""
    return {name: value for name, value in asdict(scores).items() if value is not None}


def write_scores(scores: Scores, path: Path) -> None:
    """Write `as_json` to a file."""
    write_json(path, as_json(scores))


def majority(train: Sequence[Sample], test: Sequence[Sample]) -> list[Answer]:
    """Answer every test question with the most frequent training answer of its kind.

    The line that a model must beat to have read the question. A kind, which is a capability and a
    template, that training does not have gets the empty reply. Ties go to the answer that comes
    first in the alphabet.
    """
    counts: dict[tuple[str | None, str | None], Counter[str]] = {}
    for sample in train:
        if sample.answer:
            kind = sample.capability, sample.template
            counts.setdefault(kind, Counter())[normalise(sample.answer)] += 1
    most = {
        kind: min(counter, key=lambda text: (-counter[text], text))
        for kind, counter in counts.items()
    }
    return [answer_of(each, most.get((each.capability, each.template), "")) for each in test]
