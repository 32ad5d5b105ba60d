"""An evaluation from questions to scores: answers, controls, verdicts, all kept in one folder.

| file | what it holds |
|---|---|
| `answers.jsonl` | a row per question and run |
| `verdicts.jsonl` | a row per answer and run of the judge; `verdicts.sqlite` keeps what was paid |
| `black/`, `majority/` | the same of the two controls |
| `predictions.json` | the answers in DriveBench's format, one file per run |
| `scores.json`, `evaluation.json` | the scores; what was asked of whom |

Everything is continued after an interruption: the same command makes only what is missing.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from drivekd.data.corrupt.run import corruption_of
from drivekd.data.formats.readers import read
from drivekd.data.sample import Sample
from drivekd.evaluate.answers.answer import Answer
from drivekd.evaluate.answers.answer_file import write_answers
from drivekd.evaluate.answers.asking import Asking
from drivekd.evaluate.answers.predictions import write_predictions
from drivekd.evaluate.answers.who import Who
from drivekd.evaluate.folder import read_answers
from drivekd.evaluate.judging.choice import Judging, refuse_deaf
from drivekd.evaluate.judging.judge import Verdict, judge_answers, write_verdicts
from drivekd.evaluate.pairs import Given
from drivekd.evaluate.results import Results, as_json, results
from drivekd.evaluate.score import majority
from drivekd.files.lock import locked
from drivekd.files.writing import write_json

#: main answers lie in the folder itself
MAIN, BLACK, MAJORITY = "", "black", "majority"
ANSWERS, VERDICTS = "answers.jsonl", "verdicts.jsonl"


@dataclass(frozen=True, slots=True)
class Questions:
    """Which questions are asked.

    Attributes:
        path: the data file.
        format: of it, as for `drivekd.data.formats.readers.read`.
        root: folder that relative image paths start from.
        max_samples: only so many, drawn by the seed.
        seed: of that draw.
    """

    path: Path
    format: str = "auto"
    root: Path | None = None
    max_samples: int | None = None
    seed: int = 0

    def samples(self) -> list[Sample]:
        """The questions, in the file's order.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a row is wrong.
        """
        found = list(read(self.path, self.format, root=self.root))
        if self.max_samples is None or self.max_samples >= len(found):
            return found
        places = random.Random(self.seed).sample(range(len(found)), self.max_samples)
        return [found[i] for i in sorted(places)]


@dataclass(frozen=True, slots=True)
class Controls:
    """What every score is put beside.

    The same model shown black pictures, and the majority.

    Attributes:
        train: questions whose most frequent answers are given by template; without such a file,
            the majority of the evaluated questions themselves, known in hindsight.
    """

    train: Path | None = None


def evaluate(
    who: Who,
    questions: Questions,
    out: Path,
    asking: Asking,
    *,
    judging: Judging | None = None,
    controls: Controls | None = None,
) -> Results:
    """Let a model answer, judge the answers where a judge is named, and score them.

    Args:
        who: answers: a loaded model, a server, or the replies in the data file.
        questions: that are asked.
        out: folder of the evaluation.
        asking: how they are asked.
        judging: the judge; None for scores without one.
        controls: beside the scores; None for none.

    Raises:
        FileNotFoundError: there is no such data file.
        ValueError: the data, the model, answers of another evaluation in `out`, or another process
            in it.
        ChatError: a server refuses everybody; what was answered and judged is kept.
    """
    samples = questions.samples()
    train = list(read(controls.train)) if controls is not None and controls.train else samples
    with locked(out):
        _refuse_fewer(out / ANSWERS, samples, asking)
        if judging is not None and not (out / "verdicts.sqlite").exists():
            refuse_deaf(judging.judge)
        given = {MAIN: who.answer(samples, asking, out / ANSWERS)}
        if controls is not None:
            given |= _controls(who, samples, train, asking, out)
        for name in (MAIN, BLACK, MAJORITY):  # of an earlier judge; what was paid is in the store
            (out / name / VERDICTS).unlink(missing_ok=True)
        write_json(
            out / "evaluation.json",
            _settings(who, questions, asking)
            | {"controls": [name for name in given if name], "judge": judging and _judge(judging)},
        )
        _export(samples, given[MAIN], questions.root or questions.path.parent, out)
        verdicts = {} if judging is None else _judged(given, samples, judging, out)
        sides = {name: Given(answers, verdicts.get(name)) for name, answers in given.items()}
        judge = judging.judge.identity().get("model") if judging is not None else None
        found = results(samples, sides.pop(MAIN), sides, judge)
        write_json(out / "scores.json", as_json(found))
    return found


def _refuse_fewer(path: Path, samples: Sequence[Sample], asking: Asking) -> None:
    """One folder holds one evaluation: whoever reads it takes all of its answers.

    Raises:
        ValueError: the file has answers to questions, or of runs, that are not asked for now.
    """
    if not path.is_file():
        return
    asked = {(sample.id, run) for sample in samples for run in asking.distinct_runs}
    more = [a for a in read_answers(path) if (a.id, a.run) not in asked]
    if more:
        raise ValueError(
            f"answers {path}: {len(more)} of them, {more[0].id!r} of run {more[0].run} first, are"
            " not asked for now; ask for as many questions and runs as before, or write elsewhere"
        )


def _controls(
    who: Who, samples: Sequence[Sample], train: Sequence[Sample], asking: Asking, out: Path
) -> dict[str, list[Answer]]:
    given = {}
    if who.asked and asking.images == "real":
        blind = replace(asking, images="black", runs=1, temperature=0.0)
        given[BLACK] = who.answer(samples, blind, out / BLACK / ANSWERS)
    given[MAJORITY] = majority(train, samples)
    write_answers(samples, given[MAJORITY], out / MAJORITY / ANSWERS, "majority")
    return given


def _export(samples: Sequence[Sample], answers: Sequence[Answer], root: Path, out: Path) -> None:
    for run in sorted({answer.run for answer in answers}):
        one = [answer for answer in answers if answer.run == run]
        name = f"-run{run}" if run else ""
        write_predictions(samples, one, root, out / f"predictions{name}.json")


def _judged(
    given: Mapping[str, Sequence[Answer]], samples: Sequence[Sample], judging: Judging, out: Path
) -> dict[str, list[Verdict]]:
    """Verdicts of main answers and controls, under one limit of cost, in a file of each."""
    together = [answer for answers in given.values() for answer in answers]
    verdicts = iter(judge_answers(together, samples, judging.judge, out, judging.settings))
    apart: dict[str, list[Verdict]] = {}
    for name, answers in given.items():
        apart[name] = list(islice(verdicts, len(answers) * judging.settings.runs))
        write_verdicts(apart[name], out / name / VERDICTS)
    return apart


def _settings(who: Who, questions: Questions, asking: Asking) -> dict[str, Any]:
    return {
        "model": who.name,
        **who.settings,
        "data": str(questions.path.absolute()),
        "format": questions.format,
        "root": str(questions.root.absolute()) if questions.root is not None else None,
        "max_samples": questions.max_samples,
        **(asdict(asking) if who.asked else {}),
        "corruption": corruption_of(questions.path),
        "versions": {name: version(name) for name in ("drivekd", "torch", "transformers")},
    }


def _judge(judging: Judging) -> dict[str, Any]:
    """Who judged and by what; verdicts are compared only where all of it but `runs` is the same."""
    sheets = judging.settings.sheets
    criteria = {
        name: [[c.name, c.points] for c in sheet.criteria] for name, sheet in sheets.items()
    }
    shown = [[asdict(sheet) for sheet in sheets.values()], judging.settings.descriptions]
    words = json.dumps(shown, sort_keys=True)
    return {
        **judging.judge.identity(),
        "runs": judging.settings.runs,
        "criteria": criteria,
        "prompts": hashlib.blake2b(words.encode(), digest_size=8).hexdigest(),
    }
