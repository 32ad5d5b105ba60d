"""What `scores.json` holds: scores, judged scores, controls, published rows, under stable keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from drivekd.evaluate import judged, published, score
from drivekd.evaluate.controls import beside
from drivekd.evaluate.pairs import Given


def scores_content(
    model: Given,
    *,
    tasks: Mapping[str, str | None],
    controls: Mapping[str, Given],
    judge_model: str | None = None,
    unreadable: Mapping[str, int] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """All scores of an evaluation as plain data; what has no score is absent.

    Keys: `capabilities`, `templates` (name → S), `average`, `everything` (S), with S = {`n`,
    `accuracy`, `low`, `high`, `scenes`, `standard_error`}; `unreadable` as given; where there are
    verdicts `judged`, the fields of `judged.JudgedScores`, and `published`, rows of the paper's
    main table (fields of `published.PublishedRow`, `notice` among them); where there are controls
    `controls`, a list of {`measure`: accuracy or judged, `group`: a capability, average or
    everything, `controls`: {name: G}}, with G the fields of `pairs.Gap`, `mine` being the model.

    Args:
        model: answers of the model, with their verdicts.
        tasks: by sample id, see `drivekd.data.cameras.task_of`.
        controls: by name, `black` and `majority`; {} for none.
        judge_model: its name, for the notice beside published rows.
        unreadable: how many replies could not be read, by capability or kind.
        seed: of the bootstrap's draws.

    Raises:
        ValueError: answers and verdicts do not fit.
    """
    found = score.as_json(score.score(model.answers, seed=seed))
    if unreadable is not None:
        found["unreadable"] = dict(unreadable)
    if model.verdicts is not None:
        scores = judged.judged(model.answers, model.verdicts, tasks, seed=seed)
        found["judged"] = judged.as_json(scores)
        rows = [row for row in published.rows(judge_model) if row.table == "main"]
        found["published"] = [asdict(row) for row in rows]
    if controls:
        found["controls"] = [asdict(row) for row in beside(model, controls, seed=seed)]
    return found
