"""Turns answers into percentages with intervals, and compares two recipes over seeds.

All percentages are 0 … 100. What has no questions has no score: it is left out, never 0.0.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivekd.data.sample import CAPABILITIES, Sample
from drivekd.data.written import writing
from drivekd.evaluate.answer import Answer, answer_of
from drivekd.evaluate.metrics import normalise

RESAMPLES = 4000
_Z = 1.959963984540054  # 97.5 % quantile of the standard normal


@dataclass(frozen=True, slots=True)
class Score:
    """Share of right answers [percent] among n questions, with its 95 % interval.

    low and high are None where a single scene cannot tell how much scenes differ.
    """

    n: int
    accuracy: float
    low: float | None
    high: float | None
    scenes: int


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

    low and high are None where a single scene cannot tell how much scenes differ.
    """

    mean: float
    low: float | None
    high: float | None
    scenes: int


def score(answers: Sequence[Answer], *, seed: int = 0, resamples: int = RESAMPLES) -> Scores:
    """Scores answers per template and capability, with scene-clustered bootstrap intervals [ours].

    Scenes are drawn with replacement, all questions of a scene together, because questions about
    one scene are not independent. The average is the plain mean of the three capabilities, its
    interval from the same draws. Where every answer is right, or every one wrong, a bootstrap
    cannot vary: then Wilson's interval for as many trials as scenes.

    Args:
        answers: of one model; those without scene count as a scene each.
        seed: of the draws.
        resamples: number of draws.
    """
    scenes = {name: i for i, name in enumerate(dict.fromkeys(_scene(a) for a in answers))}
    weights = _draws(len(scenes), seed, resamples)
    capabilities = _groups(answers, "capability", scenes)
    templates = _groups(answers, "template", scenes)
    whole = _groups(answers, None, scenes).get("")
    return Scores(
        capabilities={name: _score(*counts, weights) for name, counts in capabilities.items()},
        templates={name: _score(*counts, weights) for name, counts in templates.items()},
        average=_average(capabilities, weights),
        everything=None if whole is None else _score(*whole, weights),
    )


Counts = tuple[NDArray[np.float64], NDArray[np.float64]]  # per scene: right answers, questions


def _scene(answer: Answer) -> str:
    return answer.scene if answer.scene is not None else f"\0{answer.id}"


def _draws(scenes: int, seed: int, resamples: int) -> NDArray[np.float64]:
    """How often each scene is drawn in each resample [resamples, scenes]."""
    if not scenes:
        return np.zeros((resamples, 0))
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(scenes, np.full(scenes, 1 / scenes), size=resamples)
    return drawn.astype(np.float64)


def _groups(
    answers: Sequence[Answer], field: str | None, scenes: Mapping[str, int]
) -> dict[str, Counts]:
    """Counts by the value of a field; without one of all answers, under the empty name."""
    groups: dict[str, Counts] = {}
    for answer in answers:
        name = getattr(answer, field) if field else ""
        if name is None:
            continue
        right, asked = groups.setdefault(name, (np.zeros(len(scenes)), np.zeros(len(scenes))))
        right[scenes[_scene(answer)]] += answer.correct
        asked[scenes[_scene(answer)]] += 1
    order = {name: i for i, name in enumerate(CAPABILITIES)}
    return dict(sorted(groups.items(), key=lambda g: (order.get(g[0], len(order)), g[0])))


def _score(
    right: NDArray[np.float64], asked: NDArray[np.float64], weights: NDArray[np.float64]
) -> Score:
    n, scenes = int(asked.sum()), int((asked > 0).sum())
    low, high = _interval(_resampled(right, asked, weights), right.sum() / n, scenes)
    return Score(n, float(100 * right.sum() / n), low, high, scenes)


def _resampled(
    right: NDArray[np.float64], asked: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Share of right answers in each resample; NaN where it drew no question."""
    questions = weights @ asked
    shares = np.full(len(weights), np.nan)
    np.divide(weights @ right, questions, out=shares, where=questions > 0)
    return shares


def _interval(
    resampled: NDArray[np.float64], share: float, scenes: int
) -> tuple[float | None, float | None]:
    if scenes < 2:
        return None, None
    if share in (0.0, 1.0):
        return _wilson(share, scenes)
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return 100 * float(low), 100 * float(high)


def _wilson(share: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval [percent] of a proportion."""
    spread = _Z * math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
    centre, scale = share + _Z**2 / (2 * trials), 1 + _Z**2 / trials
    return 100 * max(0.0, (centre - spread) / scale), 100 * min(1.0, (centre + spread) / scale)


def _average(capabilities: Mapping[str, Counts], weights: NDArray[np.float64]) -> Score | None:
    if any(name not in capabilities for name in CAPABILITIES):
        return None
    counts = [capabilities[name] for name in CAPABILITIES]
    shares = [float(right.sum() / asked.sum()) for right, asked in counts]
    asked = np.sum([asked for _, asked in counts], axis=0)
    scenes = int((asked > 0).sum())
    mean = sum(shares) / len(shares)
    resampled = np.mean([_resampled(*c, weights) for c in counts], axis=0)
    low, high = _interval(resampled, mean, scenes)
    return Score(int(asked.sum()), 100 * mean, low, high, scenes)


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
    with writing(path):
        path.write_text(json.dumps(as_json(scores), indent=2) + "\n", encoding="utf-8")


def majority(train: Sequence[Sample], test: Sequence[Sample]) -> list[Answer]:
    """Answers every test question with the most frequent training answer of its template.

    The line that a model must beat to have read the question. A template that training does not
    have gets the empty reply. Ties go to the answer that comes first in the alphabet.
    """
    counts: dict[str | None, Counter[str]] = {}
    for sample in train:
        if sample.answer:
            counts.setdefault(sample.template, Counter())[normalise(sample.answer)] += 1
    most = {
        template: min(counter, key=lambda text: (-counter[text], text))
        for template, counter in counts.items()
    }
    return [answer_of(sample, most.get(sample.template, "")) for sample in test]


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
    scenes = {name: i for i, name in enumerate(dict.fromkeys(_scene(x) for x in a[0]))}
    weights = np.vstack([np.ones(len(scenes)), _draws(len(scenes), seed, resamples)])
    sides = [[_groups(each, "capability", scenes) for each in side] for side in (a, b)]
    found: dict[str, tuple[NDArray[np.float64], int]] = {}
    for name, (_, questions) in sides[0][0].items():
        mine, theirs = (np.mean([each[name][0] for each in side], axis=0) for side in sides)
        values = 100 * _resampled(mine - theirs, questions, weights)
        found[name] = values, int((questions > 0).sum())
    if all(name in found for name in CAPABILITIES):
        parts = [found[name][0] for name in CAPABILITIES]
        found["average"] = np.mean(parts, axis=0), len(scenes)
    return {name: _difference(*each) for name, each in found.items()}


def _difference(values: NDArray[np.float64], scenes: int) -> Difference:
    """From the difference itself, which comes first, and those of the resamples."""
    if scenes < 2:
        return Difference(float(values[0]), None, None, scenes)
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return Difference(float(values[0]), float(low), float(high), scenes)
