from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browser import Browser, measured
from drivekd.report.page import write_page


class Links(HTMLParser):
    """Everything in a page that a browser could fetch, and every id."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ids: list[str] = []
        self.images: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        names = ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
        self.found += [v for k, v in attrs if k in names and v]
        self.found += re.findall(r"url\(([^)]*)\)", named.get("style") or "")
        if named.get("id"):
            self.ids.append(str(named["id"]))
        if tag == "img":
            self.images.append(named)


def links(text: str) -> Links:
    parser = Links()
    parser.feed(text)
    return parser


def test_page_holds_every_part(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert page.name == "report.html"
    for words in ("Drive-KD", "No evidence of road safety", "make demo", "nearer", "control"):
        assert words in text
    assert text.count("<svg") > 10
    assert "missing" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)


def test_page_states_the_scores_of_the_summary(page: Path) -> None:
    summary = json.loads((page.parent / "summary.json").read_text())
    text = page.read_text(encoding="utf-8")
    for scores in summary["scores"].values():
        for value in scores.values():
            assert f">{value:.1f}<" in text
    change = summary["scores"]["drivekd"]["average"] - summary["scores"]["ce_only"]["average"]
    assert f"{change:+.1f}" in text


def test_page_is_self_contained(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = links(text)
    assert found.found
    outside = [v for v in found.found if not v.startswith(("data:image/", "#"))]
    assert outside == []
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert len(found.ids) == len(set(found.ids)), "ids occur twice"
    targets = {v[1:] for v in found.found if v.startswith("#")}
    assert targets <= set(found.ids)


def test_every_picture_has_words(page: Path) -> None:
    found = links(page.read_text(encoding="utf-8"))
    assert len(found.images) == 6 * (2 + 2 * 4)  # two scenes, two cases of four rows
    assert all(image.get("alt") for image in found.images)


def test_text_of_files_is_escaped(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b>bold" not in text
    assert "blue <i>" not in text
    assert "blue &lt;i&gt;" in text


def test_tags_read_as_words(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "What is the colour of c1 (front)?" in text
    assert "&lt;r9" not in text


def test_missing_parts_are_named_and_not_drawn(tmp_path: Path) -> None:
    scores = {"ce_only": {"perception": 40.0}}
    (tmp_path / "summary.json").write_text(json.dumps({"scores": scores, "n": {}, "seconds": 3}))
    text = write_page(tmp_path).read_text(encoding="utf-8")
    assert "40.0" in text
    assert text.count("not scored") == 3
    assert "0.0 <" not in text
    for reason in ("no log.jsonl", "no scenes.json", "no about.json", "nothing to combine"):
        assert reason.removeprefix("no ") in text
    assert "Not in this run:" in text
    assert "Teacher (no scores in this folder)" in text
    body = text.split("</style>")[1]
    assert "<svg" not in body


def test_reason_for_an_absent_arm_is_told(run_folder: Path) -> None:
    shutil.rmtree(run_folder / "teacher_blind")
    summary = json.loads((run_folder / "summary.json").read_text())
    del summary["scores"]["teacher_blind"]
    (run_folder / "summary.json").write_text(json.dumps(summary))
    (run_folder / "about.json").write_text(json.dumps({"absent": {"teacher_blind": "not shipped"}}))
    assert "Teacher, blind (not shipped)" in write_page(run_folder).read_text(encoding="utf-8")


def test_picture_that_is_gone_is_said(run_folder: Path) -> None:
    shutil.rmtree(run_folder / "world")
    text = write_page(run_folder).read_text(encoding="utf-8")
    assert "picture not found" in text
    assert "No map" in text


def test_half_a_line_of_a_running_log_is_left_out(run_folder: Path) -> None:
    before = write_page(run_folder).read_text(encoding="utf-8")
    with (run_folder / "drivekd" / "log.jsonl").open("a") as log:
        log.write('{"step": 510, "loss')
    assert write_page(run_folder).read_text(encoding="utf-8") == before


def test_broken_file_is_named(run_folder: Path) -> None:
    (run_folder / "drivekd" / "scores.json").write_text("{")
    with pytest.raises(ValueError, match=r"drivekd/scores\.json: .*JSON"):
        write_page(run_folder)


def test_the_folder_of_one_training_or_evaluation(run_folder: Path) -> None:
    page = write_page(run_folder / "drivekd").read_text(encoding="utf-8")
    assert "drivekd: drivekd</title>" in page
    assert "<svg" in page and "loss" in page


def test_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"summary\.json"):
        write_page(tmp_path)
    with pytest.raises(ValueError, match="folder"):
        write_page(tmp_path / "nowhere")


SECTIONS = ["not", "results", "templates", "training", "gradients", "attention", "scenes", "made"]


@pytest.mark.system
@pytest.mark.parametrize("width", [400, 1280])
def test_page_fits_its_window_and_fetches_nothing(
    page: Path, chromium: Browser, width: int
) -> None:
    found = measured(page, width, chromium)
    assert found["title"] == "Drive-KD in the embedded world"
    assert found["sections"] == SECTIONS
    assert found["width"] == width
    assert found["needed"] == width
    assert found["images"] == 60
    assert found["broken"] == 0
    assert found["fetched"] == []


@pytest.mark.system
def test_the_measurement_notices(page: Path, chromium: Browser) -> None:
    wide = '<div style="width: 900px">x</div><img src="http://127.0.0.1:9/x.png" alt="">'
    found = measured(page, 400, chromium, wide)
    assert found["needed"] != 400
    assert found["broken"] == 1
    assert found["fetched"] == ["http://127.0.0.1:9/x.png"]


@pytest.mark.system
@pytest.mark.parametrize("width", [400, 1280])
def test_screenshot(page: Path, chromium: Browser, tmp_path: Path, width: int) -> None:
    shot = tmp_path / "shot.png"
    chromium(page, f"--screenshot={shot}", f"--window-size={width},2400")
    with Image.open(shot) as image:
        assert image.size == (width, 2400)
        pixels = np.asarray(image.convert("L"), dtype=np.float64)
    bands = pixels.reshape(8, 300, width).std(axis=(1, 2))
    assert (bands > 3).all(), f"an empty part of the page: {bands}"


def test_attention_on_the_named_object_is_told(run_folder: Path) -> None:
    with np.load(run_folder / "attention" / "maps.npz") as stored:
        maps = dict(stored)
    front = maps["0/teacher/CAM_FRONT"] = np.zeros((4, 4), dtype=np.float32)
    front[2, 1] = 0.25  # the tag is at (0.47, 0.68)
    np.savez_compressed(run_folder / "attention" / "maps.npz", allow_pickle=False, **maps)
    text = " ".join(write_page(run_folder).read_text(encoding="utf-8").split())
    assert "on c1 25.0 %, rank 1 of 96 tokens" in text


def test_many_cases_are_folded_away(run_folder: Path) -> None:
    path = run_folder / "attention" / "cases.json"
    path.write_text(json.dumps(json.loads(path.read_text()) * 4))
    text = write_page(run_folder).read_text(encoding="utf-8")
    assert "2 more questions" in text
