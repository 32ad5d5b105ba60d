"""README and docs/ build as a site in strict mode that needs no network and can be searched."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from browser import Browser

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_there_and_fetches_nothing(site: Path) -> None:
    sources = {page.stem for page in (ROOT / "docs").glob("*.md")} | {"contributing", "changelog"}
    assert sources | {"index", "404"} == {page.stem for page in site.glob("*.html")}
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img)[^>]*src=\"([^\"]+)|<link[^>]*href=\"([^\"]+)", text)
        assert not [name for pair in fetched for name in pair if name.startswith(("http", "//"))]


def test_search_answers_from_disk(site: Path, chromium: Browser) -> None:
    flags = ("--dump-dom", "--virtual-time-budget=15000")
    seen = chromium(site / "index.html", *flags, address="?q=fingerprint")
    assert re.search(r'class="md-search-result__link"|md-search-result__item', seen)
    assert "data.html" in seen.partition("md-search-result__list")[2].partition("</ol>")[0]
