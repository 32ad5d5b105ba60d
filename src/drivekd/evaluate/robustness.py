"""How much of a model's scores is left when its pictures are corrupted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drivekd.evaluate.folder import (
    Evaluation,
    refuse_other_judges,
    refuse_other_questions,
)
from drivekd.evaluate.pairs import JUDGED, gaps, measured
from drivekd.statistics import Difference

#: a control and no corruption: it is shown, but in no mean over them
NO_IMAGE = "NoImage"


@dataclass(frozen=True, slots=True)
class Fall:
    """Scores under one corruption.

    Attributes:
        corruption: name and severity, or the mean over several.
        measure: `accuracy` or `judged`.
        groups: by capability, `average` and `everything`: clean minus corrupted [points].
    """

    corruption: str
    measure: str
    groups: Mapping[str, Difference]


@dataclass(frozen=True, slots=True)
class Robustness:
    """The falls of a model from its scores on clean pictures.

    Attributes:
        model: its name.
        clean: folder of the evaluation on clean pictures.
        falls: per measure those of each corruption, then their mean (without NoImage).
        notices: what to know beside the figures.
    """

    model: str
    clean: str
    falls: Sequence[Fall]
    notices: Sequence[str]


def is_robustness(evaluations: Sequence[Evaluation]) -> bool:
    """Whether these are of one model, one on clean data and the others on corrupted ones."""
    models = {evaluation.model for evaluation in evaluations}
    kinds = [evaluation.corruption for evaluation in evaluations]
    alike = len(models) == 1 and None not in models
    return alike and kinds.count(None) == 1 and len(set(kinds)) == len(kinds) > 1


def robustness(evaluations: Sequence[Evaluation], *, judged: bool = True) -> Robustness:
    """Measure the fall from clean to each corruption, on the same questions [ours].

    The mean over corruptions is that of each question's scores, so its interval is one over scenes,
    for these corruptions. `judged=False` is accuracy alone.

    Raises:
        ValueError: they are of several models, not one is on clean data, a corruption occurs twice,
            or see `compare`.
    """
    if not is_robustness(evaluations):
        got = "; ".join(
            f"{e.folder}: {e.model or 'model not recorded'}, {_label(e)}" for e in evaluations
        )
        raise ValueError(
            f"robustness: expected evaluations of one model, one on clean data and one for each"
            f" corruption, got {got or 'none'}"
        )
    ordered = sorted(evaluations, key=lambda evaluation: evaluation.corruption is not None)
    refuse_other_questions(ordered)
    clean, *corrupted = ordered
    measures = [measured(evaluation.given) for evaluation in ordered]
    shown = [m for m in measures[0] if all(m in scores for scores in measures)]
    shown = [m for m in shown if judged or m != JUDGED]
    notices = refuse_other_judges(ordered) if JUDGED in shown else []
    falls = []
    for measure in shown:
        first, *others = (scores[measure] for scores in measures)
        rows = [(_label(e), scores) for e, scores in zip(corrupted, others, strict=True)]
        counted = [
            scores
            for e, scores in zip(corrupted, others, strict=True)
            if e.corruption is not None and e.corruption[0] != NO_IMAGE
        ]
        if len(counted) > 1:
            rows.append((f"mean of {len(counted)}", _mean(counted)))
        falls += [Fall(label, measure, gaps(first, s, clean.given.answers)) for label, s in rows]
    return Robustness(str(clean.model), str(clean.folder), falls, notices)


def table(robust: Robustness) -> str:
    """Write each group's score per corruption, and how much was lost with its interval.

    The clean score in a row is over the questions that both have.
    """
    lines = [f"robustness of {robust.model} (clean: {robust.clean})"]
    measure = ""
    for fall in robust.falls:
        groups = list(fall.groups)
        if fall.measure != measure:
            measure = fall.measure
            name = "judged score" if measure == JUDGED else measure
            lines += ["", f"{name:<18}" + "".join(f"{group:<27}" for group in groups)]
            clean = (f"{gap.mine:5.1f}" for gap in fall.groups.values())
            lines.append(f"{'clean':<18}" + "".join(f"{cell:<27}" for cell in clean))
        cells = (_cell(gap) for gap in fall.groups.values())
        lines.append(f"{fall.corruption:<18}" + "".join(f"{cell:<27}" for cell in cells))
    return "\n".join(line.rstrip() for line in [*lines, *robust.notices])


def _cell(gap: Difference) -> str:
    if gap.low is None or gap.high is None:
        return f"{gap.theirs:5.1f} {-gap.mean:+.1f}"
    return f"{gap.theirs:5.1f} {-gap.mean:+.1f} [{-gap.high:+.1f}, {-gap.low:+.1f}]"


def _label(evaluation: Evaluation) -> str:
    corruption = evaluation.corruption
    return "clean" if corruption is None else f"{corruption[0]} {corruption[1]}"


def _mean(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each question's mean over the corruptions, for those that have a score in all."""
    return {
        id: float(np.mean([values[id] for values in scores]))
        for id in scores[0]
        if all(id in values for values in scores)
    }
