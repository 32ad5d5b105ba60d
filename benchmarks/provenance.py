"""Where a number comes from: what every file in results/ says about the run that made it."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path("results")


def commit() -> str:
    """The commit that ran, with `-dirty` where files that git tracks were changed since."""
    found = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"],
        capture_output=True,
        text=True,
    )
    return found.stdout.strip() or "unknown"


def provenance() -> dict[str, str]:
    """Commit, date, hardware and versions."""
    now = datetime.datetime.now(tz=datetime.UTC)
    return {
        "commit": commit(),
        "date": now.date().isoformat(),
        "hardware": f"{_processor()}, {os.cpu_count()} cores",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers")),
    }


def write_result(name: str, content: Mapping[str, Any]) -> Path:
    """Write `results/NAME.json` with its provenance and return its path."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**content, **provenance()}, indent=1) + "\n", encoding="utf-8")
    return path


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
