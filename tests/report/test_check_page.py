"""The page of a data check."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from browser import Browser, measured
from datafiles import row, write
from drivekd.data.check.run import check
from drivekd.report.html import write_check_page

NASTY = "<script>document.title='owned'</script> and the"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    rows = [row(f"<image>What is {n}?", NASTY, scene="s1") for n in range(300)]
    path = write(tmp_path / "a.jsonl", [{"messages": 3}, *rows])
    test = write(tmp_path / "b.jsonl", [row(scene="s1")])
    report = check(path, test, fix=tmp_path / "c.jsonl")
    return write_check_page(report, tmp_path / "out/check.html")


def test_everything_found_is_on_the_page(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<h1>1201 errors in a.jsonl</h1>" in text
    for words in ("image_missing", "truncated", "leak_scene", "leak_name", "The first 200 of 300"):
        assert words in text
    assert "<td>row 1</td>" in text and "`messages` must be a list" in text
    assert "0 rows were kept in" in text and "c.jsonl.dropped.jsonl" in text
    assert "100.0 %" in text and "perception" in text


def test_the_page_is_self_contained_and_escapes_what_files_say(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in text and "<script" not in text and "&lt;script" in text
    assert re.findall(r"(?:src|href)=\"(?!#)", text) == []
    ids = set(re.findall(r'\bid="([^"]+)"', text))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= ids


@pytest.mark.system
def test_the_page_fits_its_window_and_fetches_nothing(page: Path, chromium: Browser) -> None:
    for width in (400, 1280):
        found = measured(page, width, chromium)
        assert found["sections"] == ["checks", "leakage", "balance", "cleaned"]
        assert (found["width"], found["needed"]) == (width, width)
        assert str(found["title"]).startswith("Check of ") and found["fetched"] == []


def test_a_page_without_findings(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row("Who?", images=[])])
    report = check(path)
    json.dumps(report)
    text = write_check_page(report, tmp_path / "check.html").read_text(encoding="utf-8")
    assert "No errors in a.jsonl" in text and "Every check passed." in text
    assert "Leakage" not in text and "Clean copy" not in text
