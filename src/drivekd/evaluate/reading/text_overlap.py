"""Overlap of free replies with the reference's wording: BLEU, ROUGE-L and CIDEr-D.

They measure wording, not truth: "turn left" and "turn right" overlap by half. BLEU is sacrebleu's,
cased and with its tokens ("13a"). ROUGE-L and CIDEr-D see words in lower case without punctuation;
a number or an object's camera is one word.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: weight of recall in ROUGE-L, as image captions are scored with it
BETA = 1.2
#: longest n-grams of BLEU and CIDEr-D [words]
LONGEST = 4
#: of CIDEr-D's penalty for another length [words]
SIGMA = 6.0

_WORD = re.compile(r"\d+\.\d+|\w+(?:'\w+)*")
Gram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Overlap of n replies with one reference each."""

    bleu: tuple[float, ...]  # BLEU-1 … BLEU-4 of all replies together, 0 … 100
    rouge_l: float  # mean ROUGE-L, 0 … 100
    cider_d: float  # mean CIDEr-D, 0 … 10
    n: int  # replies


def text_overlap(replies: Sequence[str], references: Sequence[str]) -> Overlap:
    """Score replies against the reference of the same place.

    ValueError: no replies, not as many references, or a reference without a word.
    """
    if len(replies) != len(references) or not replies:
        raise ValueError(
            f"text overlap: expected at least one reply and a reference for each, got"
            f" {len(replies)} replies and {len(references)} references"
        )
    said, expected = [words(text) for text in replies], [words(text) for text in references]
    empty = next((i for i, reference in enumerate(expected) if not reference), None)
    if empty is not None:
        raise ValueError(
            f"text overlap: reference {empty} is {references[empty]!r}, without a word to overlap"
            " with; drop this sample from the evaluation"
        )
    shares = [rouge_l(a, b) for a, b in zip(said, expected, strict=True)]
    n = len(replies)
    return Overlap(
        bleu(replies, references), 100 * sum(shares) / n, sum(cider_d(said, expected)) / n, n
    )


def words(text: str) -> list[str]:
    """Split a text into lower-case words without punctuation; 0.4678 and CAM_FRONT are single."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).replace("’", "'").lower())


def bleu(replies: Sequence[str], *references: Sequence[str]) -> tuple[float, ...]:
    """BLEU-1 … BLEU-4 of a corpus, 0 … 100 (Papineni et al. 2002, by sacrebleu).

    BLEU-k = BP · exp(mean of ln p₁ … ln p_k), with counts clipped and summed over the corpus, and
    exponential smoothing of a p_n without a match. Where no reply has k tokens, BLEU-k is 0. There
    are one or more sequences of references, each with a reference per reply.
    """
    # a command that scores no text does not load it
    from sacrebleu.metrics.bleu import BLEU

    # force: no advice on texts that are in tokens already
    counted = BLEU(max_ngram_order=LONGEST, force=True).corpus_score(replies, references)
    return tuple(
        BLEU.compute_bleu(
            counted.counts[:k],
            counted.totals[:k],
            counted.sys_len,
            counted.ref_len,
            smooth_method="exp",
            max_ngram_order=k,
        ).score
        for k in range(1, LONGEST + 1)
    )


def rouge_l(reply: Sequence[str], reference: Sequence[str], beta: float = BETA) -> float:
    """ROUGE-L of one reply's words, 0 … 1 (Lin 2004, its sentence-level form).

    F = (1 + β²)·P·R / (R + β²·P), where P and R are the longest common subsequence as a share of
    the reply and of the reference. β = 1.2 is the convention of image captions (coco-caption).
    """
    common = _longest_common(reply, reference)
    if not common:
        return 0.0
    p, r = common / len(reply), common / len(reference)
    return (1 + beta**2) * p * r / (r + beta**2 * p)


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the usual table as the bits of a number.

    A zero bit i says that b's word i lengthens the subsequence of what was read of a.
    """
    places: dict[str, int] = {}
    for i, word in enumerate(b):
        places[word] = places.get(word, 0) | 1 << i
    row = full = (1 << len(b)) - 1
    for word in a:
        hits = row & places.get(word, 0)
        row = (row + hits | row - hits) & full
    return len(b) - row.bit_count()


def cider_d(replies: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of every reply's words, 0 … 10 (Vedantam et al. 2015).

    10 · mean over n = 1 … 4 of Σ_ω min(c_ω, s_ω)·s_ω / (‖c‖·‖s‖) · exp(−(l_c − l_s)² / 2σ²). c and
    s are the tf-idf of the reply's and the reference's n-grams ω, l their lengths in words, σ = 6.
    A term's frequency is its count, its inverse document frequency ln(N / number of references
    that hold it), from the N references given here; what none holds counts as held by one.

    With one reference per question there is no mean over references, and what many references of
    the set say alike weighs little: n-grams in all of them weigh nothing, so that a set of one
    question, or of equal references, scores 0. A text of fewer than 4 words has no 4-grams and
    cannot reach 10. The score depends on the set: compare models on the same questions.
    """
    n, grams = len(references), [_grams(reference) for reference in references]
    held = Counter(gram for each in grams for counts in each for gram in counts)
    idf = {gram: math.log(n / count) for gram, count in held.items()}
    scores = []
    for reply, reference, counts in zip(replies, references, grams, strict=True):
        c, s = _tf_idf(_grams(reply), idf, n), _tf_idf(counts, idf, n)
        length = math.exp(-((len(reply) - len(reference)) ** 2) / (2 * SIGMA**2))
        scores.append(10 * length * sum(map(_similarity, c, s)) / LONGEST)
    return scores


def _grams(text: Sequence[str]) -> list[Counter[Gram]]:
    """How often each n-gram occurs, per length n = 1 … 4."""
    return [
        Counter(zip(*(text[start:] for start in range(n)), strict=False))
        for n in range(1, LONGEST + 1)
    ]


def _tf_idf(
    grams: Sequence[Mapping[Gram, int]], idf: Mapping[Gram, float], n: int
) -> list[dict[Gram, float]]:
    rarest = math.log(n)
    return [
        {gram: count * idf.get(gram, rarest) for gram, count in counts.items()} for counts in grams
    ]


def _similarity(c: Mapping[Gram, float], s: Mapping[Gram, float]) -> float:
    """The cosine with c clipped to s, 0 where one has no weight."""
    norm = math.hypot(*c.values()) * math.hypot(*s.values())
    if not norm:
        return 0.0
    return sum(min(weight, s[gram]) * s[gram] for gram, weight in c.items() if gram in s) / norm
