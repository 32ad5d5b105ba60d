"""The table of scores on the page of an evaluation."""

from __future__ import annotations

from drivekd.report.answer_scores import score_table

RIGHT = {"n": 9, "accuracy": 40.0, "low": 30.0, "high": 50.0, "scenes": 3}
JUDGED = {"n": 8, "mean": 62.5, "low": None, "high": None, "unscored": {"transport": 2}}


def test_model_judge_and_controls_are_rows_of_one_table() -> None:
    found = score_table(
        {
            "capabilities": {"own": RIGHT, "planning": RIGHT, "perception": RIGHT},
            "everything": RIGHT,
            "judged": {"capabilities": {"planning": JUDGED}},
            "controls": {"black": {"capabilities": {"perception": RIGHT | {"accuracy": 10.0}}}},
        }
    )
    assert found["columns"] == ["perception", "planning", "own", "all questions"]
    assert found["counts"] == [9, 9, 9, 9]
    right, judged, black = found["rows"]
    assert right["cells"] == [{"value": 40.0, "low": 30.0, "high": 50.0}] * 4
    assert judged["cells"] == [None, {"value": 62.5, "low": None, "high": None}, None, None]
    assert judged["what"] == "mean, out of 100; 2 verdicts without a score"
    assert black["control"] and black["cells"][0] == {"value": 10.0, "low": 30.0, "high": 50.0}


def test_what_is_missing_has_no_row_and_no_column() -> None:
    assert score_table({}) == {"columns": [], "rows": [], "counts": []}
    odd = score_table({"capabilities": [], "average": {"n": 3}, "controls": {"black": None}})
    assert odd == {"columns": ["average"], "rows": [], "counts": [3]}
