"""Repeats found by hashes against a plain twin that keeps every row."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from drivekd.data.faults import plain
from drivekd.data.repeats import Repeats
from drivekd.data.sample import Message, Sample

ANSWERS = (None, "Yes.", "yes", "No, not now.", "B", "B. Stop", "C", "A car.", "A bus")
CHOICES = {"Yes.": 1, "yes": 1, "No, not now.": 2, "B": 3, "B. Stop": 3, "C": 4}


def sample(question: int, answer: str | None) -> Sample:
    turns = [Message("user", f"<image>{question // 2}?")]
    turns += [] if answer is None else [Message("assistant", answer)]
    return Sample("", tuple(turns), {"image_0": Path("ab"[question % 2])}, source="x")


def twin(rows: list[tuple[int, str | None] | None]) -> list[str | None]:
    """The check that each row fails."""

    def told(mine: str | None, other: str | None) -> str:
        if plain(mine or "\0") == plain(other or "\0"):
            return "duplicate"
        kinds = {CHOICES.get(mine or ""), CHOICES.get(other or "")}
        return "contradiction" if len(kinds) == 2 and None not in kinds else "answers_differ"

    checks: list[str | None] = []
    for place, row in enumerate(rows):
        same = [i for i, other in enumerate(rows) if row and other and other[0] == row[0]]
        if row is None or len(same) == 1:
            checks.append(None)
        elif same[0] != place:
            checks.append(told(row[1], rows[same[0]][1]))  # type: ignore[index]
        else:
            others = {told(rows[i][1], row[1]) for i in same[1:]} - {"duplicate"}  # type: ignore[index]
            checks.append(min(others, key=("contradiction", "answers_differ").index, default=None))
    return checks


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
    assert not Repeats().find().first.any()
