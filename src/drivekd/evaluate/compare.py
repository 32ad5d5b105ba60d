"""Which model is better, by how much, and whether that is noise; read from evaluations' folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from drivekd.evaluate.folder import (
    Evaluation,
    read_evaluation,
    refuse_other_judges,
    refuse_other_questions,
)
from drivekd.evaluate.pairs import JUDGED, gaps, measured
from drivekd.evaluate.robustness import Robustness, is_robustness, robustness
from drivekd.evaluate.robustness import table as robustness_table
from drivekd.files.writing import write_json
from drivekd.statistics import Difference, holm

Outcome = Literal["better", "worse", "not distinguishable", "not known"]
#: a difference is beyond noise below this p
LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Row:
    """One mean of a model against that of the first.

    Attributes:
        measure: `accuracy` or `judged`.
        group: a capability, `average` or `everything`.
        model, reference: names of the two.
        gap: model − reference.
        p: that of the gap, corrected by Holm for the number of models where that is above two.
        outcome: of the model; `not known` of fewer than five scenes.
    """

    measure: str
    group: str
    model: str
    reference: str
    gap: Difference
    p: float | None
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Comparison:
    """Models against the first of them.

    Attributes:
        models: the settings' name of the model by the name it has here, its folder's.
        rows: measure by measure and group by group, the models in their order.
        notices: what to know beside the figures.
    """

    models: Mapping[str, str | None]
    rows: Sequence[Row]
    notices: Sequence[str]


def read_evaluations(folders: Sequence[Path]) -> list[Evaluation]:
    """Read two or more folders.

    Raises:
        ValueError: fewer than two folders, one named twice, or what cannot be read.
    """
    if len(folders) < 2:
        raise ValueError(f"comparison: expected at least two evaluations, got {len(folders)}")
    paths = [path.resolve() for path in folders]
    twice = next((path for i, path in enumerate(folders) if paths[i] in paths[:i]), None)
    if twice is not None:
        raise ValueError(f"comparison: {twice} is named twice; name each evaluation once")
    return [read_evaluation(path) for path in folders]


def compare(evaluations: Sequence[Evaluation], *, judged: bool = True) -> Comparison:
    """Hold each evaluation against the first, on the same questions [ours].

    Accuracy always, judged scores where all have verdicts, unless `judged` is False. Means,
    intervals and p values are those of `pairs.gaps`; with more than two models p is corrected for
    their number (Holm), within each row of the table, not over measures and capabilities.

    Raises:
        ValueError: other questions or other judges.
    """
    refuse_other_questions(evaluations)
    short = [evaluation.folder.resolve().name for evaluation in evaluations]
    names = short if len(set(short)) == len(short) else [str(e.folder) for e in evaluations]
    measures = [measured(evaluation.given) for evaluation in evaluations]
    notices = []
    everyone = all(JUDGED in scores for scores in measures)
    if judged and everyone:
        notices += refuse_other_judges(evaluations)
        notices += _unscored(names, measures)
    elif judged and any(JUDGED in scores for scores in measures):
        notices.append("accuracy alone is compared: not all of these evaluations were judged")
    shown = [m for m in measures[0] if m != JUDGED or (judged and everyone)]
    rows = []
    for measure in shown:
        answers, first = evaluations[0].given.answers, measures[0][measure]
        others = [gaps(other[measure], first, answers) for other in measures[1:]]
        for group in dict.fromkeys(group for gap in others for group in gap):
            named = [(n, g[group]) for n, g in zip(names[1:], others, strict=True) if group in g]
            rows += _rows(measure, group, names[0], named)
    models = (evaluation.model for evaluation in evaluations)
    return Comparison(dict(zip(names, models, strict=True)), rows, notices)


def run(folders: Sequence[Path], out: Path | None = None, *, judged: bool = True) -> str:
    """Compare evaluations in words, all against the first; what `drivekd compare` prints.

    Evaluations of one model, once on clean data and else on corrupted ones, show its robustness
    too. The figures go to the JSON file `out` where one is named.

    Raises:
        ValueError: see `read_evaluations` and `compare`.
    """
    evaluations = read_evaluations(folders)
    comparison = compare(evaluations, judged=judged)
    robust = robustness(evaluations, judged=judged) if is_robustness(evaluations) else None
    if out is not None:
        write_json(out, as_json(comparison, robust))
    return table(comparison) + ("" if robust is None else "\n\n" + robustness_table(robust))


def as_json(comparison: Comparison, robust: Robustness | None = None) -> dict[str, Any]:
    """Give the figures as plain data, each row with its `words`; `robustness` if there is one."""
    rows = [asdict(row) | {"words": words(row)} for row in comparison.rows]
    more = {} if robust is None else {"robustness": asdict(robust)}
    return asdict(comparison) | {"rows": rows} | more


def table(comparison: Comparison) -> str:
    """Write lines for people: who is compared, then a sentence per measure, group and model."""
    lines = [
        f"{name}: {model or 'model not recorded'}" for name, model in comparison.models.items()
    ]
    measure = ""
    for row in comparison.rows:
        if row.measure != measure:
            measure = row.measure
            lines += ["", "judged score" if measure == JUDGED else measure]
        lines.append(f"  {row.group:<12}{words(row)}")
    return "\n".join([*lines, *([""] if comparison.notices else []), *comparison.notices])


def words(row: Row) -> str:
    """Write a row as a sentence."""
    gap = row.gap
    counts = f"{gap.mine:.1f} against {gap.theirs:.1f}, n = {gap.n}"
    if gap.low is None or gap.high is None or row.p is None:
        return (
            f"{row.model} minus {row.reference}: {gap.mean:+.1f} points ({counts}); whether that is"
            " noise is not known: intervals need at least five scenes"
        )
    p = "p < .001" if row.p < 0.001 else f"p = {row.p:.3f}".replace("0.", ".")
    if row.outcome == "not distinguishable":
        few = "; too few scenes differ to tell" if gap.low > 0 or gap.high < 0 else ""
        return (
            f"{row.model} is not distinguishable from {row.reference}: {gap.mean:+.1f} points"
            f" [{gap.low:.1f}, {gap.high:.1f}] ({p}; {counts}{few})"
        )
    low, high = (gap.low, gap.high) if gap.mean > 0 else (-gap.high, -gap.low)
    return (
        f"{row.model} is {row.outcome} than {row.reference} by {abs(gap.mean):.1f} points"
        f" [{low:.1f}, {high:.1f}]: beyond noise ({p}; {counts})"
    )


def _rows(
    measure: str, group: str, reference: str, named: Sequence[tuple[str, Difference]]
) -> list[Row]:
    """The rows of one group, their p values corrected for how many they are."""
    corrected = iter(holm([gap.p for _, gap in named if gap.p is not None]))
    rows = []
    for name, gap in named:
        p = None if gap.p is None else next(corrected)
        row = Row(measure, group, name, reference, gap, p, "not known")
        rows.append(replace(row, outcome=_outcome(gap, p)))
    return rows


def _outcome(gap: Difference, p: float | None) -> Outcome:
    if p is None:
        return "not known"
    if p >= LEVEL:
        return "not distinguishable"
    return "better" if gap.mean > 0 else "worse"


def _unscored(
    names: Sequence[str], measures: Sequence[Mapping[str, Mapping[str, float]]]
) -> list[str]:
    """How many questions a judge gave no score, which are in no difference."""
    return [
        f"judged: {without} of {len(scores['accuracy'])} questions of {name} have no score and are"
        " in no difference with it"
        for name, scores in zip(names, measures, strict=True)
        if (without := len(scores["accuracy"]) - len(scores[JUDGED]))
    ]
