from __future__ import annotations

import itertools
import math
import random
import time
from collections import Counter

import pytest
from sacrebleu.metrics.bleu import BLEU

from drivekd.evaluate.reading.text_overlap import bleu, cider_d, rouge_l, text_overlap, words

REPLIES = [
    "The ego vehicle should slow down because a pedestrian crosses.",
    "There is a red car in front of the ego vehicle.",
    "Turn left at the next crossing.",
    "Keep going at the same speed.",
]
REFERENCES = [
    "The ego vehicle should stop because a pedestrian is crossing the road.",
    "There is a red car in front of the ego vehicle, and a bus behind it.",
    "Turn right at the next crossing.",
    "The ego vehicle should keep going at the same speed.",
]


def split(texts: list[str]) -> list[list[str]]:
    return [words(text) for text in texts]


def test_words_are_lower_case_and_without_punctuation() -> None:
    text = "It’s <c1,CAM_FRONT,0.4678,0.6772>, STOP!  ﬁrst-rate…"
    assert words(text) == ["it's", "c1", "cam_front", "0.4678", "0.6772", "stop", "first", "rate"]
    assert words(" .,!") == []


@pytest.mark.parametrize(
    ("reply", "share"),
    [
        ("police kill the gunman", 3 / 4),
        ("the gunman kill police", 2 / 4),
        ("the gunman police killed", 2 / 4),
    ],
)
def test_rouge_l_of_lins_examples(reply: str, share: float) -> None:
    """Lin 2004, section 3.1: β = 1, reference "police killed the gunman"."""
    assert rouge_l(words(reply), words("police killed the gunman"), beta=1) == share


def test_rouge_l_leans_to_recall() -> None:
    # P = 2/2, R = 2/4: (1 + 1.44) · 0.5 / (0.5 + 1.44)
    assert rouge_l(["a", "b"], ["a", "x", "b", "y"]) == pytest.approx(1.22 / 1.94)
    assert rouge_l(["a", "x", "b", "y"], ["a", "b"]) == pytest.approx(1.22 / 1.72)
    assert rouge_l([], ["a"]) == rouge_l(["b"], ["a"]) == 0.0
    assert rouge_l(["a"] * 70, ["a"] * 70) == 1.0


def common_by_table(a: list[str], b: list[str]) -> int:
    """The textbook's table, twin of the bits."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, j in itertools.product(range(len(a)), range(len(b))):
        longer = max(table[i][j + 1], table[i + 1][j])
        table[i + 1][j + 1] = table[i][j] + 1 if a[i] == b[j] else longer
    return table[-1][-1]


def test_longest_common_subsequence_agrees_with_the_table() -> None:
    draw = random.Random(0)
    for _ in range(200):
        a, b = (draw.choices("abcd", k=draw.randint(1, 80)) for _ in range(2))
        common = common_by_table(a, b)
        # β = 1: F = 2·common / (|a| + |b|)
        assert rouge_l(a, b, beta=1) == pytest.approx(2 * common / (len(a) + len(b)))


def test_bleu_of_sacrebleus_example() -> None:
    """The example of sacrebleu's page: three sentences, two references each, BLEU 48.53."""
    replies = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    first = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
    second = ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."]
    scores = bleu(replies, first, second)
    assert scores[3] == pytest.approx(48.530827009929865)
    # its precisions 82.4/50.0/45.5/37.5 (14/17, 7/14, 5/11, 3/8) and brevity penalty exp(1 − 18/17)
    shares = (14 / 17, 7 / 14, 5 / 11, 3 / 8)
    for k in range(1, 5):
        expected = 100 * math.exp(1 - 18 / 17) * math.prod(shares[:k]) ** (1 / k)
        assert scores[k - 1] == pytest.approx(expected)


def test_bleu_clips_counts() -> None:
    """Papineni et al. 2002, section 2.1: "the the the …" has a clipped unigram precision of 2/7."""
    score = bleu(["the the the the the the the"], ["the cat is on the mat"])
    assert score[0] == pytest.approx(100 * 2 / 7)


def test_every_bleu_is_sacrebleus_of_that_order() -> None:
    for k, score in enumerate(bleu(REPLIES, REFERENCES), 1):
        theirs = BLEU(max_ngram_order=k).corpus_score(REPLIES, [REFERENCES]).score
        assert score == pytest.approx(theirs)


def test_bleu_of_short_replies_has_no_long_order() -> None:
    assert bleu(["Turn left"], ["Turn left"]) == pytest.approx((100, 100, 0, 0))
    assert bleu([""], ["Turn left"]) == (0, 0, 0, 0)


def cider_by_hand(reply: list[str], references: list[list[str]], place: int) -> float:
    """CIDEr-D written from the formula with vectors over all n-grams that occur."""
    total, own = 0.0, references[place]
    for n in (1, 2, 3, 4):

        def grams(text: list[str], n: int = n) -> list[tuple[str, ...]]:
            return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]

        c, s = [], []
        for gram in sorted({*grams(reply), *grams(own)}):
            held = sum(gram in grams(reference) for reference in references)
            idf = math.log(len(references)) - math.log(max(1, held))
            c.append(Counter(grams(reply))[gram] * idf)
            s.append(Counter(grams(own))[gram] * idf)
        norms = math.sqrt(sum(x * x for x in c)) * math.sqrt(sum(y * y for y in s))
        if norms:
            total += sum(min(x, y) * y for x, y in zip(c, s, strict=True)) / norms
    return 10 * total / 4 * math.exp(-((len(reply) - len(own)) ** 2) / (2 * 36))


def test_cider_d_agrees_with_the_formula() -> None:
    draw = random.Random(1)
    texts = [draw.choices("abcdefg", k=draw.randint(0, 14)) for _ in range(40)]
    replies, references = texts[:20], [text or ["a"] for text in texts[20:]]
    for some in (replies, references, split(REPLIES) + replies[4:]):
        scores = cider_d(some, references)
        for i, score in enumerate(scores):
            assert score == pytest.approx(cider_by_hand(some[i], references, i), abs=1e-12)
    assert any(scores)


def test_cider_d_of_its_own_references() -> None:
    texts = split(["a b c d e", "f g h i", "k l m n o p"])
    assert cider_d(texts, texts) == pytest.approx([10, 10, 10])
    assert cider_d([[], [], []], texts) == [0, 0, 0]
    # fewer than four words: the 4-grams are missing, and with two also the 3-grams
    short = split(["a b c", "d e"])
    assert cider_d(short, short) == pytest.approx([7.5, 5.0])


def test_cider_d_does_not_depend_on_the_order_of_questions() -> None:
    replies, references = split(REPLIES), split(REFERENCES)
    scores = cider_d(replies, references)
    for order in itertools.permutations(range(4)):
        moved = cider_d([replies[i] for i in order], [references[i] for i in order])
        assert moved == pytest.approx([scores[i] for i in order])


def test_what_all_references_say_weighs_nothing() -> None:
    assert cider_d([["a", "b"]], [["a", "b"]]) == [0]
    same = [["slow", "down"], ["slow", "down"]]
    assert cider_d(same, same) == [0, 0]
    # "the" is in all three, so that a reply that shares only it has nothing in common
    references = split(["the car", "the bus", "the tram"])
    assert cider_d(split(["the dog", "the bus", "the"]), references)[::2] == [0, 0]


def test_cider_d_clips_repetition_and_punishes_length() -> None:
    references = split(["a b c d", "e f g h"])
    once, twice, longer = (
        cider_d([words(text), []], references)[0] for text in ("a b c d", "a a b c", "a b c d x y")
    )
    assert once > longer > 0
    assert once > twice > 0


def test_overlap_of_a_set() -> None:
    overlap = text_overlap(REPLIES, REFERENCES)
    pairs = zip(split(REPLIES), split(REFERENCES), strict=True)
    assert overlap.n == 4
    assert overlap.bleu == bleu(REPLIES, REFERENCES)
    assert overlap.rouge_l == pytest.approx(100 * sum(rouge_l(a, b) for a, b in pairs) / 4)
    assert overlap.cider_d == pytest.approx(sum(cider_d(split(REPLIES), split(REFERENCES))) / 4)
    same = text_overlap(REFERENCES, REFERENCES)
    assert (same.bleu, same.rouge_l) == (pytest.approx((100,) * 4), pytest.approx(100))
    assert 9 < same.cider_d <= 10
    assert text_overlap(["", "", "", ""], REFERENCES).rouge_l == 0


@pytest.mark.parametrize(
    ("replies", "references", "message"),
    [
        ([], [], "at least one reply"),
        (["a"], ["a", "b"], "1 replies and 2 references"),
        (["a", "b"], ["a", " ."], "reference 1 is ' .'"),
    ],
)
def test_overlap_of_what_cannot_be_compared(
    replies: list[str], references: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        text_overlap(replies, references)


def test_a_benchmark_of_texts_takes_seconds() -> None:
    draw = random.Random(0)
    vocabulary = [f"w{i}" for i in range(800)]
    replies, references = (
        [" ".join(draw.choices(vocabulary, k=length)) for _ in range(1461)] for length in (20, 30)
    )
    start = time.process_time()
    text_overlap(replies, references)
    assert time.process_time() - start < 8  # about one
