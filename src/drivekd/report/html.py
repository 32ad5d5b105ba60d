"""Pages: templates of this folder, filled in and escaped; they ask the network for nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from drivekd.data.cameras import in_words
from drivekd.files.writing import atomic_file

_REGION = re.compile(r"<r\d+>")
_TAG = re.compile(r"<\s*([A-Za-z]+\d*)\s*,\s*(\w+)\s*,[^<>]*>")


def write_html(template: str, path: Path, **values: Any) -> Path:
    """Fill in a template, write the page and return its path; every name needs a value."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = _plain
    page = environment.get_template(template).render(**values)
    with atomic_file(path) as draft:
        draft.write_bytes(page.encode("utf-8", "replace"))  # a name may hold half a character
    return path


def _plain(text: str) -> str:
    """Write a question as people read it: tags by name and camera, without region tokens."""
    tagged = _TAG.sub(lambda match: f"{match[1]} ({in_words(match[2])})", text or "")
    return " ".join(_REGION.sub("", tagged).split())


def write_check_page(report: Mapping[str, Any], path: Path) -> Path:
    """Write the report of `drivekd data check` as a page and return its path."""
    capabilities = report["capabilities"]
    shares = {name: 100 * rows / sum(capabilities.values()) for name, rows in capabilities.items()}
    return write_html("check.html.j2", path, report=report, shares=shares)
