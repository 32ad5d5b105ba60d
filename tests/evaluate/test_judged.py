from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from drivekd.evaluate.judged import as_json, judged, question_scores, table
from drivekd.evaluate.judging.judge import Verdict
from evaluations import a_verdict, an_answer

Totals = dict[str, list[list[float | None]]]


def both(totals: Totals, capability: dict[str, str] | None = None, **given: str | None):
    """Answers and verdicts from totals[id][answer run][judge run]."""
    capability = capability or {}
    answers = [
        an_answer(id, run=r, capability=capability.get(id, "perception"), **given)
        for id, runs in totals.items()
        for r in range(len(runs))
    ]
    verdicts = [
        a_verdict(id, total, j, r)
        for id, runs in totals.items()
        for r, row in enumerate(runs)
        for j, total in enumerate(row)
    ]
    return answers, verdicts


def test_a_mean_is_over_questions_then_answers_then_verdicts() -> None:
    # q: answers 50 and 90 (one verdict unscored) → 70; r: 10, although it has fewer answers
    found = judged(*both({"q": [[40, 60], [90, None]], "r": [[10, 10], [10, 10]]}), {})
    score = found.capabilities["perception"]
    assert score.mean == pytest.approx((70 + 10) / 2)
    assert (score.n, score.scored, dict(score.unscored), score.left_out) == (
        2,
        7,
        {"bad_reply": 1},
        0,
    )


def test_an_answer_without_a_scored_verdict_is_left_out_and_counted() -> None:
    answers, verdicts = both({"q": [[40], [None]], "r": [[80], [80]], "s": [[None], [None]]})
    verdicts[-1] = a_verdict("s", None, 0, 1, "over_budget")
    score = judged(answers, verdicts, {}).capabilities["perception"]
    assert score.mean == 60.0  # not (20 + 80 + 0) / 3
    assert (score.n, score.left_out) == (2, 3)
    assert score.unscored == {"bad_reply": 2, "over_budget": 1}


def test_nothing_scored_is_absent_with_its_counts() -> None:
    answers, verdicts = both({"q": [[None, None]]})
    found = judged(answers, verdicts, {"q": "perception"})
    assert found.capabilities == {} and found.average is None
    nothing = {"perception": {"bad_reply": 2}}
    assert found.without_score == {"capabilities": nothing, "tasks": nothing}
    assert "average" not in as_json(found)
    assert "no score: 2 bad_reply" in table(found)
    assert question_scores(answers, verdicts) == {}


def test_reasoning_by_question_and_by_task() -> None:
    totals: Totals = {"a": [[90]], "p1": [[20]], "p2": [[40]], "p3": [[30]], "b": [[70]]}
    totals["l"] = [[50]]
    kinds = dict.fromkeys(("p1", "p2", "p3", "b"), "reasoning") | {"l": "planning"}
    tasks = dict.fromkeys(("p1", "p2", "p3"), "prediction") | {"b": "behavior"}
    found = judged(*both(totals, kinds), tasks | {"a": "perception", "l": "planning"})
    assert found.capabilities["reasoning"].mean == pytest.approx((20 + 40 + 30 + 70) / 4)
    assert found.reasoning_per_task is not None
    assert found.reasoning_per_task.mean == pytest.approx((30 + 70) / 2)
    assert found.reasoning_per_task.n == 4
    assert found.average is not None and found.average_per_task is not None
    assert found.average.mean == pytest.approx((90 + 40 + 50) / 3)
    assert found.average_per_task.mean == pytest.approx((90 + 50 + 50) / 3)
    assert list(found.tasks) == ["perception", "prediction", "behavior", "planning"]
    assert found.tasks["prediction"].mean == pytest.approx(30)


@pytest.mark.parametrize("known", [{}, {"p": "prediction"}, {"p": "prediction", "b": None}])
def test_reasoning_by_task_needs_to_know_every_task(known: dict[str, str | None]) -> None:
    totals: Totals = {"a": [[90]], "p": [[20]], "b": [[70]], "l": [[50]]}
    kinds = {"p": "reasoning", "b": "reasoning", "l": "planning"}
    found = judged(*both(totals, kinds), known)
    assert found.reasoning_per_task is None and found.average_per_task is None
    assert found.average is not None


def test_the_error_is_clustered_by_scene() -> None:
    rng = np.random.default_rng(1)
    levels = rng.normal(50, 10, 20)
    totals: Totals = {f"{s}/{q}": [[float(levels[s])]] for s in range(20) for q in range(6)}
    answers, verdicts = both(totals)
    clustered = [an_answer(a.id, scene=a.id.partition("/")[0]) for a in answers]
    found = judged(clustered, verdicts, {}).capabilities["perception"]
    alone = judged(answers, verdicts, {}).capabilities["perception"]
    assert found.standard_error == pytest.approx(levels.std(ddof=1) / np.sqrt(20))
    assert (found.n, found.scenes, alone.scenes) == (120, 20, 120)
    assert alone.standard_error is not None
    assert alone.standard_error < 0.45 * found.standard_error
    assert found.low is not None and found.high is not None
    assert found.low < found.mean < found.high


def planted(
    rng: np.random.Generator, answering: float, judging: float, runs: int = 5, judgings: int = 5
):
    """Answers whose benchmark mean varies by these standard deviations from run to run."""
    answer = rng.normal(0, answering, runs)
    judge = rng.normal(0, judging, (runs, judgings))
    return both(
        {
            f"{q}": [
                [50 + q + answer[r] + judge[r, j] for j in range(judgings)] for r in range(runs)
            ]
            for q in range(2)
        }
    )


@pytest.mark.parametrize(("answering", "judging"), [(2.0, 0.5), (0.5, 2.0), (0.0, 1.0), (1.5, 0.0)])
def test_planted_variances_are_told_apart(answering: float, judging: float) -> None:
    rng, found = np.random.default_rng(2), []
    for _ in range(60):
        spread = judged(*planted(rng, answering, judging), {}).capabilities["perception"].spread
        assert spread is not None
        assert spread.answer_variance is not None and spread.judge_variance is not None
        found.append((spread.answer_variance, spread.judge_variance, spread.floored))
    answer, judge, floored = np.mean(found, axis=0)
    # floored at 0, so above the truth where judging alone varies: by at most what that leaves over
    assert answer == pytest.approx(answering**2, abs=0.25 * answering**2 + 0.15 * judging**2)
    assert judge == pytest.approx(judging**2, rel=0.15, abs=1e-9)
    assert floored == 0 if answering > judging else floored > 0.2


def test_verdicts_shared_by_equal_answers_are_no_answer_variance() -> None:
    """The cache gives equal answers of two runs one verdict, so judging moves both alike."""
    rng = np.random.default_rng(3)
    answers = []
    for _ in range(20):
        judge = rng.normal(0, 2, 5)
        row = [float(50 + each) for each in judge]
        spread = judged(*both({"q": [row] * 5}), {}).capabilities["perception"].spread
        assert spread is not None and spread.judge_variance is not None
        assert spread.judge_variance == pytest.approx(judge.var(ddof=1))
        answers.append(spread.answer_variance)
        assert not spread.floored
    assert max(answers) == pytest.approx(0, abs=1e-9)


def test_variances_need_repetitions() -> None:
    for runs, judgings in ((1, 1), (1, 3), (3, 1)):
        rng = np.random.default_rng(4)
        score = judged(*planted(rng, 1, 1, runs, judgings), {}).capabilities["perception"]
        assert score.spread is not None
        assert score.spread.answer_variance is None
        assert (score.spread.judge_variance is None) == (judgings == 1)
        assert (score.spread.answer_runs, score.spread.judge_runs) == (runs, judgings)


def test_variances_leave_out_questions_that_lack_a_score() -> None:
    totals: Totals = {"q": [[40, 60], [50, 70]], "r": [[0, None], [0, 0]]}
    spread = judged(*both(totals), {}).capabilities["perception"].spread
    assert spread is not None
    assert (spread.n, spread.judge_variance) == (1, pytest.approx(200))
    assert judged(*both({"r": [[0, None]]}), {}).capabilities["perception"].spread is None


def test_what_does_not_fit_is_refused() -> None:
    answers, verdicts = both({"q": [[40, 50]], "r": [[60, 70]]})
    broken: list[tuple[list, list[Verdict], str]] = [
        (answers, verdicts[:-1], "'r' of run 0 has none in judging run 1"),
        (answers, [], "'q' of run 0 has none"),
        (answers, [*verdicts, verdicts[0]], "occurs twice"),
        (answers, [*verdicts, a_verdict("x", 1.0)], "of no answer"),
        (answers, [*verdicts, a_verdict("q", 1.0, answer_run=1)], "of no answer"),
        ([*answers, answers[0]], verdicts, "two answers in run 0"),
    ]
    for given, verdict, said in broken:
        with pytest.raises(ValueError, match=said):
            judged(given, verdict, {})


def test_as_json_is_plain() -> None:
    found = as_json(judged(*both({"q": [[40, 60], [90, None]]}), {"q": "perception"}))
    assert json.loads(json.dumps(found)) == found
    assert set(found["capabilities"]["perception"]) == set(
        asdict(judged(*both({"q": [[1]]}), {}).capabilities["perception"])
    )


def test_the_table_tells_errors_counts_and_runs() -> None:
    rng = np.random.default_rng(5)
    text = table(judged(*planted(rng, 2, 1), {"0": "perception"}))
    assert "all questions" in text and "unscored 0" in text
    assert "by answering" in text and "judging" in text
