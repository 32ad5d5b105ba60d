"""Folders of evaluations for tests: answers, verdicts and pictures, small and made up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datafiles import picture, row, six, write
from drivekd.data.sample import CAMERAS

CRITERIA = {"planning": [["action", 40], ["reasoning", 60]]}
KINDS = (("perception", "colour"), ("reasoning", "future"), ("planning", "action"))


def answer(id: str = "q0", reply: str = "There.", **more: Any) -> dict[str, Any]:
    """A row of answers.jsonl about `datafiles.row`."""
    about = {"capability": "planning", "template": "action", "scene": "s0", "question": "Where?"}
    own = {"id": id, "expected": "There.", "reply": reply, "correct": reply == "There.", "run": 0}
    return about | own | more


def verdict(id: str = "q0", total: float | None = 70.0, **more: Any) -> dict[str, Any]:
    """A row of verdicts.jsonl."""
    scored = {"status": "scored", "scores": [30.0, 40.0], "reason": ""}
    lost = {"status": "bad_reply", "scores": [], "reason": "no total"}
    own = {"id": id, "answer": 0, "answer_run": 0, "run": 0, "sheet": "planning", "total": total}
    return own | (scored if total is not None else lost) | more


def evaluation(
    folder: Path,
    answers: list[dict[str, Any]],
    rows: list[dict[str, Any]] | None = None,
    **about: Any,
) -> Path:
    """The folder of an evaluation, its data and pictures beside it."""
    data = folder.parent / "data"
    if rows is None:
        rows = [row(f"<image>{a['question']}", a["expected"], id=a["id"]) for a in answers]
        picture(data / "a.jpg", 1)
    facts = {"model": "world:student", "data": str(write(data / "a.jsonl", rows)), "format": "auto"}
    judge = {"model": "script:x", "criteria": CRITERIA}
    facts |= {"root": None, "images": "real", "judge": judge, "controls": ["black"]}
    write(folder / "evaluation.json", facts | about)
    write(folder / "answers.jsonl", answers)
    return folder


def large(folder: Path, count: int, scores: Mapping[str, Any]) -> Path:
    """Questions about six pictures each, a third of each kind, with verdicts and a control."""
    rows, answers, black, verdicts = [], [], [], []
    for n in range(count):
        (capability, template), scene = KINDS[n % 3], f"scene{n % 20}"
        question = f"Number {n}: what does <c1,CAM_FRONT,0.4000,0.6000> do?"
        expected = f"It is {n % 7}."
        reply = f"It is {n % 5}, as <c1,CAM_BACK,0.5000,0.5000> shows." if n % 4 else expected
        said = {"question_type": capability, "template": template, "scene": scene, "id": f"q{n}"}
        said |= {"images": [f"{scene}/{camera}.jpg" for camera in CAMERAS]}
        rows.append(six(question, expected) | said)
        about = {"capability": capability, "template": template, "scene": scene}
        about |= {"question": question, "expected": expected}
        answers.append(answer(f"q{n}", reply, **about, correct=n % 4 == 0))
        black.append(answer(f"q{n}", "Nothing." if n % 10 else reply, **about, correct=False))
        verdicts.append(verdict(f"q{n}", None if n % 50 == 0 else float(n % 101)))
    for n in range(20 * 6):
        picture(folder.parent / f"data/scene{n // 6}/{CAMERAS[n % 6]}.jpg", n)
    evaluation(folder, answers, rows)
    write(folder / "verdicts.jsonl", verdicts)
    write(folder / "black/answers.jsonl", black)
    write(folder / "scores.json", scores)
    return folder
