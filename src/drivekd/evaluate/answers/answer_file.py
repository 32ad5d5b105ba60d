"""The file of answers: a row per question and run, continued only with equals of what it holds."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drivekd.data.sample import Sample
from drivekd.evaluate.answers.answer import Answer, answer_of
from drivekd.files.writing import atomic_file, writing

#: what hashes that differ mean
_DIFFERS = {
    "model": "of another model, or of the same with other weights, type or chat template",
    "pictures": "about other pictures than there are now, or some of them are missing",
    "prompt": "to other words: the conversation or its system's turn has changed",
}
#: what tells answers of one file apart: id of the sample, run
Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Mark:
    """What an answer in a file depends on, so that nothing else is continued."""

    #: what all rows have in common: the model and how it is asked
    alike: Mapping[str, str | int | float]
    pictures: Mapping[str, str]  # digest of the pictures shown, by sample id
    prompts: Mapping[str, str]  # digest of the messages sent, by sample id

    def of(self, sample_id: str) -> dict[str, str | int | float]:
        """Return what a row holds beside its answer; only what is alike for an unknown sample."""
        digests = {"pictures": self.pictures, "prompt": self.prompts}
        known = {name: by_id[sample_id] for name, by_id in digests.items() if sample_id in by_id}
        return {**self.alike, **known}


def resume(out: Path, samples: Sequence[Sample], mark: Mark) -> dict[Key, Answer]:
    """Read the answers to these samples that a file holds, after which more can be appended.

    Replies are taken from the file, the rest from the samples, which may have changed.

    ValueError: the file holds answers of another mark or data set, or a line is no answer.
    """
    if not out.exists():
        return {}
    by_id = {sample.id: sample for sample in samples}
    known: dict[Key, Answer] = {}
    kept: dict[Key, Mapping[str, Any]] = {}
    for row in _rows(out):
        answer = _answer(row, out)
        key, sample = (answer.id, answer.run), by_id.get(answer.id)
        _refuse_others(row, answer, sample, mark, out)
        if sample is not None:
            answer = known.setdefault(key, answer_of(sample, answer.reply, answer.run))
        kept.setdefault(key, {**row, **asdict(answer)})
    _rewrite(out, list(kept.values()))
    return known


def append(out: Path, new: Sequence[Answer], mark: Mark) -> None:
    """Add answers to a file; all are on disk when this returns, none where it raises OSError."""
    text = "".join(_line({**asdict(answer), **mark.of(answer.id)}) for answer in new)
    with writing(out), out.open("ab", buffering=0) as file:
        end, rest = file.seek(0, os.SEEK_END), memoryview(text.encode())
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)  # onto half a line nothing can be appended
            raise


def write_answers(
    samples: Sequence[Sample], answers: Sequence[Answer], out: Path, whose: str
) -> None:
    """Write answers that no model gave, in their order, in place of those of the same kind.

    ValueError: the file holds answers of something else.
    """
    mark = Mark({"model": whose}, {}, {})
    resume(out, samples, mark)
    with atomic_file(out, sync=True) as draft:
        rows = (_line({**asdict(answer), **mark.of(answer.id)}) for answer in answers)
        draft.write_text("".join(rows), encoding="utf-8")


def _refuse_others(
    row: Mapping[str, Any], answer: Answer, sample: Sample | None, mark: Mark, out: Path
) -> None:
    expected = mark.of(answer.id)
    differs = ""
    if sample is not None and (answer.question, answer.expected) != (
        sample.question,
        sample.answer,
    ):
        differs = f"with another question or answer under the id {answer.id!r}"
    elif missing := [key for key in expected if key not in row]:
        differs = f"that do not say their {', '.join(missing)}, as earlier versions wrote them"
    elif (other := next((key for key in expected if row[key] != expected[key]), None)) is not None:
        default = f"with {other} {row[other]!r}, expected {expected[other]!r}"
        differs = _DIFFERS.get(other, default)
    if differs:
        raise ValueError(
            f"answers {out}: the file holds answers {differs}; write to another folder, or delete"
            " it to have all answered again"
        )


def _rows(path: Path) -> list[dict[str, Any]]:
    # Damage that is no UTF-8 is shown with the line it stands in.
    lines = path.read_text(encoding="utf-8", errors="backslashreplace").split("\n")
    complete = lines[:-1]  # what follows the last line break was never finished
    rows = []
    for number, line in enumerate(complete, start=1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(
                f"answers {path}, line {number}: expected one JSON object, got {line[:60]!r}"
                f" ({error}); delete the line or the file"
            ) from error
    return rows


def _answer(row: Mapping[str, Any], path: Path) -> Answer:
    fields = Answer.__dataclass_fields__
    missing = [name for name in fields if name not in row and name != "run"]
    if missing:
        raise ValueError(
            f"answers {path}: a row lacks {', '.join(missing)}; expected the fields"
            f" {', '.join(fields)}; delete the file and evaluate again"
        )
    texts = (row["id"], row["question"], row["expected"], row["reply"])
    if not all(isinstance(text, str) for text in texts) or type(row.get("run", 0)) is not int:
        raise ValueError(
            f"answers {path}: the row of id {row['id']!r:.60} holds no texts, or a run that is no"
            " number; delete the row or the file"
        )
    return Answer(**{name: row[name] for name in fields if name in row})


def _line(row: Mapping[str, Any]) -> str:
    # ASCII: a reply may hold half a surrogate pair, or what other readers take for a line break.
    return json.dumps(row) + "\n"


def _rewrite(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Leave complete rows only, each once."""
    text = "".join(_line(row) for row in rows)
    if text != out.read_text(encoding="utf-8", errors="backslashreplace"):
        with atomic_file(out, sync=True) as draft:
            draft.write_text(text, encoding="utf-8")
