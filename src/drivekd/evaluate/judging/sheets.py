"""What a judge is asked to weigh: criteria and points per kind of question, and users' own rubrics.

Criteria and points are facts of the public benchmark [paper: DriveBench]; the words are ours, and
`perception_open` is our object-centred reading of a sheet that asks about actions there (kept as
`perception_open_public`). A rubric file replaces the whole prompt of the kinds that it names.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from drivekd.data.sample import Sample

#: a line of a rubric's score sheet: number, name and points
_LINE = re.compile(
    r"^[ \t]*(\d{1,2})\.[ \t]*([^\n(]{1,80}?)[ \t]*\((\d{1,3})[ \t]points?\)", re.MULTILINE
)
_YES_NO = re.compile(r"\s*(?:yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Criterion:
    """One line of a sheet: what is weighed, the most points, and what earns them."""

    name: str
    points: int
    asks: str = ""


@dataclass(frozen=True, slots=True)
class Sheet:
    """The criteria of one kind of question; `template` is the prompt of a user's rubric.

    Raises:
        ValueError: the points are not 100 in all.
    """

    name: str
    criteria: tuple[Criterion, ...]
    note: str = ""
    template: str | None = None

    def __post_init__(self) -> None:
        if self.total != 100:
            points = " + ".join(str(criterion.points) for criterion in self.criteria)
            raise ValueError(
                f"sheet {self.name}: its points are {points} = {self.total}, expected 100 in all,"
                " for verdicts are out of 100"
            )

    @property
    def total(self) -> int:
        return sum(criterion.points for criterion in self.criteria)


_ALONE = "Without an explanation, every criterion but the first gets 0."


def _sheet(name: str, *rows: tuple[str, int, str], note: str = "") -> Sheet:
    return Sheet(name, tuple(Criterion(*row) for row in rows), note)


_ALL = (
    _sheet(
        "perception_choice",
        ("answer correctness", 50, "all points for the option of the reference, else 0"),
        ("object recognition", 10, "the objects that matter are named and described as they are"),
        ("location and orientation", 15, "where they are and face, seen from the ego vehicle"),
        ("environmental conditions", 15, "weather, light or occlusion, as far as they matter"),
        ("clarity of reasoning", 10, "the explanation is ordered and easy to follow"),
        note=_ALONE,
    ),
    _sheet(
        "perception_open",
        ("objects found", 20, "the objects of the reference are there, and none is invented"),
        ("category and look", 20, "kind and appearance of each agree with the reference"),
        ("place", 15, "camera, side and distance of each agree with the reference"),
        ("state", 15, "moving, standing or signalling, as in the reference"),
        ("conciseness and clarity", 20, "short and without doubt about what is meant"),
        ("grammar", 10, "correct sentences"),
    ),
    _sheet(
        "perception_open_public",
        ("action alignment", 20, "the action is that of the reference; none stated, no points"),
        ("motion precision", 20, "speed and its change agree with the reference"),
        ("driving context", 15, "what is said fits the traffic situation"),
        ("situational awareness", 15, "other road users and obstacles are taken into account"),
        ("conciseness and clarity", 20, "short and without doubt about what is meant"),
        ("grammar", 10, "correct sentences"),
    ),
    _sheet(
        "prediction_yes_no",
        ("answer", 40, "all points for the same yes or no as the reference, else 0"),
        ("object category", 15, "the kind of object is right"),
        ("appearance", 15, "colour, size and shape are right"),
        ("position and motion", 15, "where it is and how it moves is right"),
        ("explanation", 15, "the reason given supports the answer"),
        note=_ALONE,
    ),
    _sheet(
        "prediction_open",
        ("objects and priority order", 20, "the reference's objects, in its order"),
        ("category and description", 20, "kind and look of each"),
        ("state", 15, "what each is doing"),
        ("recommended action", 15, "what the ego vehicle should do about each"),
        ("logical flow", 20, "one thing follows from the other"),
        ("clarity and grammar", 10, "readable and correct"),
    ),
    _sheet(
        "planning",
        ("action", 40, "the ego vehicle's action is that of the reference or equal to it"),
        ("reasoning", 20, "why this action is right"),
        ("probability or confidence", 15, "how likely or safe it is, where the reference says so"),
        ("context and safety", 15, "obstacles, road users and consequences are considered"),
        ("conciseness and clarity", 10, "short and clear"),
    ),
    _sheet(
        "behavior_choice",
        ("answer", 50, "all points for the option of the reference, else 0"),
        ("behavioural understanding", 15, "direction and speed of the ego vehicle are understood"),
        ("reasoning", 15, "what is seen is a reason for the answer"),
        ("contextual relevance", 10, "what is said belongs to this scene"),
        ("clarity and grammar", 10, "readable and correct"),
    ),
)
SHEETS: Mapping[str, Sheet] = {sheet.name: sheet for sheet in _ALL}
#: sheets whose first criterion is all or nothing, and can be checked without a judge
EXACT_FIRST = frozenset({"perception_choice", "prediction_yes_no", "behavior_choice"})
#: what the constants of DriveBench's own prompt file are called [public benchmark]
_PUBLIC = {
    "PERCEPTION_MCQ_PROMPT": "perception_choice",
    "PERCEPTION_VQA_PROMPT": "perception_open",
    "PREDICTION_MCQ_PROMPT": "prediction_yes_no",
    "PREDICTION_VQA_PROMPT": "prediction_open",
    "PLANNING_VQA_PROMPT": "planning",
    "BEHAVIOR_MCQ_PROMPT": "behavior_choice",
}


def sheet_name(sample: Sample, options: Mapping[str, str]) -> str | None:
    """Which sheet a question is weighed by; None where its capability is not known."""
    if sample.capability == "planning":
        return "planning"
    if sample.capability == "perception":
        return "perception_choice" if options else "perception_open"
    if sample.capability == "reasoning":
        if options:
            return "behavior_choice"
        return "prediction_yes_no" if _YES_NO.match(sample.answer or "") else "prediction_open"
    return None


def read_rubric(path: Path) -> dict[str, Sheet]:
    """The sheets with those of a user's file in place of ours.

    A YAML file maps names of sheets to prompts; of a Python file only the string constants assigned
    at its top level are read, by parsing: it is never run. A prompt holds {QUESTION}, {GT} and
    {PRED}, may hold {DESC}, and lists its criteria as `1. Name (50 points):`.

    Raises:
        ValueError: the file cannot be read, a prompt lacks one of these, gives one criterion two
            different points, or its points are not 100 in all.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = _constants(text) if path.suffix == ".py" else yaml.safe_load(text)
    except (OSError, SyntaxError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"rubric {path}: cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"rubric {path}: expected names of sheets with their prompts")
    named = {_PUBLIC.get(str(name), str(name)): prompt for name, prompt in found.items()}
    if path.suffix == ".py":  # it may hold other strings too
        named = {name: prompt for name, prompt in named.items() if name in SHEETS}
    unknown = sorted(set(named) - set(SHEETS))
    if unknown or not named:
        what = f"sheet {unknown[0]!r}" if unknown else "none of its strings is one"
        raise ValueError(f"rubric {path}: {what}; expected names among {', '.join(SHEETS)}")
    return {**SHEETS, **{name: _own(path, name, prompt) for name, prompt in named.items()}}


def _constants(text: str) -> dict[str, str]:
    return {
        target.id: node.value.value
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _own(path: Path, name: str, prompt: object) -> Sheet:
    if not isinstance(prompt, str):
        raise ValueError(f"rubric {path}, {name}: expected a text, got {type(prompt).__name__}")
    lacks = [part for part in ("{QUESTION}", "{GT}", "{PRED}") if part not in prompt]
    if lacks:
        raise ValueError(f"rubric {path}, {name}: the prompt has no {', '.join(lacks)}")
    rows: dict[int, Criterion] = {}
    for number, what, most in _LINE.findall(prompt):
        first = rows.setdefault(int(number), Criterion(what, int(most)))
        if first.points != int(most):
            raise ValueError(
                f"rubric {path}, {name}: criterion {number} has {first.points} points as"
                f" {first.name!r} and {most} as {what!r}; expected one number"
            )
    if sorted(rows) != list(range(1, len(rows) + 1)) or not rows:
        raise ValueError(
            f"rubric {path}, {name}: expected criteria `1. Name (50 points):` numbered from 1,"
            f" got {sorted(rows)}"
        )
    try:
        return Sheet(name, tuple(rows[number] for number in sorted(rows)), template=prompt)
    except ValueError as error:
        raise ValueError(f"rubric {path}, {error}") from None
