"""The table of scores on the page of an evaluation."""

from __future__ import annotations

import pytest

from drivekd.report.answer_scores import score_table

RIGHT = {"n": 9, "accuracy": 40.0, "low": 30.0, "high": 50.0, "scenes": 3}
JUDGED = {"n": 8, "mean": 62.5, "low": None, "high": None, "unscored": {"transport": 2}}
GAP = {"mine": 40.0, "theirs": 52.0, "mean": -12.0, "low": -20.04, "high": 3.0, "p": 0.1, "n": 9}


def test_model_judge_and_controls_are_rows_of_one_table() -> None:
    beside = {"measure": "accuracy", "group": "planning", "controls": {"black": GAP}}
    found = score_table(
        {
            "capabilities": {"own": RIGHT, "planning": RIGHT, "perception": RIGHT},
            "everything": RIGHT,
            "unreadable": {"yes or no": 3},
            "judged": {"capabilities": {"planning": JUDGED}},
            "controls": [beside, {**beside, "measure": "judged", "group": "everything"}],
        }
    )
    assert found["columns"] == ["perception", "planning", "own", "all questions"]
    assert found["counts"] == [9, 9, 9, 9]
    right, judged, black, points = found["rows"]
    assert right["cells"] == [{"value": 40.0, "low": 30.0, "high": 50.0, "n": 9}] * 4
    assert right["what"] == "percent; 3 replies could not be read"
    assert judged["cells"] == [None, {"value": 62.5, "low": None, "high": None, "n": 8}, None, None]
    assert judged["what"] == "mean, out of 100; 2 verdicts without a score"
    more = "−12.0 (−20.0 to +3.0)"
    assert black["control"] and black["name"] == "black" and not right["control"]
    assert black["cells"][1] == {"value": 52.0, "low": None, "high": None, "more": more}
    assert points["cells"] == [None, None, None, black["cells"][1]]


def test_what_is_missing_has_no_row_and_no_column() -> None:
    assert score_table({}) == {"columns": [], "rows": [], "counts": []}


NO_NUMBER = {"measure": "accuracy", "group": "average", "controls": {"black": {"theirs": "x"}}}


@pytest.mark.parametrize("odd", [None, 3, [], [3], {"a": 3}, [NO_NUMBER]])
def test_odd_values_are_left_out(odd: object) -> None:
    names = ("capabilities", "average", "everything", "unreadable", "judged", "controls")
    assert score_table(dict.fromkeys(names, odd))["columns"] == []
