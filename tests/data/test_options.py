from __future__ import annotations

import pytest

from drivekd.data.options import letter_of, options_of

ASKED = "What does it do? Please select the correct answer from the following options: "


@pytest.mark.parametrize(
    ("question", "options"),
    [
        (
            ASKED + "A. Going ahead. B. Turn left. C. Turn right.",
            [("A", "Going ahead"), ("B", "Turn left"), ("C", "Turn right.")],
        ),
        ("Which? (A) red (B) blue", [("A", "red"), ("B", "blue")]),
        ("Which?\nA: red\nB: blue", [("A", "red"), ("B", "blue")]),
        ("A. Slow. It is lane B. B. Fast.", [("A", "Slow. It is lane B"), ("B", "Fast.")]),
        ("A. Up. B. Down. B. Off.", [("A", "Up"), ("B", "Down"), ("B", "Off.")]),
        ("A. Up. C. Off.", []),
        ("What is A. Smith doing?", []),
        ("Is <c1,CAM_FRONT,0.1,0.2> in lane A?", []),
    ],
)
def test_options(question: str, options: list[tuple[str, str]]) -> None:
    assert options_of(question) == options


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B. Turn left.", "B"),
        ("Final: {A. Going ahead.}\nObject: a car", "A"),
        ("Final: C. The ego vehicle", "C"),
        ("The answer is B", None),
        ("A car.", None),
        ("b", None),
        ("No.", None),
        ("", None),
    ],
)
def test_letters(answer: str, letter: str | None) -> None:
    assert letter_of(answer) == letter
