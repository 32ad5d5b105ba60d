from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drivekd.data.sample import Message, Sample
from drivekd.evaluate.answers import answer_file
from drivekd.evaluate.answers.answer import answer_of
from drivekd.evaluate.answers.answer_file import Mark, append, resume
from drivekd.evaluate.folder import read_answers

SAMPLES = [
    Sample(f"q{i}", (Message("user", f"{i}?"), Message("assistant", "yes")), {}) for i in range(3)
]
MARK = Mark(
    {"model": "m"}, {s.id: f"pictures{s.id}" for s in SAMPLES}, {s.id: "p" for s in SAMPLES}
)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A file of two of the three answers in run 0 and one in run 1."""
    path = tmp_path / "deep" / "answers.jsonl"
    append(path, [answer_of(SAMPLES[0], "yes"), answer_of(SAMPLES[1], "no")], MARK)
    append(path, [answer_of(SAMPLES[0], "no", 1)], MARK)
    return path


def edit(path: Path, **change: Any) -> None:
    """Change what all rows say; None takes a key away."""
    rows = [json.loads(line) | change for line in path.read_text().splitlines()]
    rows = [{key: row[key] for key in row if change.get(key, "") is not None} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_each_run_of_a_question_is_known(out: Path) -> None:
    known = resume(out, SAMPLES, MARK)
    assert {key: (a.reply, a.correct) for key, a in known.items()} == {
        ("q0", 0): ("yes", True),
        ("q1", 0): ("no", False),
        ("q0", 1): ("no", False),
    }
    row = json.loads(out.read_text().splitlines()[1])
    assert {row["model"], row["pictures"], row["prompt"]} == {"m", "picturesq1", "p"}


def test_half_a_line_and_repetitions_go(out: Path) -> None:
    text = out.read_text()
    first = text.splitlines(keepends=True)[0]
    for end in (1, 9, len(first) // 2, len(first) - 1):
        out.write_text(text + first + first[:end])
        assert len(resume(out, SAMPLES, MARK)) == 3
        assert out.read_text() == text
    append(out, [answer_of(SAMPLES[2], "no")], MARK)
    assert len(read_answers(out)) == 4


def test_replies_with_line_breaks_and_halves_of_pairs_come_back(out: Path) -> None:
    odd = "a\u2028b\x85c\ud83dd\n"
    append(out, [answer_of(SAMPLES[2], odd)], MARK)
    assert resume(out, SAMPLES, MARK)["q2", 0].reply == odd


def test_what_is_said_of_a_reply_follows_the_sample(out: Path) -> None:
    moved = [replace(s, capability="planning", scene="s") for s in SAMPLES]
    assert resume(out, moved, MARK)["q0", 0].capability == "planning"
    assert {a.scene for a in read_answers(out)} == {"s"}


def test_rows_of_samples_not_asked_stay(out: Path) -> None:
    assert set(resume(out, SAMPLES[1:], MARK)) == {("q1", 0)}
    assert len(read_answers(out)) == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": "n"}, "of another model"),
        ({"pictures": "x"}, "about other pictures"),
        ({"prompt": "x"}, "to other words"),
        ({"prompt": None}, "do not say their prompt, as earlier versions wrote them"),
        ({"question": "What?"}, "another question or answer under the id 'q0'"),
    ],
)
def test_other_answers_are_refused(out: Path, change: dict[str, Any], named: str) -> None:
    edit(out, **change)
    before = out.read_bytes()
    with pytest.raises(ValueError, match=named):
        resume(out, SAMPLES, MARK)
    assert out.read_bytes() == before


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    row = json.dumps({**dict.fromkeys(("id", "question", "expected", "reply"), 1)})
    for text, named in (
        ('{"id": 1}\n', "lacks capability"),
        ("nonsense\n" + json.dumps({}) + "\n", "line 1"),
        (json.dumps(7) + "\n", "line 1: expected one JSON object"),
        ("\n", "line 1"),
        (row[:-1] + ', "capability": 1, "template": 1, "scene": 1, "correct": 1}\n', "no texts"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=named):
            resume(path, SAMPLES, MARK)
    path.write_bytes(b"\xff{}\n")
    with pytest.raises(ValueError, match=r"line 1: .*xff"):
        resume(path, SAMPLES, MARK)
    with pytest.raises(ValueError, match="nowhere"):
        read_answers(tmp_path / "nowhere.jsonl")


def test_what_cannot_be_written_leaves_no_half_line(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = out.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(answer_file.os, "fsync", full)
    with pytest.raises(OSError, match=r"answers\.jsonl"):
        append(out, [answer_of(SAMPLES[2], "no")], MARK)
    assert out.read_bytes() == before
