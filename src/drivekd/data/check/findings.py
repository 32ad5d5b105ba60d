"""The checks of `drivekd data check`, and the record of their findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

#: rows of a check that are kept with their words; all are counted
EXAMPLES = 200

Severity = Literal["error", "warning"]

#: every check: how bad it is, and what it says about a row
CHECKS: dict[str, tuple[Severity, str]] = {
    "row": ("error", "cannot be read as a row of its format"),
    "image_path": ("error", "names an image by a URL or outside the data's folder"),
    "placeholders": ("error", "has another number of <image> than of images"),
    "camera_absent": ("error", "names a camera of which it has no image"),
    "image_missing": ("error", "names an image that is not there"),
    "image_unreadable": ("error", "names a file that is no whole image"),
    "tag_unit": ("error", "has tags in another unit than the rest of the file"),
    "tag_range": ("error", "has tags outside the picture"),
    "answer_option": ("error", "answers with a letter that is not offered"),
    "option_repeat": ("error", "offers an option or a letter twice"),
    "truncated": ("error", "has an answer that breaks off"),
    "empty_turn": ("error", "has a turn without words"),
    "contradiction": ("error", "answers the same question differently by option or yes/no"),
    "leak_scene": ("error", "shows a scene of the test set"),
    "leak_frame": ("error", "shows a frame of the test set"),
    "leak_name": ("error", "names an image of the test set"),
    "leak_picture": ("error", "shows a picture that looks like one of the test set"),
    "duplicate": ("warning", "repeats an earlier row"),
    "answers_differ": ("warning", "answers the same question in other words"),
    "camera_order": ("warning", "has its cameras in another order than earlier rows"),
    "unassigned": ("warning", "has no capability, and training refuses it"),
    "unanswered": ("warning", "has no answer to learn or to score"),
    "majority": ("warning", "is a kind of question with nearly always the same answer"),
    "imbalance": ("warning", "is a capability with few rows"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One row that fails one check."""

    check: str
    where: str
    message: str


@dataclass(slots=True)
class Tally:
    """Findings as they come: every one is counted, the first of each check are kept."""

    counts: Counter[str] = field(default_factory=Counter)
    kept: dict[str, list[Finding]] = field(default_factory=dict)

    def add(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self.counts[finding.check] += 1
            rows = self.kept.setdefault(finding.check, [])
            if len(rows) < EXAMPLES:
                rows.append(finding)

    def total(self, severity: Severity) -> int:
        return sum(n for check, n in self.counts.items() if CHECKS[check][0] == severity)

    def as_json(self) -> list[dict[str, Any]]:
        """Return the checks that failed, in the order of `CHECKS`."""
        return [
            {
                "check": check,
                "severity": severity,
                "what": what,
                "rows": self.counts[check],
                "shown": [{"where": f.where, "message": f.message} for f in self.kept[check]],
            }
            for check, (severity, what) in CHECKS.items()
            if self.counts[check]
        ]
