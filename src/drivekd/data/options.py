"""The options that a multiple-choice question offers, and the letter that an answer takes."""

from __future__ import annotations

import re

#: `A. `, `A) ` or `A: ` after punctuation or on a new line ("lane B. " is none), or `(A) `
_MARK = re.compile(r"(?:(?:^|[.?!:;,\n])\s{0,3}|(?<=\s)(?=\())\(?([A-Z])[.):]\s")
_LETTER = re.compile(
    r"[\s*]*(?:(?:final|answer|option)\b[\s:{(\[*]*){0,3}[({\[]?([A-Z])(?:[.):}\]]|\s*$)",
    re.IGNORECASE,
)


def options_of(question: str) -> list[tuple[str, str]]:
    """Return the letters and texts of `… A. Going ahead. B. Turn left.`, [] for another question.

    Letters must run on from A; one that comes twice in a row is kept, for it is a fault to report.
    """
    if not ("A." in question or "A)" in question or "A:" in question):  # most: no search needed
        return []
    places: list[re.Match[str]] = []
    for mark in _MARK.finditer(question):
        expected = chr(ord(places[-1][1]) + 1) if places else "A"
        if mark[1] == expected or (places and mark[1] == places[-1][1]):
            places.append(mark)
    if len(places) < 2:
        return []
    ends = [mark.start() for mark in places[1:]] + [len(question)]
    return [
        (mark[1], question[mark.end() : end].strip())
        for mark, end in zip(places, ends, strict=True)
    ]


def letter_of(answer: str) -> str | None:
    """Return the letter that begins an answer: `B`, `(B)`, `B. Turn left.`, `Final: {B. …}`."""
    match = _LETTER.match(answer)
    return match[1] if match and match[1].isupper() else None
