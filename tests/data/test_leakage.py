"""What of a test set is compared, what is not, and that it is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datafiles import bench, row, scenes, write
from drivekd.data.check.leakage import exposed_by, name_of
from drivekd.data.check.run import check, table
from drivekd.report.html import write_check_page

NOTED = "n015-2018-08-03-15-00-36+0800__CAM_FRONT__1533280036112460"


@pytest.mark.parametrize(
    ("file", "unique"),
    [
        (f"{NOTED}.jpg", True),
        ("6257be58.jpg", True),
        ("0000f77c-6257be58.jpg", True),
        ("1533280036.png", True),
        ("0000001234.png", False),
        ("00000000001234567.png", False),
        ("frame_00012345.png", False),
        ("image_20240117.jpg", False),
        ("0000abcd.png", False),
        ("front.png", False),
    ],
)
def test_which_names_are_given_once_in_the_world(file: str, unique: bool) -> None:
    names = {name_of(Path(folder, file)) for folder in ("drive_a", "drive_b")}
    assert len(names) == (1 if unique else 2)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("t.jsonl", [{"messages": 3}, row(scene="s1"), row("no placeholder")]),
        ("t.json", [bench("Why?"), {"image_path": 3}, bench("Is <c1,CAM_SIDE,0.1,0.2> it?")]),
    ],
)
def test_rows_of_the_test_set_that_cannot_be_read_are_told(
    tmp_path: Path, name: str, rows: Any
) -> None:
    train = write(tmp_path / "a.jsonl", [row("Who?", images=[], scene="s1")])
    report = check(train, write(tmp_path / name, rows))
    assert report["leakage"]["skipped"] == 2 and report["leakage"]["scenes"] == 1
    assert "2 test rows cannot be read: not compared" in table(report)
    page = write_check_page(report, tmp_path / "check.html").read_text(encoding="utf-8")
    assert "2 rows of the test set that cannot be read" in page


def test_of_scenes_only_frames_without_questions_are_no_fault(tmp_path: Path) -> None:
    nested = scenes("Why?") | {"s2": {"key_frames": {"f2": {}, "f3": {"QA": 3}, "f4": 3}}}
    nested["s1"]["key_frames"]["s1f1"]["QA"]["planning"] = [{"A": "no question"}]
    exposed = exposed_by(write(tmp_path / "t.json", nested | {"s3": {"no": "frames"}}), None)
    assert set(exposed.frames) == {"s1f1", "f2", "f3", "f4"}
    assert exposed.skipped == 4  # f3, f4, s3 and the pair without a question, but not f2


def test_a_test_set_of_which_nothing_can_be_read_is_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", [row("Who?", images=[])])
    with pytest.raises(ValueError, match=r"t\.jsonl, row 1: .*messages"):
        check(train, write(tmp_path / "t.jsonl", [{"messages": 3}]))
    with pytest.raises(ValueError, match=r"t\.jsonl.*no samples"):
        check(train, write(tmp_path / "t.jsonl", []))


def test_a_missing_test_set_is_told_before_any_row_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = write(tmp_path / "a.jsonl", [row()])
    monkeypatch.setattr("drivekd.data.check.run._survey", lambda _: pytest.fail("rows were read"))
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        check(train, tmp_path / "gone.json")
    (tmp_path / "t.json").write_text(json.dumps([{"x": 1}]))
    with pytest.raises(ValueError, match=r"t\.json, row 1: .*format"):
        check(train, tmp_path / "t.json")
