"""Reads an answer out of free text and compares it: options, yes/no, exact text, object tags.

Everything here is deterministic and knows no model. A reply that cannot be read is None, never a
guess: an unreadable reply is a wrong answer, and how often that happens is worth knowing.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from drivekd.data.tags import Tag

_IS = r"\s*(?:is\b|(?:would|should|must|will)\s+be\b|[:=])"
#: Phrases after which a reply says which option it takes; the last readable one counts.
_CUE = re.compile(
    rf"""\b(?:
        final(?:\s+(?:answer|choice|option))? {_IS}
      | (?:answer|choice|selection|pick|verdict|correct) {_IS}
      | answer (?=\s+[\[({{]?[A-Z0-9](?:[\])}}.:,;\s]|$))
      | (?:answer|choice|correct|right|best|chosen)\s+option {_IS}
      | (?:correct|right|best)\s+(?:one|action|choice|answer) {_IS}
      | i(?:\s+would|\s+will|'d|'ll)?\s+(?:choose|pick|select|answer|go\s+(?:with|for)) \b
      | (?:choose|select|pick) \b
    )\s*:?""",
    re.IGNORECASE | re.VERBOSE,
)
#: "B is correct", "option (B) is the right answer".
_VERDICT = re.compile(
    r"\b(?:option\s+)?\(?([A-Za-z0-9])\)?\s+(?:is|would\s+be)\s+(?:the\s+)?(?:most\s+)?"
    r"(?:correct|right|best|appropriate)\b"
)
#: "therefore B", "I think it is (C).", or a last sentence that is one capital alone.
_HINT = re.compile(
    r"(?:\b(?i:it\s+is|it's|it\s+(?:must|should|would)\s+be|therefore|thus|hence|so),?\s+"
    r"|[.!?:]\s+)(?i:option\s+)?[\[({]*([A-Z0-9])[\])}]*\s*[.!]?\s*$",
    re.MULTILINE,
)
_LABEL = re.compile(
    r"(?:option\s+)?[\[({]*([A-Za-z0-9])(?:[\])}]|[.:,;](?!\d)|(?=\s|$))", re.IGNORECASE
)
_LINE_LABEL = re.compile(
    r"^\s*[-*]?\s*(?i:option\s+)?[\[({]*([A-Za-z0-9])(?:[\])}.:,;]+(?!\d)|\s*$)"
)
_REFUSED = re.compile(
    r"\W*(?:is|are|was|would\s+be)\s+(?:not|wrong|incorrect|unsafe|less)\b", re.IGNORECASE
)
_INNER_LABEL = re.compile(r"(?:(?<=\s)|(?<=^)|(?<=[(\[{]))([A-Z0-9])[.):\]}](?=\s|$)")
_MARKUP = re.compile(r"[*_`$]|\\(?:boxed|text|mathrm|mathbf)\b|</answer>")
_NEGATION = re.compile(
    r"(?:\b(?:not|no|never|isn't|aren't|cannot|without)|n't)\s+(?:\w+\s+)?$", re.IGNORECASE
)


def normalise(text: str) -> str:
    """Returns text in the form in which answers are compared.

    Unicode NFKC, case folded, one space between words, no quotes, markup or final punctuation.
    Articles and inner punctuation stay: tags and numbers must survive [ours].
    """
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return " ".join(folded.split()).strip(" \t\"'`*.,;:!?")


def exact_match(reply: str, answer: str) -> bool:
    """Whether reply and answer are the same text after `normalise`.

    Raises:
        ValueError: answer is empty, so that an empty reply would count as right.
    """
    expected = normalise(answer)
    if not expected:
        raise ValueError(
            f"expected answer {answer!r} is empty after normalising: nothing can be compared with"
            " it; drop this sample from the evaluation"
        )
    return normalise(reply) == expected


def yes_no(reply: str) -> Literal["yes", "no"] | None:
    """Reads yes or no: a declared one, else the first word, else the only one in the text."""
    text = normalise(_MARKUP.sub("", reply))
    declared = [w for cue in _CUE.finditer(text) if (w := _leading_yes_no(text[cue.end() :]))]
    if declared:
        return declared[-1]
    first = _leading_yes_no(text)
    if first:
        return first
    found = set(re.findall(r"\b(yes|no)\b(?!\s+(?:one|longer|\w+s\b))", text))
    return found.pop() if len(found) == 1 else None


def _leading_yes_no(text: str) -> Literal["yes", "no"] | None:
    match = re.match(r"[\s({\[]*(yes|no)\b", text, re.IGNORECASE)
    if match is None:
        return None
    return "yes" if match.group(1).lower() == "yes" else "no"


def read_option(reply: str, options: Mapping[str, str]) -> str | None:
    """Returns the letter of the offered option that a reply takes, None if it cannot be read.

    In this order [ours]: the last explicit declaration ("Final: {B. …}", "the answer is B", "I
    choose (B)", "B is correct"; one that names no offered option makes the reply unreadable); a
    label that opens a line ("B", "B.", "(B) stop"); a last word that is one ("so it is B"); the
    text of exactly one option. The article in "a red car" is no option A, a negated text ("not
    moving") is no vote for it, and a reply that lists several options without declaring one is
    unreadable.

    Args:
        reply: what the model said.
        options: letter to text, as offered; letters may be of either case.

    Raises:
        ValueError: no options, or a key that is not one letter or digit.
    """
    letters = _letters(options)
    text = unicodedata.normalize("NFKC", reply).replace("<answer>", "Answer: ")
    text = _MARKUP.sub("", text).strip()
    declared = _declarations(text, letters, options)
    if declared:
        return declared[-1]
    labels = _labels(text, letters)
    if labels:
        return labels.pop() if len(labels) == 1 else None
    hints = [letter for letter in _HINT.findall(text) if letter in letters]
    if hints:
        return letters[hints[-1]]
    return _by_text(text, options)


def _letters(options: Mapping[str, str]) -> dict[str, str]:
    """Upper-case letter to the key it stands for."""
    bad = [key for key in options if len(key) != 1 or not key.isalnum()]
    if not options or bad or len({key.upper() for key in options}) < len(options):
        raise ValueError(
            f"options {dict(options)!r}: expected at least one distinct letter (A, B, …) mapped to"
            f" its text, got {'none' if not options else f'{bad or list(options)} as letters'};"
            " pass {'A': 'first text', …}"
        )
    return {key.upper(): key for key in options}


def _declarations(
    text: str, letters: Mapping[str, str], options: Mapping[str, str]
) -> list[str | None]:
    """The options declared, in order; None for one that is off the menu or names two."""
    found: list[tuple[int, str | None]] = []
    for cue in _CUE.finditer(text):
        clause = re.split(r"\n|(?<=[a-z])[.!](?=\s|$)", text[cue.end() :], maxsplit=1)[0]
        taken = _declared(clause, letters, options)
        if taken != "nothing":
            found.append((cue.end(), taken))
    for verdict in _VERDICT.finditer(text):
        letter = verdict.group(1)
        if letter.isupper() or letter.isdigit():
            found.append((verdict.end(), letters.get(letter)))
    return [taken for _, taken in sorted(found, key=lambda item: item[0])]


def _declared(
    clause: str, letters: Mapping[str, str], options: Mapping[str, str]
) -> str | Literal["nothing"] | None:
    """What the words after a cue take; "nothing" where they declare no option at all."""
    rest = re.sub(r"^[\s:=]*(?:(?:clearly|simply|therefore|probably|likely)\s+)?", "", clause)
    refused = re.match(r"(?:not|neither)\b(.*)", rest, re.IGNORECASE | re.DOTALL)
    if refused:
        turn = re.search(r"\bbut\s+(?:rather\s+)?(.*)", refused.group(1), re.IGNORECASE | re.DOTALL)
        return _declared(turn.group(1), letters, options) if turn else "nothing"
    label = _LABEL.match(rest)
    if label and not _is_word(label, rest):
        if _names_another(rest[label.end() :], label.group(1)):
            return None
        return letters.get(label.group(1).upper())
    return _by_text(rest, options) or "nothing"


def _is_word(label: re.Match[str], rest: str) -> bool:
    """Whether a single letter is the article "a" or the pronoun "I", not a label."""
    letter, after = label.group(1), rest[label.end() :]
    bare = label.group(0).strip() == letter
    if not bare or letter.isdigit():
        return False
    if letter in "aAI":
        return bool(re.match(r"\s+(?!is\b|because\b|since\b|as\b|and\b|or\b|not\b|but\b)\w", after))
    return letter.islower() and bool(after.strip())


def _names_another(after: str, letter: str) -> bool:
    """Whether a label is followed by a second one: "B or C", "A and B", "A/B"."""
    other = re.match(r"\s*(?:or|and|/|&)\s*\(?([A-Z0-9])\b", after)
    return other is not None and other.group(1) != letter.upper()


def _labels(text: str, letters: Mapping[str, str]) -> set[str]:
    """Offered options that open a line, plus others labelled later in those lines."""
    found: set[str] = set()
    for line in text.splitlines():
        opening = _LINE_LABEL.match(line)
        if opening is None:
            opening = _leading_capital(line)
        if opening is None or opening.group(1).upper() not in letters:
            continue
        if _REFUSED.match(line[opening.end() :]):
            continue
        found.add(letters[opening.group(1).upper()])
        later = _INNER_LABEL.findall(line[opening.end() :])
        found.update(letters[name] for name in later if name in letters)
    return found


def _leading_capital(line: str) -> re.Match[str] | None:
    """A capital that opens a line without punctuation ("B because …"), the article excluded."""
    opening = re.match(r"\s*(?:[Oo]ption\s+)?([A-Z])(?=\s)", line)
    return None if opening is None or _is_word(opening, line) else opening


def _by_text(text: str, options: Mapping[str, str]) -> str | None:
    """The only option whose text stands in the reply; a longer option hides those inside it."""
    reply, taken, hidden = normalise(text), set[str](), list[tuple[int, int]]()
    for key in sorted(options, key=lambda k: -len(normalise(options[k]))):
        wanted = normalise(options[key])
        if not wanted:
            continue
        if wanted == reply:
            same = [k for k in options if normalise(options[k]) == reply]
            return same[0] if len(same) == 1 else None
        for hit in re.finditer(rf"(?<!\w){re.escape(wanted)}(?!\w)", reply):
            inside = any(a <= hit.start() and hit.end() <= b for a, b in hidden)
            same_text = any((a, b) == hit.span() for a, b in hidden)
            if (inside and not same_text) or _NEGATION.search(reply[: hit.start()]):
                continue
            hidden.append(hit.span())
            taken.add(key)
    return taken.pop() if len(taken) == 1 else None


@dataclass(frozen=True, slots=True)
class TagMatch:
    """Counts of a one-to-one matching of tags.

    precision is None when nothing was named, recall when nothing was expected, f1 when both.
    """

    matched: int
    named: int
    expected: int

    @property
    def precision(self) -> float | None:
        """Share of the named tags that were expected."""
        return self.matched / self.named if self.named else None

    @property
    def recall(self) -> float | None:
        """Share of the expected tags that were named."""
        return self.matched / self.expected if self.expected else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall: 2·matched / (named + expected)."""
        total = self.named + self.expected
        return 2 * self.matched / total if total else None


def match_tags(named: Sequence[Tag], expected: Sequence[Tag], threshold: float = 0.05) -> TagMatch:
    """Pairs named with expected tags: same camera, distance at most threshold, each used once.

    As many pairs as possible, and among those the ones with the smallest sum of distances.

    Args:
        named: tags of the reply; a tag named twice counts twice.
        expected: tags of the ground truth.
        threshold: largest Euclidean distance of a pair, in the tags' unit (fractions of the
            image's width and height in the world, pixels in DriveLM).

    Raises:
        ValueError: threshold is negative or not finite.
    """
    if not (math.isfinite(threshold) and threshold >= 0):
        raise ValueError(f"threshold of tag matching: expected a number >= 0, got {threshold}")
    if not named or not expected:
        return TagMatch(0, len(named), len(expected))
    far = [[math.hypot(a.x - b.x, a.y - b.y) for b in expected] for a in named]
    distance = np.asarray(far, dtype=np.float64)
    same = np.asarray([[a.camera == b.camera for b in expected] for a in named])
    allowed = same & (distance <= threshold)
    # A forbidden pair costs more than all allowed pairs together, so it is used only when it must.
    forbidden = 1.0 + threshold * (len(named) + len(expected))
    rows, columns = linear_sum_assignment(np.where(allowed, distance, forbidden))
    return TagMatch(int(allowed[rows, columns].sum()), len(named), len(expected))
