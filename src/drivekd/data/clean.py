"""A copy of a data file without the rows that fail, and the list of those and why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from drivekd.data import drivelm
from drivekd.data.findings import CHECKS, Finding
from drivekd.data.readers import Entry, Opened
from drivekd.data.rows import content


@dataclass(slots=True)
class Cleaner:
    """Takes rows one by one; the copy lies under its name only after `close`."""

    source: Opened
    path: Path
    rows: TextIO
    reasons: TextIO
    kept: int = 0
    dropped: int = 0

    def add(self, entry: Entry, findings: Sequence[Finding]) -> None:
        """Write a row to the copy, or to the list of what was dropped."""
        why = [finding for finding in findings if drops(finding.check)]
        if why:
            said = [{"check": finding.check, "message": finding.message} for finding in why]
            self.reasons.write(_line({"where": entry.where, "why": said}))
            self.dropped += 1
            return
        if self.source.format != "drivelm":
            separator = "" if self.path.suffix == ".jsonl" else ",\n" if self.kept else "[\n"
            self.rows.write(separator + _line(entry.value))
        self.kept += 1

    def close(self) -> dict[str, Any]:
        """Finish both files; returns their names and counts."""
        self.reasons.close()
        if self.source.format == "drivelm":
            json.dump(_pruned(self.source.path, Path(self.reasons.name)), self.rows, indent=1)
        elif self.path.suffix != ".jsonl":
            self.rows.write("]\n" if self.kept else "[]\n")
        self.rows.close()
        Path(self.rows.name).replace(self.path)
        named = {"file": str(self.path), "list": self.reasons.name}
        return {**named, "kept": self.kept, "dropped": self.dropped}


def drops(check: str) -> bool:
    """Whether a row that fails a check is left out: errors and rows that say nothing new."""
    return CHECKS[check][0] == "error" or check == "duplicate"


def cleaner(source: Opened, path: Path) -> Cleaner:
    """Open the copy and the list beside it.

    Raises:
        ValueError: something is there already; a file is never changed in place.
    """
    reasons, partial = path.with_name(f"{path.name}.dropped.jsonl"), path.with_name(f".{path.name}")
    for taken in (path, reasons):
        if taken.exists():
            raise ValueError(f"{taken} exists: name a new file for the clean copy")
    path.parent.mkdir(parents=True, exist_ok=True)
    return Cleaner(
        source, path, partial.open("w", encoding="utf-8"), reasons.open("w", encoding="utf-8")
    )


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _pruned(path: Path, reasons: Path) -> dict[str, Any]:
    scenes = content(path)
    assert isinstance(scenes, dict), "it was read as DriveLM before"
    with reasons.open(encoding="utf-8") as file:
        dropped = {json.loads(line)["where"] for line in file}
    return drivelm.without(scenes, path, dropped)
