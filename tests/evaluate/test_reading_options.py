from __future__ import annotations

import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivekd.evaluate.reading import metrics
from drivekd.evaluate.reading.options import read_option, yes_no
from evaluate.replies import EGO, MOVING, OBJECT, REPLIES, YES_NO, Row

OPTIONS = {"A": "Going ahead", "B": "Turn left", "C": "Turn right", "D": "Stopped"}

DECLARED = [
    ("Final: {B. Turn left}", "B"),
    ("Final: {B}", "B"),
    ("Final:{A. Going ahead}", "A"),
    ("final : b", "B"),
    ("Final: {B. Turn left} Object: a car. Position: front.", "B"),
    ("the answer is B", "B"),
    ("The answer is (A).", "A"),
    ("The answer is A. Reason: it is a car", "A"),
    ("The answer is a", "A"),
    ("The answer is **a** going ahead", "A"),
    ("Answer: (c)", "C"),
    ("Answer B", "B"),
    ("answer: b) turn left", "B"),
    ("The correct answer is: D) Stopped", "D"),
    ("The correct choice would be C", "C"),
    ("Correct: C", "C"),
    ("The answer must be C", "C"),
    ("answer is probably B", "B"),
    ("The answer is option B", "B"),
    ("Option B is correct", "B"),
    ("I choose C because a bus is there.", "C"),
    ("I would go with option D.", "D"),
    ("The answer is turn right", "C"),
    ("Final answer: stopped", "D"),
    ("The answer is not B but C", "C"),
    ("The best option is C, not B.", "C"),
    ("\\boxed{C}", "C"),
    ("$\\boxed{\\text{C}}$", "C"),
    ("<answer>B</answer>", "B"),
]
LAST_COUNTS = [
    ("The answer is B. No wait, the answer is C.", "C"),
    ("Final: A\nFinal: D", "D"),
    ("A. Going ahead\nB. Turn left\nC. Turn right\nFinal: C", "C"),
    ("Final: {B. Turn left}. The answer is clear.", "B"),
    ("The car is in camera C. The answer is D.", "D"),
]
BARE = [
    ("B", "B"),
    ("B.", "B"),
    ("(B)", "B"),
    ("[B]", "B"),
    ("{B. Turn left}", "B"),
    ("b", "B"),
    ("a", "A"),
    ("A.", "A"),
    ("**B**", "B"),
    ("B: Turn left", "B"),
    ("B.Turn left", "B"),
    ("B, because", "B"),
    ("B because a car brakes", "B"),
    ("B. Turn left. A car is ahead.", "B"),
    ("C\n\nB is not right", "C"),
    ("Therefore, B.", "B"),
    ("I think it is B.", "B"),
    ("A car is ahead. B", "B"),
]
BY_TEXT = [
    ("Turn left", "B"),
    ("turn left.", "B"),
    ("a turn left", "B"),
    ("A going ahead", "A"),
    ("The car will turn left soon", "B"),
    ("A vehicle in front is stopped", "D"),
]
UNREADABLE = [
    "",
    "   ",
    "E",
    "The answer is E.",
    "Final: {E. Nothing}",
    "The answer is B. Final: E",
    "a red car",
    "A car is turning somewhere",
    "The answer is a car",
    "The answer is A red car",
    "Bus",
    "The answer is Bus",
    "I don't know",
    "It could be A or B",
    "The answer is A or B",
    "not B",
    "The vehicle is not stopped",
    "Turn left or turn right",
    "A. Going ahead B. Turn left C. Turn right D. Stopped",
    "Plan A is risky. Plan B too.",
]


@pytest.mark.parametrize(("reply", "letter"), DECLARED + LAST_COUNTS + BARE + BY_TEXT)
def test_option_is_read(reply: str, letter: str) -> None:
    assert read_option(reply, OPTIONS) == letter


@pytest.mark.parametrize("reply", UNREADABLE)
def test_unreadable_option_is_none(reply: str) -> None:
    assert read_option(reply, OPTIONS) is None


def test_longer_option_hides_the_one_inside_it() -> None:
    options = {"A": "moving", "B": "not moving"}
    assert read_option("It is not moving.", options) == "B"
    assert read_option("It is moving.", options) == "A"
    assert read_option("A car", {"A": "truck", "B": "car"}) == "B"


def test_same_text_twice_is_unreadable_but_letters_are() -> None:
    options = {"A": "yes", "B": "yes"}
    assert read_option("yes", options) is None
    assert read_option("B", options) == "B"


def test_letters_come_back_as_they_were_offered() -> None:
    assert read_option("Final: B", {"a": "x", "b": "y"}) == "b"
    assert read_option("2.", {"1": "x", "2": "y"}) == "2"


@pytest.mark.parametrize("options", [{}, {"AB": "x"}, {"A": "x", "a": "y"}, {"": "x"}])
def test_options_that_are_none(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="options"):
        read_option("A", options)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200), st.integers(1, 6))
def test_any_text_gives_an_offered_letter_or_none(reply: str, count: int) -> None:
    options = {letter: f"text {letter}" for letter in string.ascii_uppercase[:count]}
    assert read_option(reply, options) in {*options, None}
    yes_no(reply)


@given(st.sampled_from("ABCD"), st.sampled_from("ABCD"))
def test_a_later_declaration_wins_over_any_earlier_one(first: str, last: str) -> None:
    reply = f"The answer is {first}. On second thought: Final: {{{last}. {OPTIONS[last]}}}"
    assert read_option(reply, OPTIONS) == last


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("yes", "yes"),
        ("No.", "no"),
        ("Yes, it is safe.", "yes"),
        ("The answer is no, yes would be wrong", "no"),
        ("It is safe, so yes", "yes"),
        ("no one is there", "no"),
        ("yes or no", None),
        ("maybe", None),
        ("", None),
        ("nothing", None),
        ("it may be yes and it may be no", None),
        ("**No**", "no"),
    ],
)
def test_yes_no(reply: str, said: str | None) -> None:
    assert yes_no(reply) == said


@pytest.mark.parametrize("rows", REPLIES.values(), ids=REPLIES.keys())
def test_replies_are_read_as_a_person_reads_them(rows: list[Row]) -> None:
    read = [(row.reply, read_option(row.reply, row.options)) for row in rows]
    assert read == [(row.reply, row.letter) for row in rows]


def test_yes_and_no_are_read_as_a_person_reads_them() -> None:
    assert [(reply, yes_no(reply)) for reply, _ in YES_NO] == YES_NO


def test_the_table_is_large_and_has_no_row_twice() -> None:
    rows = [(row.reply, str(row.options)) for group in REPLIES.values() for row in group]
    assert len(set(rows)) == len(rows) >= 200
    assert len(dict(YES_NO)) == len(YES_NO) >= 40


@pytest.mark.parametrize("options", [MOVING, EGO, OBJECT])
def test_an_option_in_its_own_words_is_that_option(options: dict[str, str]) -> None:
    for letter, text in options.items():
        for reply in (text, text.upper(), f"{letter}. {text}", f"I think: {text}", f"({letter})"):
            assert read_option(reply, options) == letter, reply


def test_the_parser_is_found_under_its_fixed_name() -> None:
    assert metrics.read_option is read_option


@pytest.mark.parametrize(
    "unit",
    [" ", "\n", "B ", "Turn left. ", "The answer is ", "answer is B. ", "\\boxed{", "( ", "not "],
)
def test_a_loop_of_thousands_of_words_is_read_in_seconds(unit: str) -> None:
    start = time.process_time()
    read_option(unit * (16_000 // len(unit)) + "x", MOVING)
    yes_no(unit * (16_000 // len(unit)) + "x")
    assert time.process_time() - start < 10
