"""A copy of a data file without the rows that fail, and the list of those and why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from drivekd.data.check.findings import CHECKS, Finding
from drivekd.data.formats import drivelm
from drivekd.data.formats.readers import Entry, Opened
from drivekd.data.formats.rows import content
from drivekd.files.writing import Rows, new_file, new_rows


@dataclass(slots=True)
class Cleaner:
    """A copy that takes rows one by one, each with its findings.

    Attributes:
        rows: of the copy; None for DriveLM, which is nested and written at the end.
        reasons: the rows that were dropped and why.
        dropped: places of DriveLM's dropped rows.
        kept: rows in the copy.
    """

    rows: Rows | None
    reasons: Rows
    dropped: set[str] = field(default_factory=set)
    kept: int = 0

    def add(self, entry: Entry, findings: Sequence[Finding]) -> None:
        failed = [finding for finding in findings if drops(finding.check)]
        if failed:
            why = [{"check": finding.check, "message": finding.message} for finding in failed]
            self.reasons.add({"where": entry.where, "why": why})
            if self.rows is None:
                self.dropped.add(entry.where)
            return
        self.kept += 1
        if self.rows is not None:
            self.rows.add(entry.value)


def drops(check: str) -> bool:
    """Tell whether a row that fails a check is left out: errors, and rows that say nothing new."""
    return CHECKS[check][0] == "error" or check == "duplicate"


def list_beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.dropped.jsonl")


@contextmanager
def cleaning(source: Opened, path: Path | None) -> Iterator[Cleaner | None]:
    """Open a new clean copy in the file's format, and the list beside it; None without a path."""
    if path is None:
        yield None
        return
    if source.format == "drivelm" and path.suffix == ".jsonl":
        raise ValueError(f"{path}: a clean copy of DriveLM is no JSONL: name a new .json file")
    with new_rows(list_beside(path)) as reasons:
        if source.format != "drivelm":
            with new_rows(path) as rows:
                yield Cleaner(rows, reasons)
            return
        with new_file(path) as file:
            nested = Cleaner(None, reasons)
            yield nested
            scenes = content(source.path)
            assert isinstance(scenes, dict), "it was read as DriveLM before"
            kept = drivelm.without(scenes, source.path, nested.dropped)
            json.dump(kept, file, indent=1, ensure_ascii=False)
