"""Two sets of scores of the same questions and their difference; every mean beside its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drivekd.evaluate.answers.answer import Answer
from drivekd.evaluate.judged import question_scores
from drivekd.evaluate.judging.judge import Verdict
from drivekd.evaluate.score import accuracies, by_seed, grouped
from drivekd.statistics import Difference, difference

#: percent of right answers; the mean of a judge's points
ACCURACY, JUDGED = "accuracy", "judged"


@dataclass(frozen=True, slots=True)
class Given:
    """Answers, and the verdicts on them where they were judged."""

    answers: Sequence[Answer]
    verdicts: Sequence[Verdict] | None = None


@dataclass(frozen=True, slots=True)
class Beside:
    """One mean of a model with its controls.

    Attributes:
        measure: `accuracy` or `judged`.
        group: a capability, `average` or `everything`.
        controls: by the control's name, `mine` being the model, over the questions that both have
            a score for.
    """

    measure: str
    group: str
    controls: Mapping[str, Difference]


def measured(given: Given) -> dict[str, dict[str, float]]:
    """By measure, the score [0 … 100] of each question by its id, a mean over its runs.

    Raises:
        ValueError: answers and verdicts do not fit.
    """
    scores = {ACCURACY: accuracies(given.answers)}
    if given.verdicts is not None:
        scores[JUDGED] = question_scores(given.answers, given.verdicts)
    return scores


def gaps(
    mine: Sequence[Mapping[str, float]] | Mapping[str, float],
    theirs: Sequence[Mapping[str, float]] | Mapping[str, float],
    answers: Sequence[Answer],
) -> dict[str, Difference]:
    """The difference in each capability, in their average and over everything [ours].

    What has no question on both sides is absent, the average where a capability is. See
    `drivekd.statistics.difference`.

    Args:
        mine: scores by question, of several training seeds one after the other.
        theirs: the other side's, of as many seeds.
        answers: to say each question's capability and scene; questions that only one side has are
            left out.
    """
    one, other = ([side] if isinstance(side, Mapping) else side for side in (mine, theirs))
    shared = {a.id: a for a in answers if all(a.id in scores for scores in (*one, *other))}
    return {
        name: difference(
            [[scores[id] for id in group.ids] for scores in one],
            [[scores[id] for id in group.ids] for scores in other],
            group.scenes,
            group.capabilities,
        )
        for name, group in grouped(shared, "capability").items()
    }


def gaps_of_seeds(
    mine: Sequence[Sequence[Answer]], theirs: Sequence[Sequence[Answer]]
) -> dict[str, Difference]:
    """Two recipes' accuracies, each trained with the same seeds: a list of answers per seed.

    Raises:
        ValueError: a list answers other questions than the first.
    """
    rights = by_seed(*mine, *theirs)
    return gaps(rights[: len(mine)], rights[len(mine) :], mine[0])


def beside(model: Given, controls: Mapping[str, Given]) -> list[Beside]:
    """The controls, `black` and `majority`, beside every mean that they have too.

    Raises:
        ValueError: answers and verdicts do not fit.
    """
    mine = measured(model)
    others = {name: measured(given) for name, given in controls.items()}
    rows = []
    for measure, values in mine.items():
        by_control = {
            name: gaps(values, other[measure], model.answers)
            for name, other in others.items()
            if measure in other
        }
        for group in dict.fromkeys(group for gap in by_control.values() for group in gap):
            row = {name: gap[group] for name, gap in by_control.items() if group in gap}
            rows.append(Beside(measure, group, row))
    return rows


def table(rows: Sequence[Beside]) -> str:
    """A line per mean for people: the model, each control, and what the model has more."""
    return "\n".join(
        f"{row.measure:<9} {row.group:<12}{next(iter(row.controls.values())).mine:6.1f}"
        + "".join(f"  {name} {_cell(gap):<32}" for name, gap in row.controls.items()).rstrip()
        for row in rows
    )


def _cell(gap: Difference) -> str:
    interval = "" if gap.low is None else f" [{gap.low:+.1f}, {gap.high:+.1f}]"
    return f"{gap.theirs:.1f}: {gap.mean:+.1f}{interval}"
