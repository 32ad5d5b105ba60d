"""Shares of capabilities, and of the most frequent answer to each template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from drivekd.data.check.faults import plain
from drivekd.data.check.findings import Finding
from drivekd.data.sample import Sample

#: different templates and capabilities that are counted, and different answers of a template
_TEMPLATES, _ANSWERS = 500, 300
_LONGEST = 60  # an answer's characters that are kept
#: from this many rows on a share says something
_ENOUGH = 20
#: a warning above this share of one answer, and below this share of a capability [ours]
_NEARLY_ALWAYS, _FEW = 0.9, 0.05
_NONE, _OTHERS = "(none)", "(others)"


def _known(name: str | None, names: Collection[str], most: int) -> str:
    """Return a name to count under: one of at most so many, or one for all others."""
    name = name or _NONE
    return name if name in names or len(names) < most else _OTHERS


@dataclass(slots=True)
class Balance:
    """Counts of a file, of bounded size however long the file is."""

    capabilities: Counter[str] = field(default_factory=Counter)
    templates: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, sample: Sample) -> None:
        self.capabilities[_known(sample.capability, self.capabilities, _TEMPLATES)] += 1
        if (answer := sample.answer) is None:
            return
        template = _known(sample.template, self.templates, _TEMPLATES)
        answers = self.templates.setdefault(template, Counter())
        short = plain(answer[: 4 * _LONGEST])[:_LONGEST]
        answers[_known(short, answers, _ANSWERS)] += 1

    def majorities(self) -> list[dict[str, Any]]:
        """Return rows, the most frequent answer and its share per template, most rows first."""
        rows = []
        for name, answers in self.templates.items():
            known = [(text, n) for text, n in answers.items() if text != _OTHERS]
            answer, count = max(known, key=lambda item: item[1], default=(_OTHERS, 0))
            total = answers.total()
            rows.append({"template": name, "rows": total, "answer": answer, "share": count / total})
        return sorted(rows, key=lambda row: (-row["rows"], row["template"]))

    def findings(self, file: str) -> Iterator[Finding]:
        """Yield warnings about the file as a whole."""
        for row in self.majorities():
            if row["rows"] >= _ENOUGH and row["share"] >= _NEARLY_ALWAYS:
                message = (
                    f"{row['template']}: {100 * row['share']:.0f} % of {row['rows']} answers are "
                    f"{row['answer']!r}"
                )
                yield Finding("majority", file, message)
        total = self.capabilities.total()
        for name, count in self.capabilities.items():
            if total >= _ENOUGH and count < _FEW * total and name != _NONE:
                yield Finding("imbalance", file, f"{name}: {count} of {total} rows")
