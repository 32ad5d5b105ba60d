"""What the page of an evaluation shows of each question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from answer_folders import answer, verdict
from datafiles import row, six, write
from drivekd.data.formats.readers import read
from drivekd.data.sample import Sample
from drivekd.report.answer_rows import Judged, content
from drivekd.report.thumbnails import Thumbnail

NONE = Judged({}, {})


def one(sample: Sample | None, *rows: Any, judged: Judged = NONE, **controls: Any) -> Any:
    """What is shown of the question q0."""
    samples = {"q0": sample} if sample is not None else {}
    beside = {name: {"q0": said} for name, said in controls.items()}
    (question,) = content({"q0": rows}, samples, {}, judged, beside)["questions"]
    return question


def six_cameras(tmp_path: Path) -> Sample:
    return next(iter(read(write(tmp_path / "a.json", [six("Where?")]))))


def test_tags_are_put_on_the_picture_of_their_camera(tmp_path: Path) -> None:
    texts = {
        "question": "Is <c1,CAM_BACK,0.1,0.9> it? <c1,CAM_BACK,0.1,0.9>",
        "expected": "No, <c2,CAM_FRONT,800.0,225.0>.",
        "reply": "<c3,CAM_FRONT_LEFT,0.5,0.5>",
    }
    question = one(six_cameras(tmp_path), answer(**texts))
    # left, ahead, right; then behind from the left
    assert question["marks"] == [[4, 0.1, 0.9, "c1", "question"], [1, 0.5, 0.25, "c2", "reference"]]
    assert question["replies"][0]["marks"] == [[0, 0.5, 0.5, "c3", "reply"]]
    assert question["undrawn"] == []


@pytest.mark.parametrize(
    ("tag", "why"),
    [
        ("<c1,CAM_FRONT,1700,20>", "c1 (front, 1700, 20) of the reply: no place in the picture"),
        ("<c1,CAM_FRONT,-0.5,0.5>", "c1 (front, -0.5, 0.5) of the reply: no place in the picture"),
        ("<c1,CAM_TOP,0.5,0.5>", "c1 (top, 0.5, 0.5) of the reply: no such picture"),
    ],
)
def test_a_tag_without_a_place_is_told_once(tmp_path: Path, tag: str, why: str) -> None:
    replies = [answer(reply=tag), answer(reply=tag, run=1)]
    question = one(six_cameras(tmp_path), *replies)
    assert question["undrawn"] == [why] and question["replies"][0]["marks"] == []


def test_the_only_picture_of_an_unknown_camera_gets_every_tag(tmp_path: Path) -> None:
    (sample,) = read(write(tmp_path / "a.json", [row()]))
    question = one(sample, answer(reply="<c1,CAM_BACK,0.5,0.5>"))
    assert question["replies"][0]["marks"] == [[0, 0.5, 0.5, "c1", "reply"]]
    assert one(None, answer(reply="<c1,CAM_BACK,0.5,0.5>"))["undrawn"] == []


def test_questions_about_the_same_pictures_share_them(tmp_path: Path) -> None:
    samples = list(read(write(tmp_path / "a.json", [row(), row(), row(images=["b.jpg"])])))
    asked = {name: [answer(name)] for name in ("q0", "q1", "q2", "q3")}
    copies = {next(iter(samples[0].images.values())): Thumbnail("pictures/1.jpg", 32, 18)}
    known = dict(zip(asked, samples, strict=False))
    found = content(asked, known, copies, NONE, {})
    assert [question["view"] for question in found["questions"]] == [0, 0, 1, None]
    assert found["views"] == [[["image 0", "pictures/1.jpg", 32, 18]], [["image 0", None, 0, 0]]]


def test_every_run_has_its_verdicts_and_the_score_is_their_mean() -> None:
    given = {
        ("q0", "0"): [verdict(total=70.0), verdict(total=50.0, run=1)],
        ("q0", "1"): [verdict(total=None, answer_run=1), verdict(total=90.0, answer_run=1, run=1)],
    }
    question = one(None, answer(), answer(reply="No.", run=1), judged=Judged(given, {}))
    first, second = question["replies"]
    assert [each["total"] for each in first["verdicts"]] == [70.0, 50.0]
    assert first["verdicts"][0]["scores"] == [30.0, 40.0]
    assert second["verdicts"][0]["total"] is None
    assert second["verdicts"][0]["reason"] == "the judge's reply could not be read: no total"
    assert question["score"] == pytest.approx(75.0)


def test_without_verdicts_there_is_no_score() -> None:
    assert one(None, answer())["score"] is None
    lost = Judged({("q0", "0"): [verdict(total=None)]}, {})
    assert one(None, answer(), judged=lost)["score"] is None


def test_a_control_says_the_same_where_every_reply_is_among_its_own() -> None:
    asked = [answer(reply="Red car."), answer(reply="blue", run=1)]
    same = [answer(reply="BLUE"), answer(reply=" red  car.", run=1)]
    question = one(None, *asked, black=same, grey=same[:1], none=[])
    found = {each["name"]: each["same"] for each in question["controls"]}
    assert found == {"black": True, "grey": False}
