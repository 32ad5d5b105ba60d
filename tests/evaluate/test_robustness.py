from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drivekd.evaluate import robustness as measuring
from drivekd.evaluate.answers.answer import Answer
from drivekd.evaluate.compare import run
from drivekd.evaluate.folder import read_evaluation
from drivekd.evaluate.robustness import Robustness, table
from evaluations import a_folder, a_verdict, an_answer

CAPABILITIES = ("perception", "reasoning", "planning")


def robustness(folders: list[Path], *, judged: bool = True) -> Robustness:
    evaluations = [read_evaluation(folder) for folder in folders]
    return measuring.robustness(evaluations, judged=judged)


def asked(right: int) -> list[Answer]:
    """Of the ten questions of a capability in a scene the first are right; 6 scenes."""
    return [
        an_answer(f"{s}/{c}/{q}", q < right - s % 2, scene=f"s{s}", capability=c)
        for s in range(6)
        for c in CAPABILITIES
        for q in range(10)
    ]


def evaluated(root: Path, name: str, right: int, corruption: Any = None, **more: Any) -> Path:
    settings = {"model": "student", "corruption": corruption} | more
    return a_folder(root / name, asked(right), settings=settings)


def fog(severity: int) -> dict[str, Any]:
    return {"name": "Fog", "severity": severity}


def test_falls_from_clean_and_their_mean(tmp_path: Path) -> None:
    folders = [
        evaluated(tmp_path, "fog2", 7, fog(2)),
        evaluated(tmp_path, "clean", 9),
        evaluated(tmp_path, "fog5", 5, fog(5)),
        evaluated(tmp_path, "none", 2, {"name": "NoImage", "severity": 4}),
    ]
    found = robustness(folders)
    falls = {fall.corruption: fall.groups["average"] for fall in found.falls}
    assert list(falls) == ["Fog 2", "Fog 5", "NoImage 4", "mean of 2"]
    assert found.clean.endswith("clean")
    assert [round(gap.mean, 6) for gap in falls.values()] == [20, 40, 70, 30]
    assert falls["Fog 2"].mine == pytest.approx(85) and falls["Fog 2"].theirs == pytest.approx(65)
    assert falls["mean of 2"].theirs == pytest.approx(55)
    assert set(found.falls[0].groups) == {*CAPABILITIES, "average", "everything"}
    text = table(found)
    assert "Fog 5" in text and "45.0 -40.0 [-40.0, -40.0]" in text
    assert "mean of 2" in text


def test_compare_tells_robustness_where_it_is_one_model(tmp_path: Path) -> None:
    clean, corrupted = evaluated(tmp_path, "clean", 9), evaluated(tmp_path, "fog", 5, fog(5))
    text = run([clean, corrupted], tmp_path / "out.json")
    assert "robustness of student" in text and "fog is worse than clean" in text
    found = json.loads((tmp_path / "out.json").read_text())["robustness"]
    assert found["falls"][0]["groups"]["planning"]["mean"] == pytest.approx(40)
    other = evaluated(tmp_path, "other", 5, fog(5), model="teacher")
    assert "robustness" not in run([clean, other])
    assert "robustness" not in run([corrupted, other])


def test_judged_falls(tmp_path: Path) -> None:
    folders = []
    for name, level, corruption in (("clean", 60.0, None), ("fog", 45.0, fog(5))):
        answers = asked(5)
        verdicts = [a_verdict(answer.id, level) for answer in answers]
        settings = {"model": "student", "corruption": corruption, "judge": {"model": "j"}}
        folders.append(a_folder(tmp_path / name, answers, verdicts, settings))
    falls = {fall.measure: fall.groups["average"].mean for fall in robustness(folders).falls}
    assert falls == {"accuracy": pytest.approx(0), "judged": pytest.approx(15)}
    assert {fall.measure for fall in robustness(folders, judged=False).falls} == {"accuracy"}


def test_what_is_no_robustness_is_refused(tmp_path: Path) -> None:
    clean, fogs = evaluated(tmp_path, "clean", 9), evaluated(tmp_path, "fog", 5, fog(5))
    again = evaluated(tmp_path, "again", 5, fog(5))
    other = evaluated(tmp_path, "other", 5, fog(4), model="teacher")
    untold = evaluated(tmp_path, "untold", 5, fog(4), model=None)
    for folders in ([clean], [fogs, again], [clean, fogs, again], [clean, other], [clean, untold]):
        with pytest.raises(ValueError, match="one model"):
            robustness(folders)
    with pytest.raises(ValueError, match="one model"):
        robustness([])


@pytest.mark.parametrize("corruption", ["Fog", {"name": "Fog"}, {"severity": 3}, 5, [1]])
def test_a_corruption_that_is_none_is_refused(tmp_path: Path, corruption: Any) -> None:
    broken = evaluated(tmp_path, "broken", 5, corruption)
    with pytest.raises(ValueError, match=r"broken/evaluation\.json: corruption"):
        run([evaluated(tmp_path, "clean", 9), broken])
