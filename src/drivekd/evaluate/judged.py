"""Means of judged answers: per capability and task, what was unscored, and what varies.

Every question counts once: with the mean over the runs of its answer of the mean over the verdicts
of that answer. An unscored verdict enters no mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivekd.data.sample import CAPABILITIES
from drivekd.evaluate.answers.answer import Answer
from drivekd.evaluate.judging.judge import Verdict
from drivekd.evaluate.score import in_order, scene_of
from drivekd.statistics import estimate

TASKS = ("perception", "prediction", "behavior", "planning")
#: tasks whose plain mean is reasoning, where tasks and not questions count alike
_REASONING = ("prediction", "behavior")


@dataclass(frozen=True, slots=True)
class Spread:
    """How much the mean over all questions varies from one run to the next [points²].

    Attributes:
        answer_variance: over answering again; None unless answers and judgements were repeated.
        judge_variance: over judging the same answers again; None unless that was done.
        floored: the estimate of `answer_variance` was below 0 and is given as 0.
        answer_runs, judge_runs: how often.
        n: questions with a score in every run; the others are left out of these variances.
    """

    answer_variance: float | None
    judge_variance: float | None
    floored: bool
    answer_runs: int
    judge_runs: int
    n: int


@dataclass(frozen=True, slots=True)
class JudgedScore:
    """Mean of judged scores, 0 … 100.

    Attributes:
        mean: over questions.
        standard_error: clustered by scene; None, as are the ends of the interval, where there are
            fewer than five scenes.
        low, high: 95 % interval.
        n: questions with a score.
        scenes: that they are about.
        scored: verdicts with a total.
        unscored: verdicts without one, by their status; in no mean.
        left_out: answers of which no verdict has a total.
        spread: over runs; None where no question has a score in every run.
    """

    mean: float
    standard_error: float | None
    low: float | None
    high: float | None
    n: int
    scenes: int
    scored: int
    unscored: Mapping[str, int]
    left_out: int
    spread: Spread | None


@dataclass(frozen=True, slots=True)
class JudgedScores:
    """Judged scores of a model.

    Attributes:
        capabilities: reasoning with every question alike.
        tasks: perception, prediction, behavior, planning, where the data tell.
        reasoning_per_task: mean of prediction and behavior, which the paper may have meant; None
            unless both have a score and every reasoning question is one of them.
        average: of the capabilities; None unless all three have a score.
        average_per_task: the same with `reasoning_per_task`.
        everything: of all questions.
        without_score: under "capabilities" and "tasks" those in which nothing was scored, with
            their verdicts by status.
    """

    capabilities: Mapping[str, JudgedScore]
    tasks: Mapping[str, JudgedScore]
    reasoning_per_task: JudgedScore | None
    average: JudgedScore | None
    average_per_task: JudgedScore | None
    everything: JudgedScore | None
    without_score: Mapping[str, Mapping[str, Mapping[str, int]]]


@dataclass(frozen=True, slots=True)
class _Question:
    """One question with its verdicts.

    Attributes:
        scene: see `scene_of`.
        value: its score, None where no verdict has a total.
        totals: [answer runs, judge runs], NaN for what has none.
        status: of its verdicts.
        left_out: answers without a total.
    """

    scene: str
    value: float | None
    totals: NDArray[np.float64]
    status: Mapping[str, int]
    left_out: int


_Groups = Mapping[str, Sequence[_Question]]


def judged(
    answers: Sequence[Answer],
    verdicts: Sequence[Verdict],
    tasks: Mapping[str, str | None],
) -> JudgedScores:
    """Give means, errors and variances of judged answers; a group without a score is absent.

    Standard errors and intervals are over scenes, see `drivekd.statistics.estimate`.

    Args:
        answers: of one model, each question in one or more runs.
        verdicts: of these answers, all of them, in one or more runs of one judge.
        tasks: by sample id, see `drivekd.data.cameras.task_of`; {} where none is known.

    Raises:
        ValueError: an answer or a verdict occurs twice, a verdict is of no answer, or an answer
            lacks a verdict.
    """
    questions = _questions(answers, verdicts)
    kinds = {answer.id: answer.capability for answer in answers}
    capabilities = _grouped(questions, kinds)
    by_task = _grouped(questions, tasks)

    def scores(groups: _Groups, names: Iterable[str]) -> dict[str, JudgedScore]:
        made = ((name, _score((1, groups[name]))) for name in names if name in groups)
        return {name: score for name, score in made if score is not None}

    three = [capabilities.get(name, ()) for name in CAPABILITIES]
    # mean of (perception, mean of two tasks, planning) in sixths
    two = [by_task.get(name, ()) for name in _REASONING]
    known = all(tasks.get(id) in _REASONING for id in kinds if kinds[id] == "reasoning")
    per_task = [(1, task) for task in two]
    return JudgedScores(
        capabilities=scores(capabilities, in_order(capabilities)),
        tasks=scores(by_task, TASKS),
        reasoning_per_task=_score(*per_task) if known else None,
        average=_score(*((1, part) for part in three)),
        average_per_task=_score((2, three[0]), *per_task, (2, three[2])) if known else None,
        everything=_score((1, list(questions.values()))),
        without_score={
            "capabilities": _without_score(capabilities),
            "tasks": _without_score(by_task),
        },
    )


def question_scores(answers: Sequence[Answer], verdicts: Sequence[Verdict]) -> dict[str, float]:
    """The score of each question by its id; those without a scored verdict are left out.

    Raises:
        ValueError: see `judged`.
    """
    found = _questions(answers, verdicts)
    return {id: each.value for id, each in found.items() if each.value is not None}


def as_json(scores: JudgedScores) -> dict[str, Any]:
    """Give the scores as plain data; what has no score is absent."""
    return {name: value for name, value in asdict(scores).items() if value is not None}


def table(scores: JudgedScores) -> str:
    """Lines for people: a mean, its error, and how far single runs lie apart.

    The last are standard deviations [points], by answering again and by judging again.
    """
    named = [*scores.capabilities.items()]
    more = {
        "reasoning, per task": scores.reasoning_per_task,
        "average": scores.average,
        "average, per task": scores.average_per_task,
        "all questions": scores.everything,
    }
    named += [(name, each) for name, each in more.items() if each is not None]
    named += [(f"  {name}", each) for name, each in scores.tasks.items()]
    lines = [f"{name:<22}{_line(each)}" for name, each in named]
    for kind in scores.without_score.values():
        lines += [f"{name:<22}no score: {_counts(counts)}" for name, counts in kind.items()]
    return "\n".join(lines)


def _line(score: JudgedScore) -> str:
    known = score.standard_error is not None and score.low is not None and score.high is not None
    error = (
        f" ± {score.standard_error:4.1f}  [{score.low:5.1f}, {score.high:5.1f}]" if known else ""
    )
    counts = f"n = {score.n}, unscored {_counts(score.unscored) or '0'}"
    runs = ""
    if score.spread is not None:
        pairs = (
            ("answering", score.spread.answer_variance),
            ("judging", score.spread.judge_variance),
        )
        told = [f"{name} {value**0.5:.2f}" for name, value in pairs if value is not None]
        runs = f"  by {', '.join(told)}" if told else ""
    return f"{score.mean:6.1f}{error}  {counts}{runs}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))


def _questions(answers: Sequence[Answer], verdicts: Sequence[Verdict]) -> dict[str, _Question]:
    """Questions by id, in the order of the answers."""
    given = _joined(answers, verdicts)
    rows = {run: i for i, run in enumerate(sorted({answer.run for answer in answers}))}
    columns = {run: j for j, run in enumerate(sorted({verdict.run for verdict in verdicts}))}
    found = {}
    for id, scene in {answer.id: scene_of(answer) for answer in answers}.items():
        totals = np.full((len(rows), len(columns)), np.nan)
        mine = [verdict for run in rows for verdict in given.get((id, run), {}).values()]
        for verdict in mine:
            if verdict.total is not None:
                totals[rows[verdict.answer_run], columns[verdict.run]] = verdict.total
        scored = [row[~np.isnan(row)].mean() for row in totals if not np.isnan(row).all()]
        found[id] = _Question(
            scene=scene,
            value=float(np.mean(scored)) if scored else None,
            totals=totals,
            status=Counter(verdict.status for verdict in mine),
            left_out=sum((id, run) in given for run in rows) - len(scored),
        )
    return found


def _joined(
    answers: Sequence[Answer], verdicts: Sequence[Verdict]
) -> dict[tuple[str, int], dict[int, Verdict]]:
    """Verdicts by their run, by the id and run of the answer."""
    found: dict[tuple[str, int], dict[int, Verdict]] = {}
    for answer in answers:
        if (answer.id, answer.run) in found:
            raise ValueError(f"answers: {answer.id!r} has two answers in run {answer.run}")
        found[answer.id, answer.run] = {}
    for verdict in verdicts:
        place = f"verdicts: {verdict.id!r}, answer run {verdict.answer_run}, run {verdict.run}"
        mine = found.get((verdict.id, verdict.answer_run))
        if mine is None:
            raise ValueError(f"{place} is of no answer given; judge these answers")
        if verdict.run in mine:
            raise ValueError(f"{place} occurs twice; judge again into another folder")
        mine[verdict.run] = verdict
    runs = {verdict.run for verdict in verdicts}
    for (id, run), mine in found.items():
        if missing := sorted(runs - set(mine)) or ([0] if not mine else []):
            raise ValueError(
                f"verdicts: answer {id!r} of run {run} has none in judging run {missing[0]};"
                " judge again, what is paid for is kept"
            )
    return found


def _grouped(
    questions: Mapping[str, _Question], names: Mapping[str, str | None]
) -> dict[str, list[_Question]]:
    groups: dict[str, list[_Question]] = {}
    for id, question in questions.items():
        if (name := names.get(id)) is not None:
            groups.setdefault(name, []).append(question)
    return groups


def _without_score(groups: _Groups) -> dict[str, dict[str, int]]:
    return {
        name: dict(_statuses(group))
        for name, group in groups.items()
        if all(question.value is None for question in group)
    }


def _statuses(questions: Iterable[_Question]) -> Counter[str]:
    counts = Counter[str]()
    for question in questions:
        counts.update(question.status)
    return counts


def _score(*parts: tuple[int, Sequence[_Question]]) -> JudgedScore | None:
    """The score of a mix of groups with their shares, None where one of them has none."""
    scored = [
        (float(question.value), question.scene, str(number), share)
        for number, (share, part) in enumerate(parts)
        for question in part
        if question.value is not None
    ]
    if len({number for _, _, number, _ in scored}) < len(parts):
        return None
    mean = estimate(*zip(*scored, strict=True))
    questions = [question for _, part in parts for question in part]
    counts = _statuses(questions)
    return JudgedScore(
        **asdict(mean),
        scored=counts.pop("scored", 0),
        unscored=dict(sorted(counts.items())),
        left_out=sum(question.left_out for question in questions),
        spread=_spread(parts),
    )


def _spread(parts: Sequence[tuple[int, Sequence[_Question]]]) -> Spread | None:
    """Variance components of the mean, from its table M of answer runs × judge runs [ours].

    judge variance = mean over answer runs of the variance of M among judge runs;
    answer variance = variance among the answer runs' means − (variance of the residuals of M
    without its rows and columns) / judge runs. The residuals, and not the judge variance, are taken
    off, because equal replies of two answer runs get one and the same verdict: what judging adds to
    both does not part them.
    """
    whole = [
        (share, [q.totals for q in part if not np.isnan(q.totals).any()]) for share, part in parts
    ]
    if not all(part for _, part in whole):
        return None
    table = sum(share * np.mean(part, axis=0) for share, part in whole)
    table = np.asarray(table) / sum(share for share, _ in whole)
    runs, judgings = table.shape
    judge = float(table.var(axis=1, ddof=1).mean()) if judgings > 1 else None
    answer = None
    if runs > 1 and judgings > 1:
        rows, columns = table.mean(axis=1, keepdims=True), table.mean(axis=0, keepdims=True)
        rest = ((table - rows - columns + table.mean()) ** 2).sum()
        rest /= (runs - 1) * (judgings - 1)
        answer = float(rows.var(ddof=1) - rest / judgings)
    n = sum(len(part) for _, part in whole)
    floored = answer is not None and answer < -1e-9  # what rounding leaves is 0 too
    return Spread(None if answer is None else max(0.0, answer), judge, floored, runs, judgings, n)
