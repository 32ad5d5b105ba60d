from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivekd.evaluate import compare as comparing
from drivekd.evaluate.answers.answer import Answer
from drivekd.evaluate.compare import Comparison, run, table
from drivekd.evaluate.judging.judge import Verdict
from evaluations import a_folder, a_verdict, an_answer

CAPABILITIES = ("perception", "reasoning", "planning")
JUDGE = {"model": "judge", "temperature": 0.2, "runs": 5}


def compare(folders: Sequence[Path], *, judged: bool = True) -> Comparison:
    return comparing.compare(comparing.read_evaluations(folders), judged=judged)


def asked(skill: float, seed: int = 0, scenes: int = 20) -> list[Answer]:
    """Right as often as skill says, six questions a scene."""
    rng = np.random.default_rng(seed)
    return [
        an_answer(
            f"{s}/{q}", bool(rng.random() < skill), scene=f"s{s}", capability=CAPABILITIES[q % 3]
        )
        for s in range(scenes)
        for q in range(6)
    ]


def points(answers: list[Answer], level: float, seed: int = 0) -> list[Verdict]:
    rng = np.random.default_rng(seed)
    return [
        a_verdict(answer.id, float(np.clip(rng.normal(level, 8), 0, 100))) for answer in answers
    ]


def test_better_and_worse(tmp_path: Path) -> None:
    one = a_folder(tmp_path / "one", asked(0.4), settings={"model": "m/one"})
    other = a_folder(tmp_path / "other", asked(0.8, 1), settings={"model": "m/other"})
    found = compare([one, other])
    assert found.models == {"one": "m/one", "other": "m/other"}
    assert [row.group for row in found.rows] == [*CAPABILITIES, "average", "everything"]
    assert all(row.outcome == "better" and row.gap.mean > 20 for row in found.rows)
    back = compare([other, one])
    assert all(row.outcome == "worse" for row in back.rows)
    for there, here in zip(found.rows, back.rows, strict=True):
        assert here.gap.mean == pytest.approx(-there.gap.mean)
        assert (here.gap.low, here.gap.high) == pytest.approx((-there.gap.high, -there.gap.low))
    text = run([one, other])
    gap = found.rows[-1].gap
    assert (
        f"other is better than one by {gap.mean:.1f} points [{gap.low:.1f}, {gap.high:.1f}]" in text
    )
    assert "beyond noise (p < .001" in text
    assert f"one is worse than other by {gap.mean:.1f} points [{gap.low:.1f}" in run([other, one])


def test_noise_is_noise(tmp_path: Path) -> None:
    one = a_folder(tmp_path / "one", asked(0.6))
    other = a_folder(tmp_path / "other", asked(0.6, 1))
    found = compare([one, other])
    assert {row.outcome for row in found.rows} == {"not distinguishable"}
    assert "other is not distinguishable from one" in run([one, other])
    same = compare([one, a_folder(tmp_path / "same", asked(0.6))])
    assert all((row.gap.mean, row.p) == (0, 1) for row in same.rows)


def test_runs_may_differ_in_number_and_order_does_not_count(tmp_path: Path) -> None:
    one = a_folder(tmp_path / "one", asked(0.6))
    runs = [an_answer(a.id, a.correct, r, scene=a.scene, capability=a.capability)
            for r in (1, 0) for a in reversed(asked(0.6))]  # fmt: skip
    found = compare([one, a_folder(tmp_path / "runs", runs)])
    assert all((row.gap.mean, row.gap.n > 0) == (0, True) for row in found.rows)
    assert found.rows[-1].gap.n == 120


def test_three_models_are_corrected_for(tmp_path: Path) -> None:
    skills = {"one": 0.5, "two": 0.62, "three": 0.5}
    folders = [
        a_folder(tmp_path / name, asked(skill, i)) for i, (name, skill) in enumerate(skills.items())
    ]
    three = [row for row in compare(folders).rows if row.group == "everything"]
    alone = [compare([folders[0], each]).rows[-1] for each in folders[1:]]
    assert [row.gap for row in three] == [row.gap for row in alone]
    small, large = sorted(row.p or 0 for row in alone)
    corrected = sorted(row.p or 0 for row in three)
    assert corrected[0] == pytest.approx(min(1, 2 * small)) and corrected[0] > small
    assert corrected[1] == pytest.approx(max(large, 2 * small))


def test_judged_scores_are_compared_where_all_are_judged(tmp_path: Path) -> None:
    answers, settings = asked(0.5), {"judge": JUDGE}
    one = a_folder(tmp_path / "one", answers, points(answers, 40), settings)
    verdicts = points(answers, 55, 1)
    verdicts[0] = a_verdict(answers[0].id, None)
    other = a_folder(tmp_path / "other", answers, verdicts, {"judge": JUDGE | {"runs": 1}})
    found = compare([one, other])
    judged = {row.group: row for row in found.rows if row.measure == "judged"}
    assert judged["average"].outcome == "better"
    assert judged["average"].gap.mean == pytest.approx(15, abs=3)
    assert judged["everything"].gap.n == 119
    assert found.notices == [
        "judged: 1 of 120 questions of other have no score and are in no difference with it"
    ]
    assert "judged score" in run([one, other])
    plain = a_folder(tmp_path / "plain", answers)
    without = compare([one, plain])
    assert {row.measure for row in without.rows} == {"accuracy"}
    assert "accuracy alone" in without.notices[0]


def test_other_judges_are_refused_unless_accuracy_is_asked_for(tmp_path: Path) -> None:
    answers = asked(0.5)
    folders = [
        a_folder(tmp_path / name, answers, points(answers, 40), settings)
        for name, settings in (
            ("one", {"judge": JUDGE}),
            ("hot", {"judge": JUDGE | {"temperature": 1.0}}),
            ("untold", None),
        )
    ]
    for other in folders[1:]:
        with pytest.raises(ValueError, match="judges") as raised:
            compare([folders[0], other])
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=r"temperature 0\.2 and 1\.0"):
        compare(folders[:2])
    assert {row.measure for row in compare(folders, judged=False).rows} == {"accuracy"}
    again = a_folder(tmp_path / "untold2", answers, points(answers, 40))
    assert "taken for granted" in compare([folders[2], again]).notices[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scene": "elsewhere"}, "scene of '0/0' is 's0' in .* and 'elsewhere'"),
        ({"capability": "planning"}, "capability of '0/0'"),
        ({"expected": "blue"}, "expected of '0/0' is 'red'"),
        ({"question": "What else?"}, "question of '0/0'"),
        ({"id": "new"}, r"lacks 1 of the 120 questions of .*one, '0/0' first"),
    ],
)
def test_other_questions_are_refused(tmp_path: Path, change: dict[str, str], said: str) -> None:
    one = a_folder(tmp_path / "one", asked(0.5))
    other = a_folder(tmp_path / "other", asked(0.5))
    text = (other / "answers.jsonl").read_text().split("\n")
    text[0] = json.dumps(json.loads(text[0]) | change)
    (other / "answers.jsonl").write_text("\n".join(text))
    with pytest.raises(ValueError, match=said):
        compare([one, other])


def test_an_unfinished_file_lacks_questions(tmp_path: Path) -> None:
    one = a_folder(tmp_path / "one", asked(0.5))
    other = a_folder(tmp_path / "other", asked(0.5))
    text = (other / "answers.jsonl").read_text()
    (other / "answers.jsonl").write_text(text[:-40])
    for pair in ([one, other], [other, one]):
        with pytest.raises(ValueError, match=r"other .*1 of the 120 .*'19/5'"):
            compare(pair)


def test_a_single_scene_has_no_interval_and_says_so(tmp_path: Path) -> None:
    one, other = (
        a_folder(tmp_path / name, asked(skill, scenes=1)) for name, skill in (("a", 0), ("b", 1))
    )
    found = compare([one, other])
    assert {(row.outcome, row.p, row.gap.low) for row in found.rows} == {("not known", None, None)}
    assert "at least five scenes" in run([one, other])


@pytest.mark.parametrize(("scenes", "outcome"), [(4, "not known"), (5, "not distinguishable")])
def test_few_scenes_are_never_beyond_noise(tmp_path: Path, scenes: int, outcome: str) -> None:
    one, other = (
        a_folder(tmp_path / name, asked(skill, scenes=scenes))
        for name, skill in (("a", 0), ("b", 1))
    )
    found = compare([one, other])
    assert {row.outcome for row in found.rows} == {outcome}
    assert ("too few scenes differ" in table(found)) == (scenes == 5)


def test_which_folders(tmp_path: Path) -> None:
    one = a_folder(tmp_path / "x" / "same", asked(0.5))
    other = a_folder(tmp_path / "y" / "same", asked(0.5))
    assert list(compare([one, other]).models) == [str(one), str(other)]
    for folders, said in (
        ([one], "at least two"),
        ([one, one], "named twice"),
        ([one, tmp_path / "none"], "no such folder"),
    ):
        with pytest.raises(ValueError, match=said):
            compare(folders)


def test_figures_are_written(tmp_path: Path) -> None:
    folders = [a_folder(tmp_path / name, asked(s)) for name, s in (("a", 0.3), ("b", 0.9))]
    run(folders, tmp_path / "out" / "compare.json")
    found: dict[str, Any] = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert set(found) == {"models", "rows", "notices"}
    row = found["rows"][0]
    assert row["words"].startswith("b is better than a by")
    assert set(row) == {
        "measure", "group", "model", "reference", "gap", "p", "outcome", "words",
    }  # fmt: skip
