from __future__ import annotations

import numpy as np
import pytest

from drivekd.evaluate.pairs import Given, beside, gaps, measured, table
from evaluations import a_verdict, an_answer

CAPABILITIES = ("perception", "reasoning", "planning")


def given(rights: list[bool], totals: list[float | None] | None = None, scenes: int = 12) -> Given:
    """Questions of all three capabilities in turn, spread over scenes."""
    answers = [
        an_answer(str(i), right, capability=CAPABILITIES[i % 3], scene=f"s{i % scenes}")
        for i, right in enumerate(rights)
    ]
    if totals is None:
        return Given(answers)
    return Given(answers, [a_verdict(str(i), total) for i, total in enumerate(totals)])


def test_scores_by_question_are_means_over_runs() -> None:
    answers = [an_answer("q", True), an_answer("q", False, run=1), an_answer("r", True)]
    verdicts = [a_verdict("q", 40.0), a_verdict("q", 60.0, answer_run=1), a_verdict("r", None)]
    assert measured(Given(answers)) == {"accuracy": {"q": 50.0, "r": 100.0}}
    assert measured(Given(answers, verdicts))["judged"] == {"q": 50.0}


def test_gaps_are_means_over_what_both_have() -> None:
    mine = {"a": 90.0, "b": 50.0, "c": 10.0}
    theirs = {"a": 70.0, "b": 40.0, "d": 99.0}
    answers = [an_answer(id, scene=f"s{id}") for id in "abcd"]
    found = gaps(mine, theirs, answers)
    assert list(found) == ["perception", "everything"]
    gap = found["perception"]
    assert (gap.mine, gap.theirs, gap.mean, gap.n, gap.scenes) == (70.0, 55.0, 15.0, 2, 2)
    assert gaps(mine, {}, answers) == {}


def test_the_average_of_gaps_is_over_capabilities() -> None:
    mine = {str(i): 100.0 if i % 3 == 0 else 0.0 for i in range(9)} | {"9": 100.0, "10": 0.0}
    answers = [an_answer(str(i), capability=CAPABILITIES[i % 3]) for i in range(11)]
    found = gaps(mine, dict.fromkeys(mine, 0.0), answers)
    assert found["average"].mean == pytest.approx(100 / 3)
    assert found["everything"].mean == pytest.approx(400 / 11)


def test_pairs_take_away_what_both_share() -> None:
    rng = np.random.default_rng(0)
    level = rng.uniform(0, 100, 40)
    answers = [an_answer(str(i)) for i in range(40)]
    theirs = {str(i): float(level[i]) for i in range(40)}
    mine = {id: value + 3 + rng.normal(0, 1) for id, value in theirs.items()}
    gap = gaps(mine, theirs, answers)["everything"]
    assert gap.low is not None and gap.high is not None and gap.p is not None
    assert gap.high - gap.low < 1 and gap.low < 3 < gap.high  # the levels alone: ± 9
    assert gap.p < 0.001


def test_controls_stand_beside_every_mean() -> None:
    rights = [i % 4 != 0 for i in range(36)]
    model = given(rights, [80.0] * 36)
    controls = {
        "black": given([i % 2 == 0 for i in range(36)], [30.0] * 36),
        "majority": given([False] * 36),
    }
    found = {(row.measure, row.group): row for row in beside(model, controls)}
    assert set(found) == {
        (m, g) for m in ("accuracy", "judged") for g in (*CAPABILITIES, "average", "everything")
    }
    row = found["accuracy", "everything"].controls
    assert (row["black"].mine, row["black"].theirs, row["black"].mean) == (75.0, 50.0, 25.0)
    assert row["black"].low is not None
    assert row["majority"].mean == 75.0
    assert found["judged", "average"].controls["black"].mean == pytest.approx(50)
    assert list(found["judged", "average"].controls) == ["black"]  # the other was not judged
    assert beside(model, {}) == []
    text = table(list(found.values()))
    assert "black 50.0: +25.0 [" in text and "majority 0.0: +75.0" in text
