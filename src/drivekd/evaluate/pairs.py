"""Two sets of scores of the same questions: how far they are apart, and whether that is noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drivekd.data.sample import CAPABILITIES
from drivekd.evaluate.answers.answer import Answer
from drivekd.evaluate.judged import question_scores
from drivekd.evaluate.judging.judge import Verdict
from drivekd.evaluate.resampling import (
    DIFFERENCES,
    RESAMPLES,
    Mix,
    alone,
    draws,
    estimate,
    mean,
    p_value,
    places,
    tally,
)
from drivekd.evaluate.score import in_order, scene_of

#: percent of right answers; the mean of a judge's points
ACCURACY, JUDGED = "accuracy", "judged"
#: means beside those of the capabilities
AVERAGE, EVERYTHING = "average", "everything"


@dataclass(frozen=True, slots=True)
class Given:
    """Answers, and the verdicts on them where they were judged."""

    answers: Sequence[Answer]
    verdicts: Sequence[Verdict] | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """Mean score of one side minus the other's, over the questions that both have [points].

    Attributes:
        mine, theirs: the two means, 0 … 100.
        mean: mine − theirs.
        low, high: 95 % interval of the difference, scenes drawn in pairs; None, as is p, where
            there are fewer than `FEWEST` scenes.
        p: two-sided, of no difference.
        n: questions.
        scenes: that they are about.
    """

    mine: float
    theirs: float
    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    scenes: int


def measured(given: Given) -> dict[str, dict[str, float]]:
    """By measure, the score [0 … 100] of each question by its id, a mean over its runs.

    Raises:
        ValueError: answers and verdicts do not fit.
    """
    runs: dict[str, list[float]] = {}
    for answer in given.answers:
        runs.setdefault(answer.id, []).append(100.0 * answer.correct)
    found = {ACCURACY: {id: sum(values) / len(values) for id, values in runs.items()}}
    if given.verdicts is not None:
        found[JUDGED] = question_scores(given.answers, given.verdicts)
    return found


def gaps(
    mine: Mapping[str, float],
    theirs: Mapping[str, float],
    answers: Sequence[Answer],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Gap]:
    """The difference in each capability, in their average and over everything [ours].

    A paired bootstrap over scenes: of a scene that is drawn, both sides' questions count. What has
    no question on both sides is absent, the average where a capability is.

    Args:
        mine: scores by question.
        theirs: the other side's; questions that only one side has are left out.
        answers: to say each question's capability and scene.
        seed: of the draws.
        resamples: number of draws.
    """
    asked = {answer.id: answer for answer in answers if answer.id in mine and answer.id in theirs}
    columns = places(scene_of(answer) for answer in asked.values())
    weights = draws(len(columns), seed, resamples)
    ids = {
        name: [id for id, answer in asked.items() if answer.capability == name]
        for name in in_order({a.capability for a in asked.values() if a.capability is not None})
    }
    groups: dict[str, list[list[str]]] = {name: [each] for name, each in ids.items()}
    if all(name in ids for name in CAPABILITIES):
        groups[AVERAGE] = [ids[name] for name in CAPABILITIES]
    if asked:
        groups[EVERYTHING] = [list(asked)]

    def mix(parts: Sequence[Sequence[str]], values: Mapping[str, float]) -> Mix:
        scored = ([(scene_of(asked[id]), values[id]) for id in part] for part in parts)
        return [part for each in scored for part in alone(tally(each, columns))]

    both = {id: mine[id] - theirs[id] for id in asked}
    found = {}
    for name, parts in groups.items():
        difference = mix(parts, both)
        e = estimate(difference, weights, DIFFERENCES)
        p = p_value(difference, weights)
        sides = mean(mix(parts, mine)), mean(mix(parts, theirs))
        found[name] = Gap(*sides, e.mean, e.low, e.high, p, e.n, e.scenes)
    return found
