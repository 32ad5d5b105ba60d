"""Read the result files of a run, which drivekd.report.page lists; a broken one is an error."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivekd.data.sample import CAPABILITIES

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Arm:
    """An arm's name on the page and a line about it."""

    key: str
    name: str
    what: str
    control: bool = False


#: the arms of the demo, in the order of the table
ARMS: tuple[Arm, ...] = (
    Arm("majority", "Majority answer", "most frequent training answer of each template", True),
    Arm("blind", "Trained blind", "cross-entropy, the same steps on grey pictures", True),
    Arm("student_base", "Student before", "the start of all four students"),
    Arm("ce_only", "Cross-entropy only", "the same steps without a teacher"),
    Arm("drivekd", "Drive-KD", "three teachers and AGP, the paper's assignment of layers"),
    Arm("full_everywhere", "Full maps", "full attention maps for all three capabilities"),
    Arm(
        "mismatched",
        "Mismatched maps",
        "Drive-KD, but each word gets the teacher's attention to the images of another word that"
        " sees the same ones; attention to text stays",
        True,
    ),
    Arm("teacher", "Teacher", "each capability's own teacher"),
    Arm("teacher_blind", "Teacher, blind", "the teachers' recipe on grey pictures", True),
)


@dataclass(frozen=True, slots=True)
class Results:
    """The results in the folder of a run; `study` is the folder of a teacher's pre-study."""

    folder: Path
    summary: Row | None
    about: Row
    scores: Mapping[str, Row]
    logs: Mapping[str, Sequence[Row]]
    answers: Mapping[str, Sequence[Row]]
    scenes: Sequence[Row] | None
    cases: Sequence[Row] | None
    study: Path | None = None
    prestudy: Row | None = None
    stability: Row | None = None
    maps: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)

    @property
    def of_a_run(self) -> bool:
        """Whether anything was trained or scored, not a teacher studied alone."""
        return self.summary is not None or bool(self.scores or self.logs)

    @property
    def arms(self) -> list[Arm]:
        """Arms that have scores, known ones first and in order."""
        keys = dict.fromkeys([*(self.summary or {}).get("scores", {}), *self.scores])
        known = {arm.key: arm for arm in ARMS if arm.key in keys}
        others = [Arm(key, key.replace("_", " "), "") for key in keys if key not in known]
        return [*known.values(), *others]


def read_results(folder: Path) -> Results:
    """Read everything that a run left in its folder.

    Raises:
        ValueError: the folder is not there, holds no result at all, or a file in it is broken.
    """
    if not folder.is_dir():
        raise ValueError(
            f"report of {folder}: no such folder; expected the output folder of a run, such as"
            " out/demo"
        )
    arms = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}
    studies = (p for p in (folder, folder / "prestudy") if (p / "prestudy.json").is_file())
    study = next(studies, None)
    arms = {folder.resolve().name: folder} | arms  # of a single `drivekd train` or `evaluate`
    cases = read_json(folder / "attention" / "cases.json", list)
    results = Results(
        folder=folder,
        summary=read_json(folder / "summary.json", dict),
        about=read_json(folder / "about.json", dict) or {},
        scores=_by_arm(arms, "scores.json", lambda path: read_json(path, dict)),
        logs=_by_arm(arms, "log.jsonl", read_lines),
        answers=_by_arm(arms, "answers.jsonl", read_lines),
        scenes=read_json(folder / "scenes.json", list),
        cases=cases,
        study=study,
        prestudy=read_json(study / "prestudy.json", dict) if study else None,
        stability=read_json(study / "stability.json", dict) if study else None,
        maps=_arrays(folder / "attention" / "maps.npz") if cases else {},
    )
    if not results.of_a_run and results.prestudy is None:
        raise ValueError(
            f"report of {folder}: no summary.json, scores.json, log.jsonl or prestudy.json, here or"
            " one folder below; expected the output folder of a run, such as out/demo"
        )
    return results


def _by_arm(folders: Mapping[str, Path], name: str, read: Any) -> dict[str, Any]:
    contents = {arm: read(folder / name) for arm, folder in folders.items()}
    return {arm: content for arm, content in contents.items() if content}


def read_json(path: Path, kind: type) -> Any:
    """Read a JSON file of this kind, None where there is none; a ValueError names a broken one."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"result file {path}: is not JSON ({error}); delete it or run that part again"
        ) from error
    if not isinstance(content, kind):
        raise ValueError(
            f"result file {path}: expected a JSON {'object' if kind is dict else 'list'}, got"
            f" {type(content).__name__}; delete it or run that part again"
        )
    return content


def read_lines(path: Path) -> list[dict[str, Any]] | None:
    """Read the rows of a JSONL file, None where there is none; a ValueError names a broken line.

    A last line without its line break is still being written, and left out.
    """
    if not path.is_file():
        return None
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(
                f"result file {path}, line {number}: is not JSON ({error}); delete the line"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(
                f"result file {path}, line {number}: expected a JSON object, got"
                f" {type(row).__name__}; delete the line"
            )
        rows.append(row)
    return rows


def _arrays(path: Path) -> dict[str, NDArray[np.floating]]:
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def series(rows: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
    """Return steps and values of the logged rows that have a quantity."""
    logged = [row for row in rows if key in row and "step" in row]
    return [float(row["step"]) for row in logged], [float(row[key]) for row in logged]


def capabilities_logged(logs: Mapping[str, Sequence[Row]], prefix: str) -> list[str]:
    """Return the names X for which some log has `prefix`X, the three known ones first."""
    keys = {key for rows in logs.values() for row in rows for key in row if key.startswith(prefix)}
    names = {key.removeprefix(prefix) for key in keys}
    return [c for c in CAPABILITIES if c in names] + sorted(names - set(CAPABILITIES))
