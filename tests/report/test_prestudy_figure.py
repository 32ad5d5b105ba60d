"""The pre-study's picture and its section of the page, from made-up curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browser import Browser, measured
from drivekd.report.page import write_page
from drivekd.report.prestudy import as_address, draw, published

NASTY = "<script>document.title='owned'</script>"


def curve(places: int, level: float) -> dict[str, Any]:
    mean = [level + 0.01 * i for i in range(places)]
    band = {"low": [m - 0.02 for m in mean], "high": [m + 0.02 for m in mean]}
    return {"mean": mean, **band, "n": 9, "scenes": 3}


@pytest.fixture
def content() -> dict[str, Any]:
    names = {
        "adjacent": 6,
        "vision_text": 7,
        "intra/attention/perception": 6,
        "intra/hidden/perception": 6,
        "intra/attention/parking": 6,
        "intra/hidden/parking": 6,
        "margin/driving": 10,
    }
    curves = {name: curve(places, 0.3 + 0.05 * i) for i, (name, places) in enumerate(names.items())}
    curves["margin/driving"]["mean"][3] = None
    advice = {
        "capability": "perception",
        "signal": "text_to_vision",
        "teacher_layers": "first",
        "reason": f"because {NASTY}",
        "paper": "the paper chooses the same",
        "weak": ["a single scene"],
    }
    return {
        "teacher": {"source": "tiny"},
        "layers": 6,
        "data": {"samples": 9, "scenes": 3},
        "curves": curves,
        "lacks": {"c": ["samples with paraphrases: need 2, have 0"]},
        "advice": [advice],
    }


def test_the_picture_holds_measured_published_and_lacking(
    content: dict[str, Any], tmp_path: Path
) -> None:
    svg = draw(content, tmp_path)[1].read_text(encoding="utf-8")
    assert (tmp_path / "prestudy.png").is_file()
    for colour in ("#0072b2", "#d55e00"):
        assert colour in svg
    # Five published curves besides those of two capabilities that the paper and this study share.
    assert svg.count("stroke-dasharray") >= 9
    again = tmp_path / "again"
    again.mkdir()
    assert svg == draw(content, again)[1].read_text(encoding="utf-8")


def test_bands_are_drawn_where_there_are_some(content: dict[str, Any], tmp_path: Path) -> None:
    def bands(text: str) -> int:
        return text.count('id="FillBetweenPolyCollection')

    assert bands(draw(content, tmp_path)[1].read_text(encoding="utf-8")) == 7
    for each in content["curves"].values():
        each["low"] = each["high"] = None
    assert bands(draw(content, tmp_path)[1].read_text(encoding="utf-8")) == 0


def test_published_curves_have_the_papers_lengths() -> None:
    paper = published()
    assert len(paper["adjacent"]) == 28 and len(paper["vision_text"]) == 29
    assert {len(each) for each in paper["intra"].values()} == {28}
    assert len(paper["dispersion"]["hidden"]) == 28
    assert {len(each) for each in paper["margin"].values()} == {10}
    assert np.isclose(paper["intra"]["planning"][26], 0.885)


def test_a_study_alone_is_a_page_of_its_own(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "prestudy.json").write_text(json.dumps(content), encoding="utf-8")
    text = write_page(tmp_path).read_text(encoding="utf-8")
    assert as_address(content) in text
    assert "have 0" in text and "<strong>weak:</strong> a single scene" in text
    assert "<script" not in text and "&lt;script" in text and 'id="results"' not in text


def test_a_run_shows_the_study_that_lies_in_it(content: dict[str, Any], run_folder: Path) -> None:
    assert 'id="prestudy"' not in write_page(run_folder).read_text(encoding="utf-8")
    (run_folder / "prestudy").mkdir()
    (run_folder / "prestudy" / "prestudy.json").write_text(json.dumps(content), encoding="utf-8")
    text = write_page(run_folder).read_text(encoding="utf-8")
    assert 'id="prestudy"' in text and 'href="#prestudy"' in text and 'id="results"' in text


@pytest.mark.system
def test_the_page_fits_its_window(
    content: dict[str, Any], tmp_path: Path, chromium: Browser
) -> None:
    (tmp_path / "prestudy.json").write_text(json.dumps(content), encoding="utf-8")
    for width in (400, 1280):
        found = measured(write_page(tmp_path), width, chromium)
        assert found["sections"] == ["prestudy"]
