"""Evaluations for tests: answers, verdicts, and the folders that hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drivekd.evaluate.answers.answer import Answer
from drivekd.evaluate.judging.judge import Status, Verdict


def an_answer(id: str, correct: bool = True, run: int = 0, **given: str | None) -> Answer:
    row = {"capability": "perception", "template": "colour", "scene": f"s{id}"} | given
    return Answer(id, question=f"{id}?", expected="red", reply="", correct=correct, run=run, **row)


def a_verdict(
    id: str, total: float | None, run: int = 0, answer_run: int = 0, status: Status | None = None
) -> Verdict:
    status = status or ("bad_reply" if total is None else "scored")
    return Verdict(id, 0, run, "planning", status, (), total, "", answer_run)


def a_folder(
    folder: Path,
    answers: Sequence[Answer],
    verdicts: Sequence[Verdict] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    folder.mkdir(parents=True)
    lines(folder / "answers.jsonl", answers)
    if verdicts is not None:
        lines(folder / "verdicts.jsonl", verdicts)
    if settings is not None:
        (folder / "evaluation.json").write_text(json.dumps(settings))
    return folder


def lines(path: Path, rows: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
