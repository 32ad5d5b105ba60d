from __future__ import annotations

from pathlib import Path

import pytest

from drivekd.data.cameras import capability_of, task_of
from drivekd.data.formats.readers import read
from drivekd.data.sample import Message, Sample


def asked(question: str, kind: str | None, capability: str | None, template: str = "") -> Sample:
    return Sample(
        "q",
        (Message("user", question), Message("assistant", "Yes.")),
        {},
        capability=capability,
        template=template,
        meta={"question_type": kind},
    )


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("perception", "perception"),
        (" Prediction ", "prediction"),
        ("behavior", "behavior"),
        ("behaviour", "behavior"),
        ("planning", "planning"),
    ],
)
def test_a_question_type_names_its_task(kind: str, task: str) -> None:
    assert task_of(asked("Where?", kind, capability_of(kind))) == task


def test_reasoning_is_told_by_the_wording_of_the_benchmark() -> None:
    ego = "Predict the behavior of the ego vehicle."
    assert task_of(asked(ego, "reasoning", "reasoning", "ego_behavior")) == "behavior"
    signs = "Would it be in the moving direction of the ego vehicle?"
    assert task_of(asked(signs, "robust_qas", "reasoning", "moving_direction")) == "prediction"
    assert task_of(asked(signs, "robust_qas", "reasoning", "own_template")) is None
    assert task_of(asked("Why?", "reasoning", "reasoning")) is None
    assert task_of(asked("Why?", None, "perception")) == "perception"
    assert task_of(asked(signs, None, None, "moving_direction")) is None


@pytest.mark.real_data
def test_the_wording_agrees_with_the_sections_of_drivelm(real_data: Path) -> None:
    """What is told without a question type is what the file says, wherever it is told."""
    told = 0
    for name in ("train_sample.json", "test_eval.json"):
        for sample in read(real_data / "drivelm" / name):
            said = task_of(sample)
            assert said == sample.meta["question_type"]
            guess = task_of(asked(sample.question, None, sample.capability, sample.template or ""))
            assert guess in (said, None)
            told += guess is not None
    assert told > 840  # of 856
