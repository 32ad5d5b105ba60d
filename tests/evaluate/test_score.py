from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from drivekd.data.sample import Message, Sample
from drivekd.evaluate.answers.answer import Answer
from drivekd.evaluate.pairs import gaps_of_seeds
from drivekd.evaluate.score import as_json, majority, score, write_scores


def answer(number: int, correct: bool, **given: str | None) -> Answer:
    row = {"capability": "perception", "template": "colour", "scene": f"s{number}"} | given
    return Answer(str(number), question="?", expected="red", reply="", correct=correct, **row)


def sample(template: str | None, text: str, number: int = 0) -> Sample:
    messages = (Message("user", "?"), Message("assistant", text))
    return Sample(f"{template}{number}", messages, {}, template=template, capability="planning")


def test_accuracy_and_counts() -> None:
    given = [answer(i, i < 3) for i in range(4)]
    given += [answer(9, False, capability="planning", template="action")]
    scores = score(given)
    assert scores.capabilities["perception"].accuracy == 75.0
    assert (scores.capabilities["perception"].n, scores.capabilities["perception"].scenes) == (4, 4)
    assert scores.templates["action"].accuracy == 0.0
    assert list(scores.capabilities) == ["perception", "planning"]


def test_average_needs_all_three() -> None:
    capabilities = ("perception", "reasoning", "planning")
    given = [
        answer(10 * k + i, i % 2 == 0, capability=c)
        for k, c in enumerate(capabilities[:2])
        for i in range(6)
    ]
    assert score(given).average is None
    assert "average" not in as_json(score(given))
    given += [answer(i, True, capability="planning") for i in range(20, 22)]
    average = score(given).average
    assert average is not None
    assert average.accuracy == pytest.approx((50 + 50 + 100) / 3)  # not weighted by questions
    assert average.n == 14


def test_nothing_asked_has_no_score() -> None:
    scores = score([])
    assert scores.capabilities == {}
    assert scores.templates == {}
    assert scores.average is None
    assert scores.everything is None


def test_answers_without_capability_or_template_are_left_out() -> None:
    scores = score([answer(0, True, capability=None, template=None)])
    assert not scores.capabilities
    assert not scores.templates
    assert scores.everything is not None
    assert (scores.everything.accuracy, scores.everything.n) == (100.0, 1)


def test_interval_holds_the_score_and_is_repeatable() -> None:
    rng = np.random.default_rng(0)
    given = [answer(i, bool(rng.random() < 0.6), scene=f"s{i // 5}") for i in range(200)]
    first, again = score(given), score(given)
    assert first == again
    found = first.capabilities["perception"]
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.accuracy < found.high


def test_interval_grows_when_scenes_agree_with_themselves() -> None:
    alike = [answer(i, (i // 10) % 2 == 0, scene=f"s{i // 10}") for i in range(400)]
    mixed = [answer(i, i % 2 == 0, scene=f"s{i // 10}") for i in range(400)]
    widths = []
    for given in (alike, mixed):
        found = score(given).capabilities["perception"]
        assert found.low is not None
        assert found.high is not None
        widths.append(found.high - found.low)
    # 40 coins of ten equal faces against scenes that are all exactly half right
    assert widths[0] == pytest.approx(2 * 1.96 * 50 / np.sqrt(40), rel=0.12)
    assert widths[1] < 3  # not 0: forty scenes are not all of them


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(60):
        skill = rng.beta(6, 4, size=40)  # scenes differ
        given = [
            answer(i, bool(rng.random() < skill[i // 4]), scene=f"s{i // 4}") for i in range(160)
        ]
        found = score(given).capabilities["perception"]
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 60 <= found.high
    assert 0.85 <= inside / 60 <= 1.0


def test_one_scene_has_no_interval() -> None:
    found = score([answer(i, i < 2, scene="only") for i in range(4)]).capabilities["perception"]
    assert (found.accuracy, found.low, found.high) == (50.0, None, None)


@pytest.mark.parametrize("right", [True, False])
def test_all_right_or_all_wrong_is_not_certain(right: bool) -> None:
    found = score([answer(i, right) for i in range(20)]).capabilities["perception"]
    wilson = stats.binomtest(20 * right, 20).proportion_ci(0.95, method="wilson")
    assert found.low == pytest.approx(100 * wilson.low, abs=1e-9)
    assert found.high == pytest.approx(100 * wilson.high, abs=1e-9)


def test_runs_of_a_question_count_once() -> None:
    runs = [answer(0, True), answer(0, False), answer(1, True), answer(1, True)]
    runs = [replace(each, run=i % 2) for i, each in enumerate(runs)] + [answer(2, False)]
    runs += [answer(3, True), answer(4, False)]
    found = score(runs)
    whole = found.everything
    assert whole is not None
    assert (whole.n, whole.accuracy, whole.scenes) == (5, 50.0, 5)  # mean of ½, 1, 0, 1 and 0
    assert whole.standard_error == pytest.approx(50 / np.sqrt(5))
    assert found.templates["colour"] == whole


def test_answers_without_scene_count_as_scenes() -> None:
    assert score([answer(i, True, scene=None) for i in range(7)]).templates["colour"].scenes == 7


def test_scores_are_written(tmp_path: Path) -> None:
    scores = score([answer(i, i < 3) for i in range(4)])
    write_scores(scores, tmp_path / "arm" / "scores.json")
    assert json.loads((tmp_path / "arm" / "scores.json").read_text()) == as_json(scores)


def test_majority_is_per_template_and_from_training() -> None:
    train = [sample("colour", "red"), sample("colour", "Red."), sample("colour", "blue")]
    train += [sample("action", "stop"), sample("action", "keep")]
    test = [
        sample("colour", "red"),
        sample("colour", "blue"),
        sample("action", "keep"),
        sample("light", "x"),
    ]
    given = majority(train, test)
    assert [a.reply for a in given] == ["red", "red", "keep", ""]  # ties: first in the alphabet
    assert [a.correct for a in given] == [True, False, True, False]


def replies(rights: list[list[bool]], capability: str = "perception") -> list[Answer]:
    """Answers by scene."""
    return [
        replace(answer(q, right, scene=f"s{s}", capability=capability), id=f"{capability}{s}/{q}")
        for s, scene in enumerate(rights)
        for q, right in enumerate(scene)
    ]


def test_gaps_of_seeds_is_the_difference_of_the_accuracies() -> None:
    mine = [replies([[True, True], [True, False]] * 3), replies([[True, False], [True, True]] * 3)]
    other = [replies([[False, True], [False, True]] * 3)] * 2
    found = gaps_of_seeds(mine, other)
    assert list(found) == ["perception", "everything"]
    assert (found["perception"].mean, found["perception"].scenes) == (25.0, 6)
    assert found["perception"].low == pytest.approx(25)  # alike in all scenes
    assert found["perception"].high == pytest.approx(25)


def test_gaps_of_seeds_covers_the_truth_as_often_as_it_says() -> None:
    random, held = np.random.default_rng(5), 0
    for _ in range(100):
        gains = random.normal(0.1, 0.1, 40).clip(-0.3, 0.4)  # by scene
        mine, other = (
            replies((random.random((40, 12)) < 0.5 + np.outer(sign * gains, np.ones(12))).tolist())
            for sign in (0.5, -0.5)
        )
        found = gaps_of_seeds([mine], [other])["perception"]
        held += found.low <= 10.0 <= found.high
    assert 87 <= held <= 99


def test_gaps_of_seeds_averages_the_capabilities() -> None:
    capabilities = ("perception", "reasoning", "planning")
    better = {"perception": 1, "reasoning": 0, "planning": 2}
    mine, other = (
        [
            each
            for c in capabilities
            for each in replies([[k < right[c] for k in range(4)]] * 3, capability=c)
        ]
        for right in (better, dict.fromkeys(capabilities, 0))
    )
    found = gaps_of_seeds([mine], [other])
    means = [found[c].mean for c in (*capabilities, "average")]
    assert means == pytest.approx([25.0, 0.0, 50.0, 25.0])


def test_gaps_of_seeds_refuses_other_questions() -> None:
    here = replies([[True], [False]])
    for mine, theirs, named in (
        ([here], [here[:1]], "same questions"),
        ([here[:1]], [here], "same questions"),
        ([here], [], "same seeds"),
        ([], [here], "same seeds"),
        ([here] * 2, [here], "same seeds"),
    ):
        with pytest.raises(ValueError, match=named):
            gaps_of_seeds(mine, theirs)


def test_gaps_of_seeds_has_no_interval_of_one_scene() -> None:
    both = [replies([[True]], "planning") + replies([[False]] * 4)]
    found = gaps_of_seeds(both, [replies([[False]], "planning") + replies([[False]] * 4)])
    planning = found["planning"]
    assert (planning.mean, planning.low, planning.high, planning.scenes) == (100, None, None, 1)
    assert found["perception"].scenes == 4
