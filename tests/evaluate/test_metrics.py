from __future__ import annotations

import itertools
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivekd.data.tags import Tag, read_tags
from drivekd.evaluate.metrics import (
    exact_match,
    match_tags,
    normalise,
    read_option,
)
from drivekd.evaluate.reading_options import yes_no

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
    read_tags(reply)


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
        ("yes or no", "yes"),
        ("maybe", None),
        ("", None),
        ("nothing", None),
        ("it may be yes and it may be no", None),
        ("**No**", "no"),
    ],
)
def test_yes_no(reply: str, said: str | None) -> None:
    assert yes_no(reply) == said


def test_exact_match_ignores_case_space_and_end() -> None:
    assert exact_match("  Slow\tDOWN. ", "slow down")
    assert exact_match('"ﬁrst"', "first")
    assert not exact_match("slow", "slow down")
    assert not exact_match("a red car", "red car")
    assert not exact_match("<c1,CAM_FRONT,0.47,0.68>", "<c1,CAM_FRONT,0.48,0.68>")


def test_exact_match_with_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing can be compared"):
        exact_match("", " . ")


def test_normalise_is_idempotent() -> None:
    for text in ("A  b.", "'x'", "Straße!", "<c1,CAM_FRONT,0.4700,0.6800><r9>."):
        assert normalise(normalise(text)) == normalise(text)


def at(x: float, y: float = 0.5, camera: str = "CAM_FRONT") -> Tag:
    return Tag("c", camera, x, y)


def test_matching_is_one_to_one() -> None:
    result = match_tags([at(0.50), at(0.51)], [at(0.5)], threshold=0.05)
    assert (result.matched, result.precision, result.recall) == (1, 0.5, 1.0)
    assert result.f1 == pytest.approx(2 / 3)


def test_matching_needs_the_camera_and_the_distance() -> None:
    assert match_tags([at(0.5, camera="CAM_BACK")], [at(0.5)]).matched == 0
    assert match_tags([at(0.5625)], [at(0.5)], threshold=0.0625).matched == 1
    assert match_tags([at(0.5626)], [at(0.5)], threshold=0.0625).matched == 0


def test_matching_finds_as_many_pairs_as_there_are() -> None:
    # The nearest pair first (0.52 with 0.53) would leave the other two without a partner.
    named, expected = [at(0.50), at(0.52)], [at(0.53), at(0.56)]
    assert match_tags(named, expected, threshold=0.045).matched == 2


def test_matching_agrees_with_trying_everything() -> None:
    places = (0.1, 0.13, 0.3, 0.34)
    for xs in itertools.product(places, repeat=2):
        for ys in itertools.product(places, repeat=3):
            named, expected = [at(x) for x in xs], [at(y) for y in ys]
            best = max(
                sum(abs(a.x - b.x) <= 0.05 for a, b in zip(named, order, strict=True))
                for order in itertools.permutations(expected, 2)
            )
            assert match_tags(named, expected).matched == best


def test_rates_of_nothing_are_none() -> None:
    assert match_tags([], []).f1 is None
    nothing_named = match_tags([], [at(0.5)])
    assert (nothing_named.precision, nothing_named.recall, nothing_named.f1) == (None, 0.0, 0.0)
    assert match_tags([at(0.5)], []).recall is None


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf")])
def test_threshold_that_is_none(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        match_tags([], [], threshold)
