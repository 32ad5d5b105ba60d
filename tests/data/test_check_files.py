"""Checks of files as a whole: which are refused, what copies keep, and how much memory it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from datafiles import picture, row, scenes, write
from drivekd.data.check.run import check, make_room, table
from drivekd.data.formats.readers import open_data
from drivekd.report.html import write_check_page


def asked(question: str, answer: str = "Yes.", **more: str) -> object:
    return row(question, answer, images=[], **more)


@pytest.mark.parametrize("name", ["check.json", "check.html"])
def test_a_report_takes_the_place_of_no_file_that_is_used(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [asked("Who?")])
    (tmp_path / "link.json").hardlink_to(path)
    for used in (path, tmp_path / "link.json", tmp_path / "new" / ".." / name):
        with pytest.raises(ValueError, match=rf"{name}.*--out"):
            make_room(tmp_path, (used, None))
    make_room(tmp_path / "out", (path, tmp_path / "new.json"))
    assert (tmp_path / "out").is_dir()


def test_the_copy_that_is_to_be_made_is_not_overwritten_either(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"check\.json"):
        make_room(tmp_path / "out", (tmp_path / "a.json", None, tmp_path / "out/check.json"))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([{"messages": 3}] * 2, "row 1: `messages` must be a list"),
        ({"images": [{"id": 1}], "annotations": []}, "scene images: no `key_frames`"),
        ({"s": {"key_frames": {"f": {}}}}, "scene s, frame f: no `QA`"),
    ],
)
def test_a_file_without_a_readable_row_is_refused(tmp_path: Path, value: object, said: str) -> None:
    path = write(tmp_path / "a.json", value)
    with pytest.raises(ValueError, match=said) as caught:
        check(path, fix=tmp_path / "b.json")
    assert f"no row of {path} can be read" in str(caught.value)
    assert "`conversations` (sharegpt)" in str(caught.value)
    assert not (tmp_path / "b.json").exists()


def test_a_file_whose_images_are_all_elsewhere_is_reported(tmp_path: Path) -> None:
    report = check(write(tmp_path / "a.json", [row(images=["https://a.b/c.jpg"])]))
    assert [each["check"] for each in report["checks"]] == ["image_path"]


def test_images_and_no_more_are_no_row(tmp_path: Path) -> None:
    coco: dict[str, object] = {"images": [], "annotations": []}
    assert open_data(write(tmp_path / "a.json", coco)).format == "drivelm"
    pair = {"question": "<image>Who?", "images": ["a.jpg"]}
    assert open_data(write(tmp_path / "a.json", [pair])).format == "drivekd"


@pytest.mark.parametrize(
    ("text", "unit", "said"),
    [
        ("Who?", None, "no tags"),
        ("Where is <c1,CAM_FRONT,0.1,0.2>?", "fraction", "tags in fractions"),
        ("Where is <c1,CAM_FRONT,4.3,0.8>?", "fraction", "tags in fractions"),
    ],
)
def test_the_unit_of_no_tags_is_none(
    tmp_path: Path, text: str, unit: str | None, said: str
) -> None:
    report = check(write(tmp_path / "a.json", [asked(text)]))
    assert report["unit"] == unit and said in table(report)
    page = write_check_page(report, tmp_path / "a.html").read_text(encoding="utf-8")
    assert f"{said}." in page


def test_a_clean_copy_of_scenes_keeps_what_was_empty(tmp_path: Path) -> None:
    nested = scenes("Why?") | {"s2": {"key_frames": {}}}
    frames = nested["s1"]["key_frames"]
    frames["empty"] = {"image_paths": {}, "QA": {"planning": [], "perception": []}}
    for camera in frames["s1f1"]["image_paths"]:
        picture(tmp_path / f"samples/{camera}/x__{camera}__1.jpg", 1)
    frames["s1f1"]["QA"]["planning"] = [{"Q": "When?", "A": "Now and"}]
    frames["lost"] = {**frames["s1f1"], "QA": {"planning": [{"Q": "How?", "A": "So and"}]}}
    report = check(write(tmp_path / "a.json", nested), fix=tmp_path / "b.json")
    assert report["cleaned"]["kept"] == 1 and report["cleaned"]["dropped"] == 2
    del frames["lost"]
    frames["s1f1"]["QA"]["planning"] = []
    assert json.loads((tmp_path / "b.json").read_text()) == nested


def test_a_clean_copy_of_scenes_is_no_jsonl(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", scenes("Why?"))
    with pytest.raises(ValueError, match=r"b\.jsonl: .*JSONL"):
        check(path, fix=tmp_path / "b.jsonl")
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_duplicates_in_scenes_name_scene_frame_and_row(tmp_path: Path) -> None:
    nested = scenes("Why?")
    nested["s1"]["key_frames"]["s1f1"]["QA"]["prediction"] *= 2
    report = check(write(tmp_path / "a.json", nested))
    (found,) = (each for each in report["checks"] if each["check"] == "duplicate")
    assert found["shown"][0]["message"] == "says what scene s1, frame s1f1, prediction row 1 says"


#: what a first pass holds at its end and at its peak [bytes]; types are not checked in here
HELD = """
import gc, sys, tracemalloc
from drivekd.data.check.run import _survey
from drivekd.data.formats.readers import open_data
_survey(open_data(sys.argv[1]))  # what is loaded or built once
for path in sys.argv[1:]:
    tracemalloc.start()
    survey = _survey(open_data(path))
    gc.collect()
    print(*tracemalloc.get_traced_memory())
    tracemalloc.stop()
"""


def test_a_row_costs_its_hashes_and_is_not_kept(tmp_path: Path) -> None:
    few, many = 1500, 5000  # the first 1,000 rows are held for a while; a row is 2,500 bytes
    files = [
        write(tmp_path / f"{rows}.jsonl", [asked(f"Is {n} ok?") for n in range(rows)])
        for rows in (few, many)
    ]
    command = [sys.executable, "-c", HELD, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    small, large = (list(map(int, line.split())) for line in done.stdout.splitlines())
    held, peak = ((b - a) / (many - few) for a, b in zip(small, large, strict=True))
    assert 8 < held < 26
    assert peak < 500
