"""All figures of an evaluation together: which question counts where, keys, and the table."""

from __future__ import annotations

import json

import pytest

from drivekd.data.sample import Message, Sample
from drivekd.evaluate.answers.answer import answer_of
from drivekd.evaluate.pairs import Given
from drivekd.evaluate.results import as_json, results, table
from evaluations import a_verdict

#: question, capability, reference, reply, options
ROWS = (
    ("Which colour?", "perception", "A red car.", "A red car.", None),
    ("Where?", "perception", "<c1,CAM_FRONT,0.5,0.5>", "<c1,CAM_FRONT,0.52,0.5>", None),
    ("Will it stop?", "reasoning", "Yes.", "Perhaps.", None),
    ("What is right?", "reasoning", "A", "A or B", {"A": "stop", "B": "go"}),
    ("What is right?", "reasoning", "A", "B", {"A": "stop", "B": "go"}),
    ("Then?", "planning", "Keep going at the same speed.", "Brake.", None),
)
PLAIN = {"capabilities", "templates", "average", "everything", "unreadable", "text", "tags"}


@pytest.fixture
def samples() -> list[Sample]:
    return [
        Sample(
            f"q{i}",
            (Message("user", question), Message("assistant", reference)),
            {},
            capability=capability,
            scene=f"s{i}",
            meta={} if options is None else {"options": options},
        )
        for i, (question, capability, reference, _, options) in enumerate(ROWS)
    ]


@pytest.fixture
def model(samples: list[Sample]) -> Given:
    return Given([answer_of(sample, row[3]) for sample, row in zip(samples, ROWS, strict=True)])


def test_every_question_counts_where_it_belongs(samples: list[Sample], model: Given) -> None:
    found = results(samples, model, {})
    assert found.unreadable == {"reasoning": 2}  # B is wrong, but readable
    assert {name: each.n for name, each in found.text.items()} == {"perception": 2, "planning": 1}
    assert found.tags is not None and found.tags.questions == found.tags.overall.matched == 1
    content = as_json(found)
    assert set(content) == PLAIN
    assert content["tags"]["overall"]["f1"] == 1.0
    json.dumps(content, allow_nan=False)
    text = table(found)
    assert "2 replies unreadable" in text and "ROUGE-L" in text and "F1 100.0 %" in text


def test_nothing_that_was_not_asked_is_told(samples: list[Sample], model: Given) -> None:
    found = results(samples[4:5], Given(model.answers[4:5]), {})
    assert set(as_json(found)) == {"capabilities", "templates", "everything"}
    assert "free text" not in table(found) and "objects" not in table(found)


def test_judged_scores_stand_with_controls_and_published_rows(
    samples: list[Sample], model: Given
) -> None:
    totals = [100.0, 80.0, 0.0, 40.0, 20.0, None]
    verdicts = [a_verdict(f"q{i}", total) for i, total in enumerate(totals)]
    black = Given(model.answers, [a_verdict(f"q{i}", 10.0) for i in range(6)])
    found = results(samples, Given(model.answers, verdicts), {"black": black}, "gpt-4o")
    content = as_json(found)
    assert set(content) == PLAIN | {"judged", "published", "controls", "unscored"}
    assert content["judged"]["capabilities"]["perception"]["mean"] == 90.0
    assert content["judged"]["without_score"]["capabilities"]["planning"] == {"bad_reply": 1}
    assert {row["notice"] for row in content["published"]} == {"other judge: not comparable"}
    gaps = {(row["measure"], row["group"]): row["controls"]["black"] for row in content["controls"]}
    assert gaps["judged", "perception"]["mean"] == 80.0
    assert gaps["accuracy", "perception"]["mean"] == 0.0
    assert "1 verdicts without a score: points could not be read" in table(found)
    assert "no score: 1 bad_reply" in table(found) and "black 10.0: +80.0" in table(found)
