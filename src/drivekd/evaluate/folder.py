"""Reads the folder of an evaluation back, and refuses what is incomplete or broken.

DIR/evaluation.json   its settings: model, data, judge, corruption, …; may be missing
DIR/answers.jsonl     rows of `answer.Answer`
DIR/verdicts.jsonl    rows of `judge.Verdict`, where the answers were judged
DIR/black/ …          a control of the same layout; DIR/majority/ another one
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from drivekd.evaluate.answer import Answer, read_answers
from drivekd.evaluate.judge import Status, Verdict
from drivekd.evaluate.pairs import Given

#: settings of a judge on which its verdicts do not depend
_ASIDE = frozenset({"runs", "price", "max_cost", "retry_unscored", "key_env", "concurrency"})
_STATUS = get_args(Status)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one evaluation left in its folder."""

    folder: Path
    settings: Mapping[str, Any]
    given: Given

    @property
    def model(self) -> str | None:
        """The model's name, None where the settings do not tell."""
        found = self.settings.get("model")
        return found if isinstance(found, str) else None

    @property
    def judge(self) -> Mapping[str, Any] | None:
        """All that the verdicts depend on; None where the settings do not tell."""
        found = self.settings.get("judge")
        if not isinstance(found, Mapping):
            return None
        return {name: value for name, value in found.items() if name not in _ASIDE}

    @property
    def corruption(self) -> tuple[str, int] | None:
        """Name and severity; None for clean data.

        Raises:
            ValueError: the settings name none like that.
        """
        found = self.settings.get("corruption")
        if found is None:
            return None
        name, severity = (
            (found.get("name"), found.get("severity")) if isinstance(found, Mapping) else (0, 0)
        )
        if not isinstance(name, str) or type(severity) is not int:
            raise ValueError(
                f"{self.folder / 'evaluation.json'}: corruption {found!r:.60}; expected"
                ' {"name": text, "severity": number} or null'
            )
        return name, severity


def read_evaluation(folder: Path) -> Evaluation:
    """The settings, answers and verdicts of a folder.

    Raises:
        ValueError: there are no answers, some question has fewer runs than others, or a file is
            broken; the file and what is wrong are named.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected one that `drivekd evaluate` wrote")
    answers = _read_answers(folder / "answers.jsonl")
    verdicts = folder / "verdicts.jsonl"
    read = read_verdicts(verdicts) if verdicts.is_file() else None
    return Evaluation(folder, _settings(folder / "evaluation.json"), Given(answers, read))


def read_verdicts(path: Path) -> list[Verdict]:
    """Reads what `judge_answers` wrote.

    Raises:
        ValueError: the file is not there or a line is no verdict.
    """
    found = []
    for number, line in enumerate(_text(path).removesuffix("\n").split("\n"), start=1):
        try:
            found.append(_verdict(json.loads(line)))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"verdicts {path}, line {number}: {error}; judge again, what is paid for is kept"
            ) from None
    return found


def _verdict(row: Any) -> Verdict:
    """Raises TypeError or ValueError for what is no verdict."""
    verdict = Verdict(**{**row, "scores": tuple(row.get("scores", ()))})
    whole = (verdict.answer, verdict.run, verdict.answer_run)
    if type(verdict.id) is not str or any(type(number) is not int for number in whole):
        raise TypeError("expected a text as id, and whole numbers as answer, run and answer_run")
    if verdict.status not in _STATUS:
        raise ValueError(f"status {verdict.status!r:.30}, expected one of {', '.join(_STATUS)}")
    total = verdict.total
    if verdict.status != "scored":
        if total is not None:
            raise ValueError(f"{verdict.status} with a total")
    elif type(total) not in (int, float) or total is None or not 0 <= total <= 100:
        raise ValueError(f"total {total!r:.30} is not within 0 to 100")
    return verdict


def _read_answers(path: Path) -> list[Answer]:
    try:
        answers = read_answers(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"answers {path}: no UTF-8 text ({error.reason})") from None
    if not answers:
        raise ValueError(f"answers {path}: no complete row; evaluate again")
    runs: dict[str, set[int]] = {}
    for answer in answers:
        if wrong := _wrong(answer):
            raise ValueError(f"answers {path}: answer {answer.id!r:.40} has {wrong}")
        if answer.run in runs.setdefault(answer.id, set()):
            raise ValueError(f"answers {path}: {answer.id!r} has two answers in run {answer.run}")
        runs[answer.id].add(answer.run)
    every = set().union(*runs.values())
    if short := [id for id, mine in runs.items() if mine != every]:
        raise ValueError(
            f"answers {path}: {len(short)} of {len(runs)} questions, {short[0]!r} first, were not"
            f" answered in all of the {len(every)} runs; the same evaluation again completes them"
        )
    return answers


def _wrong(answer: Answer) -> str:
    """What of an answer is of the wrong kind, "" for nothing."""
    texts = {name: getattr(answer, name) for name in ("id", "question", "expected", "reply")}
    maybe = {name: getattr(answer, name) for name in ("capability", "template", "scene")}
    wrong = [name for name, value in texts.items() if type(value) is not str]
    wrong += [name for name, value in maybe.items() if not isinstance(value, str | None)]
    wrong += ["correct"] * (type(answer.correct) is not bool) + ["run"] * (
        type(answer.run) is not int
    )
    return f"{wrong[0]} {getattr(answer, wrong[0])!r:.40}" if wrong else ""


def _settings(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: no JSON ({error}); evaluate again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected names with values, got {type(found).__name__}")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
