"""Options that a reply names by their text alone, without their letter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_WORD = re.compile(r"\d+\.\d+|\w+(?:'\w+)?|[^\w\s]")
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(i) for i, word in enumerate(_NUMBERS, 1)}
#: words that carry no meaning of their own in an option
_SMALL = {"the", "a", "an", "is", "are", "it", "its", "and", "to"}
#: what makes the text behind it no vote: "not (yet) moving", "instead of moving"
_REFUSAL = re.compile(
    r"(?:\b(?:not|no|never|cannot|without|neither|nor)|n't|\binstead\s+of|\bthan)\s+(?:\w+\s+)?$"
    r"|(?:\bnot|n't|\bcannot)\s+(?:think|believe|say|expect|see|tell|sure|certain)\b[^.;!?\n]*$"
    r"|\b(?:whether|if|unless)\b[^.,;!?\n]*$",
    re.IGNORECASE,
)

#: a word and where it begins in the text
Word = tuple[str, int]


def option_named(text: str, options: Mapping[str, str]) -> str | None:
    """Return the only option whose text is in a reply, None for none or more.

    Compared are words and punctuation, whatever their case; where no option is read so, words
    without their endings ("turning left" for "turn left"); then also without articles, "it is" and
    punctuation, each word once ("ego vehicle is going straight, driving slowly"). A longer option
    hides those inside it ("not moving" hides "moving"), and a negated text is no vote.
    """
    said = _words(text)
    offered = {key: _words(option) for key, option in options.items()}
    for form in (_plain, _stems, _gist):
        named = _named(text, form(said), {key: form(words) for key, words in offered.items()})
        if named:
            return named.pop() if len(named) == 1 else None
    return None


def _words(text: str) -> list[Word]:
    words = [(w[0].casefold(), w.start()) for w in _WORD.finditer(text)]
    while words and not words[-1][0][0].isalnum():
        words.pop()
    return [(_DIGITS.get(word, word), start) for word, start in words]


def _plain(words: Sequence[Word]) -> list[Word]:
    return list(words)


def _stems(words: Sequence[Word]) -> list[Word]:
    return [(_stem(word), start) for word, start in words]


def _gist(words: Sequence[Word]) -> list[Word]:
    """Keep stems that mean something, each at its first place."""
    firsts: dict[str, int] = {}
    for stem, start in _stems([w for w in words if w[0] not in _SMALL and w[0][0].isalnum()]):
        firsts.setdefault(stem, start)
    return list(firsts.items())


def _stem(word: str) -> str:
    """Cut -ing, -ed, -es, -s or -e, and one of two equal letters before it."""
    stem = re.sub(r"(?<=\w\w)(?:ing|ed|es|s|e)$", "", word) if word.isalpha() else word
    return re.sub(r"([^aeiouls])\1$", r"\1", stem) if stem != word else word


def _named(text: str, said: Sequence[Word], offered: Mapping[str, Sequence[Word]]) -> set[str]:
    """Name the options that are part of what is said; a hit inside a longer one is none."""
    named, taken = set[str](), list[tuple[int, int]]()
    for key in sorted(offered, key=lambda k: -len(offered[k])):
        wanted = [word for word, _ in offered[key]]
        for first in range(len(said) - len(wanted) + 1 if wanted else 0):
            if [word for word, _ in said[first : first + len(wanted)]] != wanted:
                continue
            span = (first, first + len(wanted))
            hidden = any(a <= span[0] and span[1] <= b for a, b in taken if (a, b) != span)
            if not hidden and not _refused(text, said[first][1]):
                taken.append(span)
                named.add(key)
    return named


def _refused(text: str, start: int) -> bool:
    """Whether the words before a place turn down what follows."""
    return _REFUSAL.search(text[max(0, start - 200) : start]) is not None
