"""DriveBench's prediction files: what is written is what the public evaluator reads, and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drivekd.data.formats.readers import read
from drivekd.evaluate.answers.answer import answer_of
from drivekd.evaluate.answers.predictions import read_predictions, write_predictions

CAMERAS = {"CAM_FRONT": "samples/CAM_FRONT/a.jpg", "CAM_BACK": "samples/CAM_BACK/b.jpg"}


def row(kind: str, question: str, answer: str, **more: object) -> dict[str, object]:
    return {
        "scene_token": "s1",
        "frame_token": "f1",
        "question_type": kind,
        "question": question,
        "answer": answer,
        "tag": [0],
        "image_path": CAMERAS,
        **more,
    }


ROWS = [
    row("behavior", "Predict the behavior of the ego vehicle. A. Stop. B. Go.", "A"),
    row("prediction", "Will <c1,CAM_BACK,0.5,0.4> stop?", "Yes."),
    row("planning", "What actions could the ego vehicle take?", "Brake – 急停."),
]


def test_predictions_go_out_and_come_back(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps(ROWS))
    samples = list(read(tmp_path / "data.json"))
    answers = [answer_of(s, f"reply {i} \u2028") for i, s in enumerate(samples)]
    path = tmp_path / "predictions.json"
    write_predictions(samples, answers, tmp_path, path)

    written = json.loads(path.read_text(encoding="utf-8"))
    for old, new in zip(ROWS, written, strict=True):
        same = ("scene_token", "frame_token", "question_type", "answer", "tag", "question")
        assert {k: new[k] for k in same} == {k: old[k] for k in same}
    assert list(written[0]["image_path"]) == ["CAM_FRONT", "CAM_BACK"]
    assert written[1]["image_path"] == {"CAM_BACK": "samples/CAM_BACK/b.jpg"}  # the one it names

    again = list(read(path))
    assert [a.reply for a in read_predictions(again)] == [a.reply for a in answers]
    assert [s.images for s in again] == [s.images for s in samples]
    assert [(s.id, s.capability) for s in again] == [(s.id, s.capability) for s in samples]


@pytest.mark.parametrize("pred", [None, 3, ["A"]])
def test_a_row_without_a_reply_is_named(pred: object, tmp_path: Path) -> None:
    rows = [{**ROWS[0], "pred": "A"}, {**ROWS[1], **({} if pred is None else {"pred": pred})}]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"p\.json, row 2.*pred"):
        read_predictions(list(read(tmp_path / "p.json")))
