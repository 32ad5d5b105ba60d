"""Reads points out of a reply: all criteria and a total that is their sum, or why there are none.

A reply is a JSON object or a score sheet. Ours has to carry the mark of its request, a hash that
covers the graded answer: no answer can hold its own mark, so a sheet that the answer brought along,
quoted by the judge, is never read.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from drivekd.evaluate.judging.sheets import Sheet

_NUMBER = r"(\d{1,4}(?:\.\d{1,4})?)(?:[ \t]*/[ \t]*(\d{1,4}))?(?![\w.]*\d|[ \t]*[-–][ \t]*\d)"
_START = r"^[ \t*#>_-]*"
_ROW = re.compile(rf"{_START}(\d{{1,2}})[.)][^\n:]{{0,160}}:[ \t*_]*{_NUMBER}", re.MULTILINE)
_TOTAL = re.compile(
    rf"{_START}total\b[^\n:]{{0,60}}:[ \t*_]*{_NUMBER}", re.MULTILINE | re.IGNORECASE
)
#: sums of points with decimals
_CLOSE = 1e-6


@dataclass(frozen=True, slots=True)
class Points:
    """Points per criterion, in the sheet's order."""

    scores: tuple[float, ...]

    @property
    def total(self) -> float:
        return sum(self.scores)


def read_points(reply: str, sheet: Sheet, mark: str | None) -> Points | str:
    """The points of a reply, or in one line what is wrong with it.

    Args:
        reply: of the judge.
        sheet: that it was to fill in.
        mark: of the request; None for a user's rubric, whose whole reply is read.
    """
    if mark is not None:
        if mark not in reply:
            return f"no score sheet: the mark {mark} is missing"
        parsed = _object(reply)
        if parsed is not None and parsed.get("mark") == mark:
            return _checked(parsed.get("scores"), parsed.get("total"), sheet)
        reply = reply.rpartition(mark)[2]
        end = _TOTAL.search(reply)  # what a judge quotes behind its sheet is no part of it
        reply = reply[: end.end()] if end is not None else reply
    rows: dict[int, set[float]] = {}
    for number, value, most in _ROW.findall(reply):
        if not most or _points(sheet, int(number)) == int(most):
            rows.setdefault(int(number), set()).add(float(value))
    totals = {float(v) for v, most in _TOTAL.findall(reply) if not most or int(most) == sheet.total}
    for number in range(1, len(sheet.criteria) + 1):
        if len(rows.get(number, ())) != 1:
            said = "two different scores" if rows.get(number) else "no score"
            return f"{said} for criterion {number}, {sheet.criteria[number - 1].name}"
    if len(totals) != 1:
        return "two different totals" if totals else "no total"
    scores = [rows[number].pop() for number in range(1, len(sheet.criteria) + 1)]
    return _checked(scores, totals.pop(), sheet)


def _object(reply: str) -> dict[str, Any] | None:
    """The JSON object that the reply is, bare or in a code fence."""
    text = re.sub(r"\A\s*```(?:json)?|```\s*\Z", "", reply).strip()
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _points(sheet: Sheet, number: int) -> int | None:
    return sheet.criteria[number - 1].points if 1 <= number <= len(sheet.criteria) else None


def _checked(scores: Any, total: Any, sheet: Sheet) -> Points | str:
    if not isinstance(scores, list) or len(scores) != len(sheet.criteria):
        return f"expected {len(sheet.criteria)} scores, got {scores!r:.80}"
    for value, criterion in zip(scores, sheet.criteria, strict=True):
        if type(value) not in (int, float) or not 0 <= value <= criterion.points:
            return f"{criterion.name}: {value!r:.20} is not within 0 to {criterion.points}"
    if type(total) not in (int, float) or not abs(total - sum(scores)) < _CLOSE:
        return f"the total {total!r:.20} is not the sum of the criteria, {sum(scores):g}"
    return Points(tuple(float(value) for value in scores))


def schema(sheet: Sheet, mark: str) -> dict[str, Any]:
    """The JSON schema of a filled sheet, as `response_format` of a request."""
    count = len(sheet.criteria)
    scores = {"type": "array", "items": {"type": "number"}, "minItems": count, "maxItems": count}
    properties = {"mark": {"const": mark}, "scores": scores, "total": {"type": "number"}}
    inner = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    named = {"name": "score_sheet", "schema": inner, "strict": True}
    return {"type": "json_schema", "json_schema": named}
