"""docs/method.md names functions and tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py):(\w+)`", PAGE)))


@cache
def defined(path: Path) -> set[str]:
    kinds = ast.FunctionDef | ast.ClassDef
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, kinds)}


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_what_the_page_names_exists(file: str, name: str) -> None:
    is_test = Path(file).name.startswith("test_")
    assert name in defined((ROOT / "tests" if is_test else ROOT / "src" / "drivekd") / file)


def test_the_page_names_a_test_for_every_row() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and "src" not in line]
    tables = [row for row in rows if ".py:" in row]
    assert len(tables) > 20
    assert all("test_" in row for row in tables)
