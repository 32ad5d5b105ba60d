from __future__ import annotations

import itertools

import pytest

from drivekd.data.tags import Tag
from drivekd.evaluate.reading.metrics import (
    TagMatch,
    exact_match,
    match_tags,
    normalise,
    tag_scores,
    unreadable,
)


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
    result = match_tags([at(0.50), at(0.51)], [at(0.5)])
    assert (result.matched, result.precision, result.recall) == (1, 0.5, 1.0)
    assert result.f1 == pytest.approx(2 / 3)


def test_matching_needs_the_camera_and_the_distance() -> None:
    assert match_tags([at(0.5, camera="CAM_BACK")], [at(0.5)]).matched == 0
    assert match_tags([at(0.5499)], [at(0.5)]).matched == 1
    assert match_tags([at(0.5501)], [at(0.5)]).matched == 0


def test_matching_finds_as_many_pairs_as_there_are() -> None:
    # The nearest pair first (0.52 with 0.53) would leave the other two without a partner.
    named, expected = [at(0.50), at(0.52)], [at(0.53), at(0.56)]
    assert match_tags(named, expected).matched == 2


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


#: DriveLM's own words: pixels of 1600×900
REFERENCE = "There is a car <c1,CAM_FRONT,800.0,450.0> and a bus <c2,CAM_BACK,400.0,225.0>."


def test_tags_in_pixels_and_fractions_are_compared_as_fractions() -> None:
    for reply in (REFERENCE, "<c1,CAM_FRONT,0.5,0.5> <c2,CAM_BACK,0.25,0.25>"):
        assert tag_scores([(reply, REFERENCE)]).overall.f1 == 1.0
    # one each, and the place 0.04 of the width away is near enough, 0.06 is not
    near = tag_scores([("<c7,CAM_FRONT,864.0,450.0>, <c1,CAM_BACK,0.31,0.25>", REFERENCE)])
    assert (near.overall.matched, near.overall.named, near.overall.expected) == (1, 2, 2)


def test_tag_counts_are_summed_over_questions_and_cameras() -> None:
    pairs = [
        (REFERENCE, REFERENCE),
        ("<c1,CAM_FRONT,0.5,0.5> <c3,CAM_LEFT,0.1,0.1>", "<c1,CAM_FRONT,0.9,0.9>"),
        ("a car", "<c1,CAM_BACK,0.5,0.5>"),
        ("<c1,CAM_FRONT,0.5,0.5>", "No tag is expected here."),
    ]
    scores = tag_scores(pairs)
    assert scores.questions == 3
    assert scores.overall == TagMatch(matched=2, named=4, expected=4)
    assert scores.overall.f1 == pytest.approx(0.5)
    assert scores.cameras == {
        "CAM_FRONT": TagMatch(1, 2, 2),
        "CAM_BACK": TagMatch(1, 1, 2),
        "CAM_LEFT": TagMatch(0, 1, 0),
    }


def test_a_tag_of_another_camera_is_no_match() -> None:
    scores = tag_scores([("<c1,CAM_BACK,0.5,0.5>", "<c1,CAM_FRONT,0.5,0.5>")])
    assert scores.overall == TagMatch(0, 1, 1)


def test_tag_rates_of_no_question_are_none() -> None:
    scores = tag_scores([("<c1,CAM_BACK,0.5,0.5>", "none")])
    assert (scores.questions, scores.overall.f1, scores.overall.precision) == (0, None, None)


@pytest.mark.parametrize(
    ("reply", "expected", "options", "is_unreadable"),
    [
        ("B", "A", {"A": "left", "B": "right"}, False),
        ("A or B", "A", {"A": "left", "B": "right"}, True),
        ("", "A", {"A": "left", "B": "right"}, True),
        ("Yes", "A", {"A": "left", "B": "right"}, True),
        ("No, it stops.", "Yes.", None, False),
        ("Maybe", "Yes.", None, True),
        ("", "no", {}, True),
        ("Maybe", "Slow down.", None, False),
        ("", "Slow down.", None, False),
    ],
)
def test_unreadable_is_not_wrong(
    reply: str, expected: str, options: dict[str, str] | None, is_unreadable: bool
) -> None:
    assert unreadable(reply, expected, options) is is_unreadable
