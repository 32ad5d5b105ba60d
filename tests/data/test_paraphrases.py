"""Other wordings of a question: read, kept by conversion, put in the question's place."""

from __future__ import annotations

from pathlib import Path

import pytest

from datafiles import row, write
from drivekd.data.convert import convert
from drivekd.data.formats.readers import read
from drivekd.data.paraphrases import paraphrased

WORDS = ["Name what is ahead.", "What stands ahead?"]


def test_wordings_take_the_questions_place_and_nothing_else_changes(tmp_path: Path) -> None:
    asked = "CAM_FRONT: <image>\nWhat is ahead?"
    (sample,) = read(write(tmp_path / "a.jsonl", [row(asked) | {"paraphrases": WORDS}]))
    assert sample.paraphrases == tuple(WORDS) and "paraphrases" not in sample.meta
    first, *others = paraphrased(sample)
    assert first is sample
    assert [o.question for o in others] == WORDS
    assert all(o.messages[0].content.startswith("CAM_FRONT: <image>\n") for o in others)
    assert all((o.images, o.answer) == (sample.images, sample.answer) for o in others)
    assert len({o.id for o in (first, *others)}) == 3


def test_conversion_to_our_own_rows_keeps_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row() | {"paraphrases": WORDS}])
    assert convert(path, tmp_path / "b.jsonl", "jsonl")["lost"] == {}
    (sample,) = read(tmp_path / "b.jsonl")
    assert sample.paraphrases == tuple(WORDS)
    assert convert(path, tmp_path / "c.json", "sharegpt")["lost"]["paraphrases"] == 1


def test_tags_in_other_wordings_are_converted_too(tmp_path: Path) -> None:
    words = {"paraphrases": ["What is <c1,CAM_FRONT,0.5,0.5>?"]}
    path = write(tmp_path / "a.jsonl", [row("<image>Name <c1,CAM_FRONT,0.5,0.5>.") | words])
    convert(path, tmp_path / "b.jsonl", "jsonl", tags="pixel")
    (sample,) = read(tmp_path / "b.jsonl")
    assert "800" in sample.question and "800" in sample.paraphrases[0]


@pytest.mark.parametrize(
    "wrong", ["What?", "", {}, {"a": "b"}, [3], [""], [" "], ["<image>What?"], ["What?"] * 65]
)
def test_what_is_no_list_of_questions_is_an_error(tmp_path: Path, wrong: object) -> None:
    path = write(tmp_path / "a.jsonl", [row(), row() | {"paraphrases": wrong}])
    with pytest.raises(ValueError, match="row 2: `paraphrases`"):
        list(read(path))


def test_a_question_before_its_picture_has_no_place_for_other_wordings(tmp_path: Path) -> None:
    asked = row("What is here? <image>")
    path = write(tmp_path / "a.jsonl", [asked | {"paraphrases": []}])
    assert next(iter(read(path))).paraphrases == ()
    write(path, [asked | {"paraphrases": WORDS}])
    with pytest.raises(ValueError, match="row 1: `paraphrases`"):
        list(read(path))
