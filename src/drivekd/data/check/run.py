"""Check a data file for faults, and for leaks of its test set, before any training.

A first pass looks at each row by itself and remembers 16 bytes of it. A second one follows only
where something concerns rows together: bad pictures, repeats, leaks, or a clean copy to write. Rows
are never held in memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice, product
from pathlib import Path
from typing import Any

import numpy as np

from drivekd.data.check.balance import Balance
from drivekd.data.check.clean import Cleaner, cleaning, list_beside
from drivekd.data.check.faults import faults
from drivekd.data.check.findings import Finding, Tally
from drivekd.data.check.leakage import Exposed, alike, exposed_by, inspect_all, leaks
from drivekd.data.check.repeats import Repeated, Repeats
from drivekd.data.formats.readers import KNOWN, Entry, Opened, open_data
from drivekd.data.formats.rows import RowError, line_count, one_line
from drivekd.data.sample import CAMERAS, Sample
from drivekd.data.tags import Unit, main_unit
from drivekd.files.progress import track

#: rows whose tags decide which unit the file is written in
_HEAD = 1000


@dataclass(slots=True)
class _Survey:
    """The results of the first pass."""

    unit: Unit
    rows: int = 0
    tagged: bool = False
    tally: Tally = field(default_factory=Tally)
    repeats: Repeats = field(default_factory=Repeats)
    balance: Balance = field(default_factory=Balance)
    exposed: Exposed = field(default_factory=Exposed)
    orders: dict[frozenset[str], tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Together:
    """Facts of rows together, for the second pass."""

    unit: Unit
    bad: Mapping[Path, tuple[str, str]]
    repeated: Repeated
    test: Exposed | None = None
    alike: Mapping[Path, tuple[Path, int]] = field(default_factory=dict)
    unseen: int = 0  # pictures of the test set that could not be compared

    def findings(self, sample: Sample, place: int) -> Iterator[Finding]:
        faults: dict[str, str] = {}
        for file in sample.images.values():
            if file in self.bad:
                check, message = self.bad[file]
                faults.setdefault(check, f"{file}: {message}")
        yield from (Finding(check, sample.source, message) for check, message in faults.items())
        yield from self.repeated.findings(sample, place)
        if self.test is not None:
            yield from leaks(sample, self.test, self.alike)

    def need_a_pass(self) -> bool:
        return bool(self.bad) or self.test is not None or bool(self.repeated.other.any())


def check(
    path: str | Path,
    test: str | Path | None = None,
    *,
    format: str = "auto",
    root: str | Path | None = None,
    fix: str | Path | None = None,
) -> dict[str, Any]:
    """Run all of `drivekd.data.check.findings.CHECKS` on a data file.

    Args:
        path: the data file.
        test: a file of the test set that training must not have seen; its format is detected.
        format: of the data file, as for `readers.read`.
        root: folder that relative image paths of both files start from.
        fix: write a copy without the rows that fail (errors and duplicates) to this new file, and
            the dropped rows and why beside it, as `FIX.dropped.jsonl`.

    Returns:
        A report of plain data: `{"file", "format", "root", "rows", "errors", "warnings", "unit"
        (None without tags), "images", "checks": [{"check", "severity", "what", "rows", "shown":
        [{"where", "message"}]}], "capabilities", "templates": [{"template", "rows", "answer",
        "share"}], "leakage", "cleaned", "seconds"}`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a whole file or every row of it cannot be read, or the copy would overwrite
            something.
    """
    started, path = time.monotonic(), Path(path)
    opened = open_data(path, format, root=root)
    with cleaning(opened, None if fix is None else Path(fix)) as copy:
        exposed = None if test is None else exposed_by(Path(test), root)  # its faults come first
        survey = _survey(opened)
        _refuse_unread(survey, opened)
        together = _look(survey, exposed)
        if copy is not None or together.need_a_pass():
            again = open_data(path, opened.format, root=root).entries
            _second(track(again, survey.rows, "comparing rows"), together, survey.tally, copy)
    survey.tally.add(survey.balance.findings(str(path)))
    return {
        "file": str(path),
        "format": opened.format,
        "root": str(opened.root),
        "rows": survey.rows,
        "errors": survey.tally.total("error"),
        "warnings": survey.tally.total("warning"),
        "unit": survey.unit if survey.tagged else None,
        "images": {"files": len(survey.exposed.files), "bad": len(together.bad)},
        "checks": survey.tally.as_json(),
        "capabilities": dict(survey.balance.capabilities.most_common()),
        "templates": survey.balance.majorities(),
        "leakage": _leakage(str(test), survey, together),
        "cleaned": None if copy is None else _cleaned(Path(str(fix)), copy),
        "seconds": round(time.monotonic() - started, 2),
    }


def make_room(out: Path, used: Iterable[Path | None]) -> None:
    """Make the folder for check.json and check.html, which must not replace a file in use."""
    out.mkdir(parents=True, exist_ok=True)
    for name, file in product((out / "check.json", out / "check.html"), used):
        if file is not None and _same(name, file):
            raise ValueError(f"{name} would take the place of {file}: name another --out")


def _same(one: Path, other: Path) -> bool:
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


def _refuse_unread(survey: _Survey, opened: Opened) -> None:
    if not survey.rows:
        raise ValueError(f"{opened.path} holds no samples")
    if survey.tally.counts["row"] == survey.rows:
        first = survey.tally.kept["row"][0]
        raise ValueError(
            f"{first.where}: {first.message}; no row of {opened.path} can be read as one of format "
            f"{opened.format}. Known are rows with {KNOWN}"
        )


def _look(survey: _Survey, exposed: Exposed | None) -> _Together:
    """Inspect pictures, repeats, and what a test set shows."""
    pictures = inspect_all(survey.exposed.files, "looking at pictures")
    bad = {file: _fault(fault) for file, fault in pictures.items() if isinstance(fault, str)}
    repeated = survey.repeats.find()
    if exposed is None:
        return _Together(survey.unit, bad, repeated)
    theirs = inspect_all(exposed.files, "looking at test pictures")
    unseen = sum(not isinstance(bits, np.ndarray) for bits in theirs.values())
    return _Together(survey.unit, bad, repeated, exposed, alike(pictures, theirs), unseen)


def _survey(opened: Opened) -> _Survey:
    head = list(islice(opened.entries, _HEAD))
    tags = (tag for e in head if isinstance(e.result, Sample) for tag in e.result.tags)
    survey = _Survey(main_unit(tags) or ("pixel" if opened.format == "drivelm" else "fraction"))
    rows = chain(head, opened.entries)
    for entry in track(rows, line_count(opened.path), "checking rows"):
        survey.rows += 1
        if isinstance(entry.result, RowError):
            survey.repeats.add(None)
        else:
            _add(survey, entry.result)
        survey.tally.add(_by_itself(entry, survey.unit))
    return survey


def _add(survey: _Survey, sample: Sample) -> None:
    survey.repeats.add(sample)
    survey.balance.add(sample)
    survey.exposed.add(sample)
    survey.tagged = survey.tagged or bool(sample.tags)
    survey.tally.add(_order(sample, survey.orders))


def _by_itself(entry: Entry, unit: Unit) -> Iterable[Finding]:
    """Return the findings about a row without a look at others or at its pictures."""
    if isinstance(entry.result, RowError):
        message = str(entry.result).removeprefix(f"{entry.where}: ")
        return [Finding(entry.result.check, entry.where, message)]
    return faults(entry.result, unit)


def _order(sample: Sample, orders: dict[frozenset[str], tuple[str, ...]]) -> Iterator[Finding]:
    """Yield a finding where the same cameras came in another order before."""
    cameras = tuple(sample.images)
    if len(cameras) < 2 or cameras[0] not in CAMERAS:
        return
    first = orders.setdefault(frozenset(cameras), cameras)
    if cameras != first:
        message = f"{_short(cameras)}; earlier rows {_short(first)}"
        yield Finding("camera_order", sample.source, message)


def _short(cameras: Iterable[str]) -> str:
    return ", ".join(camera.removeprefix("CAM_") for camera in cameras)


def _second(
    entries: Iterable[Entry], together: _Together, tally: Tally, copy: Cleaner | None
) -> None:
    """Add the findings about rows together, and write the clean copy."""
    for place, entry in enumerate(entries):
        findings: list[Finding] = []
        if isinstance(entry.result, Sample):
            findings = list(together.findings(entry.result, place))
            tally.add(findings)
        if copy is not None:
            copy.add(entry, [*_by_itself(entry, together.unit), *findings])


def _fault(fault: str) -> tuple[str, str]:
    return ("image_missing" if fault.startswith("there is no") else "image_unreadable"), fault


def _leakage(test: str, survey: _Survey, together: _Together) -> dict[str, str | int] | None:
    """Count the things that both sets show, and the test pictures and rows nobody could compare."""
    mine, theirs = survey.exposed, together.test
    if theirs is None:
        return None
    kinds = ("scenes", "frames", "names")
    return {
        "test": test,
        **{kind: len(getattr(mine, kind).keys() & getattr(theirs, kind)) for kind in kinds},
        "pictures": len(together.alike),
        "unseen": together.unseen,
        "skipped": theirs.skipped,
    }


def _cleaned(fix: Path, copy: Cleaner) -> dict[str, Any]:
    counts = {"kept": copy.kept, "dropped": copy.reasons.count}
    return {"file": str(fix), "list": str(list_beside(fix)), **counts}


def table(report: Mapping[str, Any]) -> str:
    """Write the report as lines for people."""
    file = report["file"]
    tags = f"tags in {report['unit']}s" if report["unit"] else "no tags"
    about = f"{report['rows']} rows of format {report['format']}, {tags}"
    lines = [f"{file}: {about}, {report['images']['files']} images"]
    for row in report["checks"]:
        lines.append(f"{row['severity']:<8} {row['check']:<17} {row['rows']:>8}  {row['what']}")
        for shown in row["shown"][:3]:
            where = shown["where"].removeprefix(file).removeprefix(", ") or "all rows"
            lines.append(one_line(f"{'':>12}{where}: {shown['message']}"))
    if leakage := report["leakage"]:
        shared = ", ".join(f"{leakage[k]} {k}" for k in ("scenes", "frames", "names", "pictures"))
        lines.append(f"shared with {leakage['test']}: {shared}")
        if leakage["unseen"]:
            lines.append(f"{leakage['unseen']} test pictures are missing or blank: not compared")
        if leakage["skipped"]:
            lines.append(f"{leakage['skipped']} test rows cannot be read: not compared")
    if cleaned := report["cleaned"]:
        lines.append(
            f"kept {cleaned['kept']} rows in {cleaned['file']}, dropped {cleaned['dropped']} "
            f"({cleaned['list']}); image paths still start from {report['root']}"
        )
    lines.append(f"{report['errors']} errors, {report['warnings']} warnings")
    return "\n".join(lines)
