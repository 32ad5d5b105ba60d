"""Write the page of an evaluation: every answer with its pictures, to filter and to look through.

One HTML file beside a folder of small pictures; it opens from disk and asks the network for
nothing. It is made of the data file that the evaluation names and, in the evaluation's folder:

evaluation.json
    {"model", "data": path, "format", "root": path or null, "images": "real", "judge": {"criteria":
    {sheet: [[name, points], …]}, …} or null}; its other keys are shown as they are.
answers.jsonl (`drivekd evaluate`)
    a row per question and run: id, capability, template, scene, question, expected, reply, correct,
    run (0 where absent).
verdicts.jsonl (optional; `drivekd.evaluate.judging.judge`)
    a row per answer and run of the judge: id, answer_run, run, sheet, status, scores, total,
    reason.
scores.json (optional)
    see `drivekd.report.answer_scores`.
CONTROL/answers.jsonl (optional)
    answers of a control, such as `black` or `majority`, to the same questions.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from drivekd.data.formats.readers import read
from drivekd.data.formats.rows import one_line
from drivekd.data.sample import Sample
from drivekd.report.answer_rows import Judged, content, number, text_of
from drivekd.report.answer_scores import score_table
from drivekd.report.html import write_html
from drivekd.report.results import Row, read_json, read_lines
from drivekd.report.thumbnails import thumbnails

CONTROLS = ("black", "majority")
_FIELDS = ("id", "question", "expected", "reply", "correct")


def write_answers(folder: Path) -> Path:
    """Write `report.html` and `pictures/` into the folder of an evaluation; return the page.

    Where the data file or a picture is gone, the page says so in its place.

    Raises:
        ValueError: evaluation.json or answers.jsonl is missing, or a result file is broken.
        OSError: a file cannot be written.
    """
    about = read_json(folder / "evaluation.json", dict)
    questions = _by_question(folder / "answers.jsonl")
    if about is None or not questions:
        lacks = "answers.jsonl with an answer" if about is not None else "evaluation.json"
        raise ValueError(f"report of {folder}: no {lacks}; expected the folder of an evaluation")
    samples, missing = _samples(about, questions)
    paths = [path for sample in samples.values() for path in sample.images.values()]
    judged = Judged(_verdicts(folder / "verdicts.jsonl"), _criteria(about))
    files = {name: folder / name / "answers.jsonl" for name in _controls(about)}
    controls = {name: _by_question(path) for name, path in files.items() if path.is_file()}
    rows = content(questions, samples, thumbnails(paths, folder), judged, controls)
    script = Path(__file__).with_name("answers.js").read_text(encoding="utf-8")
    return write_html(
        "answers.html.j2",
        folder / "report.html",
        about=_facts(about),
        scores=score_table(read_json(folder / "scores.json", dict) or {}),
        missing=missing,
        data=rows,
        script=Markup(script),  # noqa: S704  ours, and no template
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _by_question(path: Path) -> dict[str, list[Row]]:
    """Group the answers of a file by question, in the order of the file."""
    questions: dict[str, list[Row]] = {}
    for place, row in enumerate(read_lines(path) or [], start=1):
        if lacks := [name for name in _FIELDS if name not in row]:
            raise ValueError(
                f"result file {path}, row {place}: expected an answer, with {', '.join(lacks)};"
                " delete the file and evaluate again"
            )
        questions.setdefault(text_of(row["id"]), []).append(row)
    return questions


def _controls(about: Row) -> list[str]:
    """Name the controls that an evaluation has, each in another folder."""
    named = about.get("controls")
    return [name for name in CONTROLS if isinstance(named, list) and name in named]


def _verdicts(path: Path) -> dict[tuple[str, str], list[Row]]:
    """Group the verdicts of a file by question and run of the answer."""
    verdicts: dict[tuple[str, str], list[Row]] = {}
    for place, row in enumerate(read_lines(path) or [], start=1):
        if not {"id", "status"} <= set(row):
            raise ValueError(
                f"result file {path}, row {place}: expected a verdict, with id and status; delete"
                " the file and judge again"
            )
        key = text_of(row["id"]), text_of(row.get("answer_run", 0))
        verdicts.setdefault(key, []).append(row)
    return verdicts


def _criteria(about: Row) -> dict[str, list[tuple[str, float | None]]]:
    """Read each sheet's criteria: names and most points."""
    judge = about.get("judge")
    sheets = judge.get("criteria") or {} if isinstance(judge, Mapping) else {}
    try:
        return {
            text_of(sheet): [(text_of(name), number(points)) for name, points in rows]
            for sheet, rows in sheets.items()
        }
    except (AttributeError, TypeError, ValueError):
        raise ValueError(
            "result file evaluation.json: judge.criteria must map names of sheets to lists of"
            f" [name, points], got {sheets!r:.60}"
        ) from None


def _samples(about: Row, questions: Mapping[str, Sequence[Row]]) -> tuple[dict[str, Sample], str]:
    """Read the samples of the questions, and why there are none where the data file is gone.

    One whose question has changed is left out: its pictures need not be those shown.
    """
    samples: dict[str, Sample] = {}
    data, format, root = (text_of(about.get(name)) for name in ("data", "format", "root"))
    try:
        for sample in read(data, format or "auto", root=root or None):
            if sample.id in questions and sample.question == questions[sample.id][0]["question"]:
                samples[sample.id] = sample
    except (OSError, ValueError) as error:
        return samples, one_line(str(error))
    return samples, ""


def _facts(about: Row) -> dict[str, str]:
    """Write evaluation.json in lines; the judge's sheets are shown with the verdicts."""
    facts = {}
    for name, value in about.items():
        if isinstance(value, Mapping):
            inner = {k: v for k, v in value.items() if v is not None and k != "criteria"}
            value = ", ".join(f"{text_of(k)} {text_of(v)}" for k, v in inner.items())
        if isinstance(value, list):
            value = ", ".join(map(text_of, value))
        if value not in (None, "", "auto"):
            facts[name.replace("_", " ")] = text_of(value)
    return facts
