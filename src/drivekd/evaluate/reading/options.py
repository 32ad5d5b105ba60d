"""The option, or the yes or no, that a free reply takes.

Everything here is deterministic and knows no model. A reply that cannot be read is None, never a
guess.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Literal

from drivekd.evaluate.reading.option_texts import option_named

YesNo = Literal["yes", "no"]
#: no clause around a declaration is longer [characters]
_CLAUSE = 400

_ANSWER = "a[nsw]{2,3}[er]{0,2}s?"  # misspelt as well: anwser, asnwer, answr, ans
_FOREIGN = (
    r"答案|选项|答え|정답|respuesta(?:\s+correcta)?|resposta|risposta|antwort|réponse|ответ|jawaban"
)
_IS = r"""\s*(?:
    (?:'s|is|was|are|(?:would|should|must|will|could|might|may)\s+be|(?:seems|appears)\s+to\s+be)\b
  | (?:es|ist|est|é|è)\b | [是为は은는:=;] | [-–—](?=\s)
)\s*:?"""
#: Phrases after which a reply says which option it takes; the last readable one counts.
_CUE = re.compile(
    rf"""(?<![A-Za-z])(?:
        (?: final (?:\s+(?:{_ANSWER}|choice|option))?
          | {_ANSWER} (?:\s+(?:to|for)(?:\s+\w+){{1,5}}?)?
          | choice | selection | pick | verdict | guess | conclusion | correct
          | (?:correct|right|best|chosen|selected|likely|appropriate|suitable)
            \s+(?:option|one|action)
        ) {_IS}
      | (?:{_FOREIGN}) {_IS}
      | (?:option|prediction|status)\s*[:=]
      | (?:{_ANSWER}|conclusion) (?=\s+[\[({{]*[A-Z0-9](?:[\])}}.:,;\s]|$))
      | (?:let's|(?:i|we)(?:\s+would|\s+will|'d|'ll)?)
        \s+(?:choose|chose|pick|select|say|{_ANSWER}|meant|(?:go|opt)\s+(?:with|for))\b
      | (?<![^.!?\n]) \s? (?:choose|select|pick|going\s+with)\b
    ) | 选项(?=[A-Z]) | 选择?""",
    re.IGNORECASE | re.VERBOSE,
)
#: words that only announce a letter: "option B", "the letter B", "opton B"
_OPTION = r"(?:(?:the\s+)?(?:opt\w*|choice|letter)\s+)?"
#: "therefore B", "I think it is (C).", "that leaves D".
_HINT = re.compile(
    r"\b(?i:is|it's|es|est|ist|(?:must|should|would)\s+be|therefore|thus|hence|so|actually"
    rf"|leav(?:es|ing)|but(?:\s+rather)?),?\s+(?i:{_OPTION})"
    r"[\[({]*(?P<letter>[A-Z0-9])[\])}]*\s*(?:[.!]?\s*$|[.;]\s)",
    re.MULTILINE,
)
#: a last sentence that is one capital alone
_LAST = re.compile(rf"[.!?:,]\s+(?i:{_OPTION})[\[({{]*(?P<letter>[A-Z0-9])[\])}}]*\s*[.!]?\s*$")
#: a capital alone that is no article and no pronoun
_ALONE = re.compile(r"(?<![\w'])([A-Z0-9])(?![\w'])(?!(?<=[AI])\s+[a-z])")
#: "B is correct", "option (B) is the right one", "option B: correct", "C fits better", "B it is"
_VERDICT = re.compile(
    r"(?<![\w'])(?:(?P<option>[Oo]ption\s+)\(?(?P<named>[A-Za-z0-9])|\(?(?P<letter>[A-Z0-9]))\)?"
    r"(?:\s*:\s*|\s+(?:is|would\s+be|seems|looks)\s+(?:the\s+|my\s+)?)"
    r"(?:correct|right|best|answer|choice"
    r"|(?:(?:most|more)\s+)?(?:appropriate|suitable|accurate)|(?:most|more)\s+\w+)\b"
    r"|(?<![\w'])\(?(?P<fits>[A-Z0-9])\)?(?:\s+\([^()]*\))?\s+"
    r"(?:(?:fits|matches|suits)\s+be(?:st|tter)|best\s+(?:fits|matches|describes)|it\s+is)\b"
)
#: "A or …" before a verdict on B
_ONE_OF_TWO = re.compile(r"\b[A-Z0-9]\)?\s*(?:\bor\b|\band\b|/|&)\s*$")
#: "is clearly …"
_FILLER = re.compile(
    r"(?:\s|[:=]|(?:clearly|simply|therefore|definitely|certainly|probably|most\s+likely|likely"
    r"|still|either|both)\b)*",
    re.IGNORECASE,
)
#: a letter that a cue is followed by; Chinese goes on without a blank
_LABEL = re.compile(
    rf"{_OPTION}[\[({{<]*(?P<letter>[A-Za-z0-9])(?:(?![.,:;]\d)(?=[\])}}>.:,;!?/&\s])|(?![!-~À-ɏ]))",
    re.IGNORECASE,
)
#: a letter that opens a line: "B", "- (B) stop", "Probably B", "B选项"
_LINE_LABEL = re.compile(
    r"[\s>#•'\-–—]*(?i:(?:definitely|certainly|clearly|probably|most\s+likely|likely)\s+)?"
    rf"(?P<option>(?i:{_OPTION}))[\[({{<]*(?P<letter>[A-Za-z0-9])"
    r"(?:[\])}>.:;!]+(?!\d|[A-Z]\.)|(?=,)|(?P<bare>(?=\s|/|选?项|$)))"
)
#: a letter within a line that reads like that of a list: "C." or, broken off, "C"
_INNER_LABEL = re.compile(
    r"(?:(?<=\s)|(?<=^)|(?<=[(\[{]))([A-Z0-9])(?:[.):\]}](?=\s|$)|(?<=[.!?]\s.)$)"
)
#: a line of letters: "A B", "B. B. B."
_LETTERS_ONLY = re.compile(r"\W*(?:[A-Z0-9]\W+)+[A-Z0-9]?\W*")
#: a second letter behind a first: " or C", "/C", ", maybe C"
_SECOND = re.compile(
    r"[\])}>]*\s*(?P<by>,?\s*(?:\bor\b|\band\b)|[,/&])\s*(?i:maybe\s+|possibly\s+|perhaps\s+)?"
    r"(?i:option\s+)?[\[({]*(?P<letter>[A-Za-z0-9])(?![\w'])"
)
#: … or further behind: "A) turn left, C) turn right"
_SECOND_BRACKET = re.compile(r"(?:[,;/&]|\bor|\band)\s*\(?([A-Z0-9])[)\]](?=\s|$)")
#: a new sentence about the second letter: "B, A is wrong"
_IS_SO = re.compile(r"\s+(?:is|was|has|would)\b")
#: what follows a letter that is turned down: " is wrong", ": incorrect"
_REFUSED = re.compile(
    r"\W*(?:is|are|was|would\s+be)?\s*(?:not|wrong|incorrect|unsafe|less|unlikely)\b"
    r"|\s+(?:isn't|can't|cannot|doesn't|wouldn't)\b",
    re.IGNORECASE,
)
#: what follows a letter that is no article: "A because …"
_GOES_ON = r"(?:because|since|as|for|and|or|not|but|it|rather|over|instead)\b"
#: what precedes a declaration in its clause and takes it back: "I don't think …", "the wrong …"
_NEGATED = re.compile(
    r"(?:\b(?:not|never|cannot|hardly|whether|if|unless|wrong|incorrect|less|least)\b|n't\b|不)"
    r"(?:(?!\b(?:but|and|so|because|since|hence|therefore|thus)\b)[^.,;:!?\n])*$",
    re.IGNORECASE,
)
#: thinking that an answer follows
_THINKING = re.compile(r"\A.*</think>(?=.*\w)", re.IGNORECASE | re.DOTALL)
#: a question that the model asks itself behind its answer
_NEXT_TURN = re.compile(r"\n(?:#+\s)?(?:question|q|human|user)\s*\d*\s*:", re.IGNORECASE)
_WRAPPING = re.compile(r"\\(?:text(?:bf|rm|it)?|math(?:rm|bf))\b|\\[\[\]()]")
_ANSWER_MARK = re.compile(r"<answer>|\\boxed\b", re.IGNORECASE)
_MARKUP = re.compile(
    r"[*`$\"“”]|</?(?:answer|think|s)>|<\|\w+\|>|(?<![A-Za-z0-9])(?:_+|')|(?:_+|')(?![A-Za-z0-9])",
    re.IGNORECASE,
)
#: says neither: "yes or no", and the "no. 1" of a list
_NEITHER = re.compile(r"\b(?:yes|no)\b\s*(?:/|\bor\b|\band\b)\s*\b(?:yes|no)\b|\bno\.\s*\d")
#: a first word that answers; "no idea" does not
_OPENING = re.compile(
    r"[\s({\[>#\-]*(?:(?P<yes>yes|yeah|yep|yup)|(?P<no>no|nope|nah)"
    r"(?!\s+(?:idea|clue|doubt|information|answer|way|comment)\b))(?![\w'])"
)
_FLATLY_NOT = re.compile(r"\W*(?:absolutely|definitely|certainly|surely|probably)\s+not\W*")
#: words behind which a yes or no counts like a declared one: "so yes", "wait, no"
_TURN = re.compile(
    r"\b(?:so|therefore|thus|hence|actually|correction|wait|say|think)\W+"
    r"(?=(?:yes|no)\b\s*(?:[.,;!]|because|since|$))"
)


def read_option(reply: str, options: Mapping[str, str] | Sequence[str]) -> str | None:
    """Return the letter of the offered option that a reply takes, None if it cannot be read.

    In this order [ours]: the last explicit declaration ("Final: {B. …}", "the answer is B", "I
    choose (B)", "B is correct", "so it is B"; one that names no offered option, or two, makes the
    reply unreadable); a label that opens a line ("B", "B.", "(B) stop"); the words of exactly one
    option. Thinking in `<think>` and turns that the model invented after its answer do not count.
    The article in "a red car" is no option A, what is negated ("not B", "not moving") is no vote,
    and a reply that lists several options without declaring one is unreadable.

    Options are texts by their letters, of either case, or a list of texts, lettered from A on.

    ValueError: no options, or a key that is not one letter or digit.
    """
    if not isinstance(options, Mapping):
        options = dict(zip(ascii_uppercase, options, strict=False))
    letters = _letters(options)
    text = _plain(reply)
    first_turn = _NEXT_TURN.split(text, maxsplit=1)[0]
    return _read(first_turn, letters, options) or _read(text, letters, options)


def yes_no(reply: str) -> YesNo | None:
    """Read yes or no: a declared one, else the first word, else the only one said in the text."""
    text = _NEITHER.sub("", _plain(reply).casefold())
    declared = [
        word
        for cue in sorted((*_CUE.finditer(text), *_TURN.finditer(text)), key=re.Match.end)
        if not _negated(text[max(0, cue.start() - _CLAUSE) : cue.start()])
        and (word := _opening(text[cue.end() : cue.end() + _CLAUSE]))
    ]
    if declared:
        return declared[-1]
    if _FLATLY_NOT.fullmatch(text):
        return "no"
    if first := _opening(text):
        return first
    named = set(re.findall(r"\byes\b|\bno\b(?!\s+\w)", text))
    said = set(re.findall(r"\b(yes|no)\b(?=\s*(?:[.,;!)]|$))", text))
    if named != said or len(said) != 1:
        return None
    return "yes" if said == {"yes"} else "no"


def _opening(text: str) -> YesNo | None:
    match = _OPENING.match(text)
    if match is None:
        return None
    return "yes" if match["yes"] else "no"


def _plain(reply: str) -> str:
    """Strip markup, quotes and thinking; a marked answer becomes "Answer: …"."""
    text = unicodedata.normalize("NFKC", reply).replace("’", "'")
    text = _THINKING.sub("", text)
    text = _ANSWER_MARK.sub(" Answer: ", _WRAPPING.sub("", text))
    text = re.sub(r"[^\S\n]+", " ", _MARKUP.sub("", text))
    return re.sub(r" ?\n[\n ]*", "\n", text).strip()


def _letters(options: Mapping[str, str]) -> dict[str, str]:
    """Map upper-case letters to their keys."""
    bad = [key for key in options if len(key) != 1 or not key.isalnum()]
    if not options or bad or len({key.upper() for key in options}) < len(options):
        raise ValueError(
            f"options {dict(options)!r}: expected at least one distinct letter (A, B, …) mapped to"
            f" its text, got {'none' if not options else f'{bad or list(options)} as letters'};"
            " pass {'A': 'first text', …}"
        )
    return {key.upper(): key for key in options}


def _read(text: str, letters: Mapping[str, str], options: Mapping[str, str]) -> str | None:
    declared = _last_declared(text, letters, options)
    if declared != "nothing":
        return declared
    labels = _labels(text, letters)
    if labels:
        return letters.get(labels.pop()) if len(labels) == 1 else None
    last = _LAST.search(text)
    if last and set(_ALONE.findall(text)) & {*letters} == {last["letter"]}:
        return letters[last["letter"]]
    if len({name for name in _INNER_LABEL.findall(text) if name in letters}) > 1:
        return None  # the options as they were offered, or part of them
    return option_named(text, options)


def _last_declared(
    text: str, letters: Mapping[str, str], options: Mapping[str, str]
) -> str | Literal["nothing"] | None:
    """Return the option declared last; None for one that is off the menu or for two at once."""
    places = [match for pattern in (_CUE, _HINT, _VERDICT) for match in pattern.finditer(text)]
    next_cue = len(text)
    for place in sorted(places, key=re.Match.end, reverse=True):
        before = text[max(0, place.start() - _CLAUSE) : place.start()]
        after = text[place.end() : min(place.end() + _CLAUSE, next_cue)].lstrip()
        if place.re is _CUE:
            next_cue = place.start()
        if _negated(before):
            continue
        if place.re is _CUE:
            clause = re.split(r"\n|(?<=[a-z])[.!](?=\s|$)", after, maxsplit=1)[0]
            if (taken := _declared(clause, letters, options)) != "nothing":
                return taken
        elif place.re is _VERDICT:
            letter = place["named"] or place["letter"] or place["fits"]
            return None if _ONE_OF_TWO.search(before) else letters.get(letter.upper())
        elif place["letter"] in letters:
            return letters[place["letter"]]
    return "nothing"


def _negated(before: str) -> bool:
    """Whether the words before a declaration, in its clause, take it back: "I don't think …"."""
    return _NEGATED.search(before) is not None


def _declared(
    clause: str, letters: Mapping[str, str], options: Mapping[str, str]
) -> str | Literal["nothing"] | None:
    """Read what the words after a cue take; "nothing" where they declare no option at all."""
    rest = clause[_end(_FILLER.match(clause)) :]
    refused = re.match(r"(?:not|neither)\b(.*)", rest, re.IGNORECASE | re.DOTALL)
    if refused:
        turn = re.search(r"\bbut\s+(?:rather\s+)?(.*)", refused[1], re.IGNORECASE | re.DOTALL)
        return _declared(turn[1], letters, options) if turn else "nothing"
    label = _LABEL.match(rest)
    if label and not _is_word(label, rest):
        letter = label["letter"]
        if letter.isdigit() and letter not in letters:
            return option_named(rest, options)
        second = _second(rest[label.end() :], letter)
        return letters.get(letter.upper()) if second is None else None
    return option_named(rest, options) or "nothing"


def _end(match: re.Match[str] | None) -> int:
    return match.end() if match else 0


def _is_word(label: re.Match[str], text: str) -> bool:
    """Whether a single letter is the article "a" or the pronoun "I", not a label."""
    letter, after = label["letter"], text[label.end() :]
    if label[0].strip() != letter or letter.isdigit():
        return False
    if letter in "aAI":
        return re.match(rf"\s+(?!{_GOES_ON})[^\W\d_]{{2}}", after) is not None
    return letter.islower() and re.match(r"\s+\w", after) is not None


def _second(after: str, letter: str) -> str | None:
    """Find the other label of "B or C", "A and B", "A/B", "A, B"; "?" where it is broken off."""
    if re.match(r"\s*(?:\bor|/)\s*$", after):
        return "?"
    bracketed = _SECOND_BRACKET.search(after)
    if bracketed and bracketed[1] != letter:
        return bracketed[1]
    other = _SECOND.match(after)
    if other is None or other["letter"] == letter:
        return None
    name, rest = other["letter"], after[other.end() :]
    if (name.isdigit(), name.isupper()) != (letter.isdigit(), letter.isupper()):
        return None
    if name in "aAI" and re.match(r"\s+(?!and\b|or\b|are\b)[^\W\d_]{2}", rest):
        return None
    return name if "or" in other["by"] or not _IS_SO.match(rest) else None


def _labels(text: str, letters: Mapping[str, str]) -> set[str]:
    """Collect offered letters that open a line, plus others that those lines name as labels."""
    labels: set[str] = set()
    for line in text.splitlines():
        if _LETTERS_ONLY.fullmatch(line):
            labels.update(c for c in line if c.isupper() or c in letters)
            continue
        opening = _LINE_LABEL.match(line)
        if opening is None or opening["letter"].upper() not in letters:
            continue
        after = line[opening.end() :]
        if _REFUSED.match(after) or (opening["bare"] is not None and not _bare(opening, after)):
            continue
        labels.add(opening["letter"].upper())
        labels.update(name for name in _INNER_LABEL.findall(after) if name in letters)
        if second := _second(after, opening["letter"]):
            labels.add(second.upper())
    return labels


def _bare(opening: re.Match[str], after: str) -> bool:
    """Whether a letter without punctuation that opens a line is a label: "B", "B because …"."""
    letter = opening["letter"]
    if not after.strip():
        return True
    if letter.islower() or (letter.isdigit() and not opening["option"]):
        return False
    if opening["option"] or letter in "AI":
        return re.match(rf"\s*(?:[-–—/&(选项]|{_GOES_ON})", after) is not None
    return True
