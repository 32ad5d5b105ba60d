"""Refuses to hold evaluations against each other that asked or judged something else."""

from __future__ import annotations

from collections.abc import Sequence

from drivekd.evaluate.answers.answer import Answer
from drivekd.evaluate.folder import Evaluation

_ALIKE = ("question", "expected", "capability", "scene")


def refuse_other_questions(evaluations: Sequence[Evaluation]) -> None:
    """Raises ValueError unless all answer the questions of the first; the order does not count."""
    first, *others = evaluations
    asked = {answer.id: answer for answer in first.given.answers}
    for other in others:
        theirs = {answer.id: answer for answer in other.given.answers}
        _refuse_missing(first, asked, other, theirs)
        _refuse_missing(other, theirs, first, asked)
        for id, answer in asked.items():
            for field in _ALIKE:
                if (mine := getattr(answer, field)) != (its := getattr(theirs[id], field)):
                    raise ValueError(
                        f"comparison: {field} of {id!r} is {mine!r:.60} in {first.folder} and"
                        f" {its!r:.60} in {other.folder}; evaluate both on one file"
                    )


def _refuse_missing(
    one: Evaluation, mine: dict[str, Answer], other: Evaluation, theirs: dict[str, Answer]
) -> None:
    if missing := [id for id in mine if id not in theirs]:
        raise ValueError(
            f"comparison: {other.folder} lacks {len(missing)} of the {len(mine)} questions of"
            f" {one.folder}, {missing[0]!r} first; evaluate both on one file, to the end"
        )


def refuse_other_judges(evaluations: Sequence[Evaluation]) -> list[str]:
    """What is to be said of the judge of all, [] for nothing.

    Raises:
        ValueError: they have different judges, or those of some are not recorded.
    """
    first, *others = evaluations
    for other in others:
        mine, its = first.judge, other.judge
        if mine != its:
            names = sorted({*(mine or {}), *(its or {})})
            differs = [n for n in names if (mine or {}).get(n) != (its or {}).get(n)]
            said = ", ".join(
                f"{n} {(mine or {}).get(n)!r:.60} and {(its or {}).get(n)!r:.60}" for n in differs
            )
            if silent := [each.folder for each in (first, other) if each.judge is None]:
                said = f"{silent[0]}/evaluation.json is missing or names none"
            raise ValueError(
                f"comparison: {first.folder} and {other.folder} have different judges ({said});"
                " judge both alike, or compare accuracy alone"
            )
    if first.judge is None:
        return ["judged: no evaluation.json tells who judged; the same judge is taken for granted"]
    return []
