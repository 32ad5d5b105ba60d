"""Repeats found by hashes against a plain twin that keeps every row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drivekd.data.check.faults import plain
from drivekd.data.check.repeats import Repeats
from drivekd.data.sample import Message, Sample

ANSWERS = (None, "Yes.", "yes", "No, not now.", "B", "B. Stop", "C", "A car.", "A bus")
SIDES = {"Yes.": "yes", "yes": "yes", "No, not now.": "no", "B": "B", "B. Stop": "B", "C": "C"}


def sample(question: int, answer: str | None) -> Sample:
    turns = [Message("user", f"<image>{question // 2}?")]
    turns += [] if answer is None else [Message("assistant", answer)]
    return Sample("", tuple(turns), {"image_0": Path("ab"[question % 2])}, source="x")


def twin(rows: list[tuple[int, str | None] | None]) -> list[str | None]:
    """The check that each row fails."""

    found: list[str | None] = []
    for place, row in enumerate(rows):
        same = [i for i, other in enumerate(rows) if row and other and other[0] == row[0]]
        answers = [rows[i][1] for i in same]  # type: ignore[index]
        mine = SIDES.get(row[1] or "") if row else None
        sides = {side for answer in answers if (side := SIDES.get(answer or ""))}
        words = {plain(answer or "\0") for answer in answers}
        if mine and any(side != mine and (len(side) == 1) == (len(mine) == 1) for side in sides):
            found.append("contradiction")
        elif len(same) < 2 or (len(words) == 1 and same[0] == place):
            found.append(None)
        elif same[0] == place or plain(answers[0] or "\0") != plain((row or (0, ""))[1] or "\0"):
            found.append("answers_differ")
        else:
            found.append("duplicate")
    return found


def told(*answers: str | None, question: str = "Is it safe?") -> list[tuple[str, str]]:
    """Check and message of each row that asks one question and answers so."""
    repeats, rows = Repeats(), []
    for number, answer in enumerate(answers, 1):
        turns = [Message("user", question)] + ([Message("assistant", answer)] if answer else [])
        rows.append(Sample("", tuple(turns), {}, source=f"a, b.jsonl, row {number}"))
        repeats.add(rows[-1])
    repeated = repeats.find()
    found = (f for place, each in enumerate(rows) for f in repeated.findings(each, place))
    return [(finding.check, finding.message) for finding in found]


def checks(*answers: str | None, question: str = "Is it safe?") -> list[str]:
    return [check for check, _ in told(*answers, question=question)]


@pytest.mark.parametrize("first", [None, "It depends."])
def test_an_open_first_row_hides_no_contradiction(first: str | None) -> None:
    assert checks(first, "Yes.", "No.") == ["answers_differ", "contradiction", "contradiction"]


def test_each_side_names_a_row_of_the_other() -> None:
    rows = told("Yes.", "yes", "No.", "Yes, it is.", "no")
    assert [check for check, _ in rows] == ["contradiction"] * 5
    named = [message.split(", ")[-1].split(" asks")[0] for _, message in rows]
    assert named == ["a later row", "a later row", "row 1", "row 3", "row 1"]


@pytest.mark.parametrize(
    ("options", "answers", "found"),
    [
        ("A. Yes. B. No.", ("A", "Yes."), "answers_differ"),
        ("A. Yes. B. No.", ("A", "No."), "contradiction"),
        ("A. No. B. Yes, it is.", ("Yes.", "B"), "answers_differ"),
        ("A. Certainly. B. Never.", ("A", "No."), "answers_differ"),
        ("A. Certainly. B. Never.", ("Yes.", "No."), "contradiction"),
    ],
)
def test_a_letter_and_its_words_are_one_answer(
    options: str, answers: tuple[str, str], found: str
) -> None:
    assert checks(*answers, question=f"Is it safe? {options}") == [found] * 2


def test_only_so_many_places_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivekd.data.check.repeats._PLACES", 0)
    assert told("Yes.", "Yes.") == [("duplicate", "says what question 1 of the file says")]


def test_hashes_find_what_the_plain_twin_finds() -> None:
    rng = np.random.default_rng(3)
    rows: list[tuple[int, str | None] | None] = [
        None if rng.random() < 0.1 else (int(rng.integers(40)), ANSWERS[rng.integers(len(ANSWERS))])
        for _ in range(97)
    ]
    repeats = Repeats()
    for row in rows:
        repeats.add(None if row is None else sample(*row))
    repeated = repeats.find()
    got: list[str | None] = []
    for place, row in enumerate(rows):
        found = [] if row is None else list(repeated.findings(sample(*row), place))
        got.append(found[0].check if found else None)
    assert got == twin(rows)
    assert {"duplicate", "contradiction", "answers_differ"} <= set(got)


def test_nothing_repeats_in_no_rows() -> None:
    assert not Repeats().find().other.any()
