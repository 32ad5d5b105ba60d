"""Turns answers into percentages with intervals, and compares two recipes over seeds.

All percentages are 0 … 100. What has no questions has no score: it is left out, never 0.0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drivekd.data.sample import CAPABILITIES, Sample
from drivekd.evaluate.answers.answer import Answer, answer_of
from drivekd.evaluate.reading.metrics import normalise
from drivekd.evaluate.resampling import (
    DIFFERENCES,
    RESAMPLES,
    SCORES,
    Array,
    Mix,
    Part,
    alone,
    draws,
    estimate,
    places,
    tally,
)
from drivekd.files.writing import write_json


@dataclass(frozen=True, slots=True)
class Score:
    """Share of right answers [percent] among n questions, with its 95 % interval.

    low, high and the standard error, clustered by scene, are None where there are fewer than
    `FEWEST` scenes.
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
    None without questions. The intervals say how the figures would vary with other test scenes;
    they do not contain the spread over training seeds.
    """

    capabilities: Mapping[str, Score]
    templates: Mapping[str, Score]
    average: Score | None
    everything: Score | None


@dataclass(frozen=True, slots=True)
class Paired:
    """A two-sided paired t test: mean of a − b, its 95 % interval, p, and the number of pairs."""

    mean: float
    low: float
    high: float
    p: float
    n: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Accuracy of one recipe minus another's [percent points], with its 95 % interval.

    low and high are None where there are fewer than `FEWEST` scenes.
    """

    mean: float
    low: float | None
    high: float | None
    scenes: int


def score(answers: Sequence[Answer], *, seed: int = 0, resamples: int = RESAMPLES) -> Scores:
    """Scores answers per template and capability, with scene-clustered bootstrap intervals [ours].

    A question that was answered in several runs counts once, with the mean of its answers. Scenes
    are drawn with replacement, all questions of a scene together; the average is the plain mean of
    the three capabilities, its interval from the same draws (see `evaluate/resampling.py`).

    Args:
        answers: of one model; those without scene count as a scene each.
        seed: of the draws.
        resamples: number of draws.
    """
    columns = places(scene_of(answer) for answer in answers)
    weights = draws(len(columns), seed, resamples)
    capabilities = _groups(answers, "capability", columns)
    templates = _groups(answers, "template", columns)
    whole = _groups(answers, None, columns).get("")
    mix = average_of(capabilities)
    return Scores(
        capabilities={name: _score(alone(p), weights) for name, p in capabilities.items()},
        templates={name: _score(alone(part), weights) for name, part in templates.items()},
        average=None if mix is None else _score(mix, weights),
        everything=None if whole is None else _score(alone(whole), weights),
    )


def scene_of(answer: Answer) -> str:
    """The scene of an answer's question; one of its own where the data name none."""
    return answer.scene if answer.scene is not None else f"\0{answer.id}"


def _groups(
    answers: Sequence[Answer], field: str | None, columns: Mapping[str, int]
) -> dict[str, Part]:
    """Questions [percent] by the value of a field; without one all, under the empty name."""
    runs: dict[tuple[str, str, str], list[float]] = {}
    for answer in answers:
        name = getattr(answer, field) if field else ""
        if name is not None:
            runs.setdefault((name, answer.id, scene_of(answer)), []).append(100.0 * answer.correct)
    groups: dict[str, list[tuple[str, float]]] = {}
    for (name, _, scene), values in runs.items():
        groups.setdefault(name, []).append((scene, sum(values) / len(values)))
    return {name: tally(groups[name], columns) for name in in_order(groups)}


def in_order(names: Iterable[str]) -> list[str]:
    """Capabilities in their order, then other names in the alphabet's."""
    order = {name: i for i, name in enumerate(CAPABILITIES)}
    return sorted(names, key=lambda name: (order.get(name, len(order)), name))


def average_of(capabilities: Mapping[str, Part]) -> Mix | None:
    """The plain mean of the three capabilities, None unless all are there."""
    if any(name not in capabilities for name in CAPABILITIES):
        return None
    return [(1, capabilities[name]) for name in CAPABILITIES]


def _score(mix: Mix, weights: Array) -> Score:
    found = estimate(mix, weights, SCORES)
    return Score(found.n, found.mean, found.low, found.high, found.scenes, found.standard_error)


def as_json(scores: Scores) -> dict[str, Any]:
    """The scores as plain data; what has no score is absent."""
    groups = {
        "capabilities": {name: asdict(s) for name, s in scores.capabilities.items()},
        "templates": {name: asdict(s) for name, s in scores.templates.items()},
    }
    single = {"average": scores.average, "everything": scores.everything}
    return groups | {name: asdict(s) for name, s in single.items() if s is not None}


def write_scores(scores: Scores, path: Path) -> None:
    """Writes `as_json` to a file."""
    write_json(path, as_json(scores))


def majority(train: Sequence[Sample], test: Sequence[Sample]) -> list[Answer]:
    """Answers every test question with the most frequent training answer of its kind.

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


def paired(a: Sequence[float], b: Sequence[float]) -> Paired:
    """Compares two recipes over the same seeds: two-sided paired t test on a − b.

    Args:
        a: one score per seed.
        b: the other recipe's, same seeds in the same order.

    Raises:
        ValueError: different lengths, fewer than two pairs, or a score that is not finite.
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(
            f"paired comparison: expected at least two scores of the same seeds on both sides, got"
            f" {len(a)} and {len(b)}; run both recipes on the same seeds"
        )
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    if not np.isfinite(difference).all():
        raise ValueError(
            f"paired comparison: scores must be finite, got {list(a)} and {list(b)}; leave out the"
            " seeds that failed on either side, and say so"
        )
    n, mean = len(difference), float(difference.mean())
    error = float(difference.std(ddof=1)) / math.sqrt(n)
    if error <= 1e-12 * max(1.0, abs(mean)):  # equal differences: nothing to estimate
        return Paired(mean, mean, mean, 1.0 if mean == 0 else 0.0, n)
    # scipy.stats takes half a second to import
    from scipy.stats import t as student_t

    half = float(student_t.ppf(0.975, n - 1)) * error
    return Paired(
        mean, mean - half, mean + half, 2 * float(student_t.sf(abs(mean) / error, n - 1)), n
    )


def paired_scenes(
    a: Sequence[Sequence[Answer]],
    b: Sequence[Sequence[Answer]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Difference]:
    """Compares two recipes on the same scenes: scene-clustered bootstrap of a − b [ours].

    What `paired` leaves out: how the difference would vary with other test scenes. Seeds are
    averaged first, scenes drawn as in `score`.

    Args:
        a: answers of one recipe, a list per seed.
        b: the other recipe's; every list answers the same questions.
        seed: of the draws.
        resamples: number of draws.

    Returns:
        A difference per capability, and `average` where all three have one.

    Raises:
        ValueError: a list answers other questions than the first.
    """
    asked = [[(answer.id, answer.capability) for answer in each] for each in (*a, *b)]
    if not a or not b or any(each != asked[0] for each in asked):
        raise ValueError(
            "paired comparison: expected the same questions in the same order in every list of"
            " answers, at least one list on each side; score both recipes on one file"
        )
    columns = places(scene_of(answer) for answer in a[0])
    weights = draws(len(columns), seed, resamples)
    sides = [[_groups(each, "capability", columns) for each in side] for side in (a, b)]
    parts = {}
    for name, part in sides[0][0].items():
        mine, theirs = (np.mean([each[name].total for each in side], axis=0) for side in sides)
        parts[name] = Part(mine - theirs, part.count)
    mixes = {name: alone(part) for name, part in parts.items()}
    if (average := average_of(parts)) is not None:
        mixes["average"] = average
    found = {name: estimate(mix, weights, DIFFERENCES) for name, mix in mixes.items()}
    return {name: Difference(e.mean, e.low, e.high, e.scenes) for name, e in found.items()}
