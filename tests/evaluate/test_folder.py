from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drivekd.evaluate.folder import read_evaluation, read_verdicts
from evaluations import a_folder, a_verdict, an_answer

ANSWERS = [an_answer("a"), an_answer("b", False)]
VERDICTS = [a_verdict("a", 40.0), a_verdict("b", None, status="transport")]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    settings = {"model": "m", "judge": {"model": "j", "runs": 3}}
    settings |= {"corruption": {"name": "Fog", "severity": 5}}
    found = read_evaluation(a_folder(tmp_path / "x", ANSWERS, VERDICTS, settings))
    assert (found.given.answers, found.given.verdicts) == (ANSWERS, VERDICTS)
    assert (found.model, found.judge, found.corruption) == ("m", {"model": "j"}, ("Fog", 5))


def test_settings_and_verdicts_may_be_missing(tmp_path: Path) -> None:
    found = read_evaluation(a_folder(tmp_path / "x", ANSWERS))
    assert (found.given.verdicts, found.model, found.judge, found.corruption) == (None,) * 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"correct": "yes"}, "correct 'yes', expected true"),
        ({"run": "0"}, "line 1: run '0', expected a whole"),
        ({"scene": 3}, "scene 3, expected a text or null"),
        ({"reply": None}, "reply None, expected a text"),
        ({"id": ["a"]}, r"id \['a'\], expected a text"),
    ],
)
def test_answers_of_another_kind_are_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    folder = a_folder(tmp_path / "x", ANSWERS)
    row = json.loads((folder / "answers.jsonl").read_text().split("\n")[0]) | change
    (folder / "answers.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=said):
        read_evaluation(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "no complete row"),
        (b"5\n", "a row lacks id"),
        (b"[1]\n", "a row lacks id"),
        (b"{}\n", "a row lacks id"),
        (b"{\n", "line 1"),
        (b"\xff\xfe\n", "cannot be read"),
    ],
)
def test_broken_answers_are_refused(tmp_path: Path, text: bytes, said: str) -> None:
    folder = a_folder(tmp_path / "x", ANSWERS)
    (folder / "answers.jsonl").write_bytes(text)
    with pytest.raises(ValueError, match=said):
        read_evaluation(folder)


def test_runs_that_are_not_complete_are_refused(tmp_path: Path) -> None:
    runs = [*ANSWERS, an_answer("a", run=1)]
    with pytest.raises(ValueError, match=r"1 of 2 .*'b'"):
        read_evaluation(a_folder(tmp_path / "short", runs))
    with pytest.raises(ValueError, match=r"'a' .*run 0"):
        read_evaluation(a_folder(tmp_path / "twice", [*ANSWERS, ANSWERS[0]]))


@pytest.mark.parametrize(
    "change",
    [
        {"total": 101},
        {"total": float("nan")},
        {"total": None},
        {"total": True},
        {"total": "40"},
        {"status": "transport"},
        {"status": "fine"},
        {"run": 0.5},
        {"id": 7},
        {"scores": 3},
    ],
)
def test_broken_verdicts_name_their_line(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = a_folder(tmp_path / "x", ANSWERS, VERDICTS)
    path = folder / "verdicts.jsonl"
    first, *rest = path.read_text().split("\n")
    path.write_text("\n".join([json.dumps(json.loads(first) | change), *rest]))
    with pytest.raises(ValueError, match=r"verdicts\.jsonl, line 1: "):
        read_verdicts(path)


@pytest.mark.parametrize("text", ["5\n", "[]\n", "{}\n", "{\n", "[" * 9999 + "\n", "\n"])
def test_what_is_no_verdict_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "verdicts.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match="line 1"):
        read_verdicts(path)


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 9999])
def test_broken_settings_are_refused(tmp_path: Path, text: str) -> None:
    folder = a_folder(tmp_path / "x", ANSWERS)
    (folder / "evaluation.json").write_text(text)
    with pytest.raises(ValueError, match=r"evaluation\.json: "):
        read_evaluation(folder)
