"""Where a number comes from: what every file in results/ says about the run that made it."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from drivekd.files.writing import write_json

RESULTS = Path("results")


#: What a run itself writes and git tracks: a change there is no change of the code.
WRITTEN = (":!results", ":!docs/pictures")


def _commit() -> str:
    """The commit that runs, with `-dirty` where code that git tracks was changed since."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *words], capture_output=True, text=True)

    found = git("rev-parse", "--short=12", "HEAD").stdout.strip()
    changed = git("diff", "--quiet", "HEAD", "--", ".", *WRITTEN).returncode != 0
    return f"{found}-dirty" if found and changed else found or "unknown"


#: Both of the moment when the run began: others may commit before it ends.
COMMIT, BEGAN = _commit(), datetime.datetime.now(tz=datetime.UTC)


def provenance() -> dict[str, str]:
    """Commit, date, hardware and versions."""
    return {
        "commit": COMMIT,
        "date": BEGAN.date().isoformat(),
        "hardware": f"{_processor()}, {os.cpu_count()} cores",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers")),
    }


def write_result(name: str, content: Mapping[str, Any]) -> Path:
    """Write `results/NAME.json` with its provenance and return its path."""
    path = RESULTS / f"{name}.json"
    write_json(path, {**content, **provenance()})
    return path


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
