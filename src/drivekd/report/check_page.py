"""Writes what `drivekd data check` found as one HTML page that asks the network for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drivekd.files.writing import writing
from drivekd.report.template import environment


def write_check_page(report: Mapping[str, Any], path: Path) -> Path:
    """Write the report of `drivekd.data.check.check` as a page and return its path."""
    capabilities = report["capabilities"]
    shares = {name: 100 * rows / sum(capabilities.values()) for name, rows in capabilities.items()}
    template = environment().get_template("check.html.j2")
    with writing(path):
        path.write_text(template.render(report=report, shares=shares), encoding="utf-8")
    return path
