"""Reads the folders of evaluations back; refuses what is broken, incomplete or does not compare.

DIR/evaluation.json   its settings: model, data, judge, corruption, …; may be missing
DIR/answers.jsonl     rows of `answer.Answer`
DIR/verdicts.jsonl    rows of `judge.Verdict`, where the answers were judged
DIR/black/ …          a control of the same layout; DIR/majority/ another one
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, cast, get_args

from drivekd.evaluate.answers.answer import Answer
from drivekd.evaluate.judging.judge import Status, Verdict
from drivekd.evaluate.pairs import Given

#: settings of a judge on which its verdicts do not depend
_ASIDE = frozenset({"runs"})
#: fields of an answer by which evaluations asked the same
_ALIKE = ("question", "expected", "capability", "scene")
_STATUS = get_args(Status)
_AGAIN = "evaluate again"


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
    path = folder / "answers.jsonl"
    answers = read_answers(path)
    _refuse_incomplete(answers, path)
    verdicts = folder / "verdicts.jsonl"
    read = read_verdicts(verdicts) if verdicts.is_file() else None
    return Evaluation(folder, _settings(folder / "evaluation.json"), Given(answers, read))


def read_answers(path: Path) -> list[Answer]:
    """Reads a file of answers; half a line at the end of an interrupted run is left out.

    Raises:
        ValueError: the file is not there or a line is no answer.
    """
    texts = ("id", "question", "expected", "reply")
    answers = []
    for row, where in _rows(path, "answers", Answer):
        _refuse_kinds(row, where, texts, maybe=("capability", "template", "scene"))
        if type(row["correct"]) is not bool:
            raise ValueError(f"{where}: correct {row['correct']!r:.40}, expected true or false")
        answers.append(Answer(**row))
    return answers


def _refuse_incomplete(answers: Sequence[Answer], path: Path) -> None:
    if not answers:
        raise ValueError(f"answers {path}: no complete row; evaluate again")
    runs: dict[str, set[int]] = {}
    for answer in answers:
        if answer.run in runs.setdefault(answer.id, set()):
            raise ValueError(f"answers {path}: {answer.id!r} has two answers in run {answer.run}")
        runs[answer.id].add(answer.run)
    every = set().union(*runs.values())
    if short := [id for id, mine in runs.items() if mine != every]:
        raise ValueError(
            f"answers {path}: {len(short)} of {len(runs)} questions, {short[0]!r} first, were not"
            f" answered in all of the {len(every)} runs; the same evaluation again completes them"
        )


def read_verdicts(path: Path) -> list[Verdict]:
    """Reads what `judge_answers` wrote.

    Raises:
        ValueError: the file is not there or a line is no verdict.
    """
    return [_verdict(row, where) for row, where in _rows(path, "verdicts", Verdict)]


def _verdict(row: Mapping[str, Any], where: str) -> Verdict:
    _refuse_kinds(row, where, texts=("id", "sheet", "reason"), numbers=("answer",))
    status, total, scores = row["status"], row.get("total"), row.get("scores", [])
    within = type(total) in (int, float) and 0 <= cast("float", total) <= 100
    if status not in _STATUS:
        raise ValueError(f"{where}: status {status!r:.30}, expected one of {', '.join(_STATUS)}")
    if status != "scored" and total is not None:
        raise ValueError(f"{where}: {status} with a total")
    if status == "scored" and not within:
        raise ValueError(f"{where}: total {total!r:.30} is not within 0 to 100")
    if not isinstance(scores, list) or any(type(each) not in (int, float) for each in scores):
        raise ValueError(f"{where}: scores {scores!r:.30}, expected a list of numbers")
    return Verdict(**{**row, "scores": tuple(scores)})


def _rows(
    path: Path, what: str, made: type[Answer] | type[Verdict]
) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows of a file, each with where it stands; half a line at the end is left out.

    A row holds the fields of what is made of it, and nothing else.
    """
    for number, line in enumerate(_text(path).split("\n")[:-1], start=1):
        where = f"{what} {path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: no JSON ({error}); {_AGAIN}") from None
        held = row if isinstance(row, dict) else {}
        wanted = [each.name for each in fields(made) if each.default is MISSING]
        if missing := [name for name in wanted if name not in held]:
            raise ValueError(f"{where}: a row lacks {', '.join(missing)}; {_AGAIN}")
        yield {each.name: held[each.name] for each in fields(made) if each.name in held}, where


def _refuse_kinds(
    row: Mapping[str, Any],
    where: str,
    texts: Iterable[str] = (),
    maybe: Iterable[str] = (),
    numbers: Iterable[str] = (),
) -> None:
    """Raises ValueError for a value that is no text, no text or null, or no whole number."""
    kinds = [(name, isinstance(row.get(name, ""), str), "a text") for name in texts]
    kinds += [(name, isinstance(row[name], str | None), "a text or null") for name in maybe]
    kinds += [
        (name, type(row.get(name, 0)) is int, "a whole number")
        for name in (*numbers, "run", "answer_run")
    ]
    for name, right, expected in kinds:
        if not right:
            raise ValueError(f"{where}: {name} {row[name]!r:.40}, expected {expected}; {_AGAIN}")


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


def refuse_other_questions(evaluations: Sequence[Evaluation]) -> None:
    """Raises ValueError unless all answer the questions of the first; the order does not count."""
    first, *others = evaluations
    asked = {answer.id: answer for answer in first.given.answers}
    for other in others:
        theirs = {answer.id: answer for answer in other.given.answers}
        _refuse_missing(first, asked, other, theirs)
        _refuse_missing(other, theirs, first, asked)
        for id, answer in asked.items():
            for field in _ALIKE:
                if (mine := getattr(answer, field)) != (its := getattr(theirs[id], field)):
                    raise ValueError(
                        f"comparison: {field} of {id!r} is {mine!r:.60} in {first.folder} and"
                        f" {its!r:.60} in {other.folder}; evaluate both on one file"
                    )


def _refuse_missing(
    one: Evaluation, mine: dict[str, Answer], other: Evaluation, theirs: dict[str, Answer]
) -> None:
    if missing := [id for id in mine if id not in theirs]:
        raise ValueError(
            f"comparison: {other.folder} lacks {len(missing)} of the {len(mine)} questions of"
            f" {one.folder}, {missing[0]!r} first; evaluate both on one file, to the end"
        )


def refuse_other_judges(evaluations: Sequence[Evaluation]) -> list[str]:
    """What is to be said of the judge of all, [] for nothing.

    Raises:
        ValueError: they have different judges, or those of some are not recorded.
    """
    first, *others = evaluations
    for other in others:
        mine, its = first.judge, other.judge
        if mine != its:
            names = sorted({*(mine or {}), *(its or {})})
            differs = [n for n in names if (mine or {}).get(n) != (its or {}).get(n)]
            said = ", ".join(
                f"{n} {(mine or {}).get(n)!r:.60} and {(its or {}).get(n)!r:.60}" for n in differs
            )
            if silent := [each.folder for each in (first, other) if each.judge is None]:
                said = f"{silent[0]}/evaluation.json is missing or names none"
            raise ValueError(
                f"comparison: {first.folder} and {other.folder} have different judges ({said});"
                " judge both alike, or compare accuracy alone"
            )
    if first.judge is None:
        return ["judged: no evaluation.json tells who judged; the same judge is taken for granted"]
    return []
