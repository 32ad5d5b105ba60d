"""Rules for other wordings: what they must keep, and how many real questions they know."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from drivekd.data.formats.readers import read
from drivekd.data.kinds import template_of
from drivekd.data.options import options_of
from drivekd.data.paraphrases import RULES, Rule, paraphrased, reworded
from drivekd.data.sample import Sample
from drivekd.data.tags import read_tags

YES_OR_NO = re.compile(r"(Is|Are|Do|Does|Will|Would|Can|Should|Must) ")
WORDS = {
    "a": "<c1,CAM_FRONT,714.3,503.6>",
    "b": "<c2,CAM_BACK,0.4700,0.6800>",
    "side": "back left",
    "things": "bicycles without riders",
    "be": "are",
    "deed": "turns left at a constant speed",
    "form": "The output should be a list formatted as (c, s, x1, y1), where c is the category.",
}
OPTIONS = (
    " Please select the correct answer from the following options: A. Going ahead. B. Turn left."
)


@pytest.fixture(scope="module")
def real_samples(real_data: Path) -> list[Sample]:
    files = ("train_sample.json", "test_eval.json")
    found = [each for name in files for each in read(real_data / "drivelm" / name)]
    assert len(found) == 856
    return found


def example(rule: Rule) -> str:
    return rule.question.format(**WORDS)


def keeps(question: str, words: str) -> None:
    """What no other wording may change, for any question."""
    found = read_tags(question)
    assert sorted(map(str, read_tags(words))) == sorted(map(str, found)), words
    assert options_of(words) == options_of(question)
    numbers = re.findall(r"\d+(?:\.\d+)?", question)
    assert sorted(re.findall(r"\d+(?:\.\d+)?", words)) == sorted(numbers), words
    assert bool(YES_OR_NO.match(words)) == bool(YES_OR_NO.match(question)), words
    assert words[0].isupper() and "{" not in words and "  " not in words
    assert words[-1] == question[-1] or words[-1] in ".?"


@pytest.mark.parametrize("rule", RULES, ids=[rule.question[:40] for rule in RULES])
def test_a_rule_makes_two_wordings_that_keep_what_is_asked(rule: Rule) -> None:
    for tail in ("", OPTIONS):
        question = example(rule) + tail
        found = reworded(question)
        assert len({question, *found}) == 3 and found == tuple(
            words.format(**WORDS) + tail for words in (rule.second, rule.third)
        )
        for words in found:
            keeps(question, words)
    slots = sorted(re.findall(r"\{\w+\}", rule.question))
    for words in (rule.second, rule.third):
        made = sorted(re.findall(r"\{\w+\}", words))
        assert [each for each in made if each != "{be}"] == [s for s in slots if s != "{be}"]


@pytest.mark.parametrize("rule", RULES, ids=[rule.question[:40] for rule in RULES])
def test_no_rule_stands_in_the_way_of_another(rule: Rule) -> None:
    question = example(rule)
    assert [each for each in RULES if each.pattern.fullmatch(question)] == [rule]
    # Nor does it take a question for one of another kind, or part of a longer one for the whole.
    assert not reworded(f"{question} Why?") and not reworded(f"So: {question}")
    assert not reworded(question.lower())


def test_all_wordings_of_all_rules_are_distinct() -> None:
    every = [words for rule in RULES for words in (rule.question, rule.second, rule.third)]
    assert len(set(every)) == len(every) == 3 * len(RULES)


def test_whose_turn_it_is_stays() -> None:
    asked = "Would <c1,CAM_FRONT,1.0,2.0> take <c2,CAM_BACK,3.0,4.0> into account?"
    first, second = reworded(asked)
    assert first == asked.replace("Would <", "Is <").replace(" take", " going to take")
    assert second.endswith("taken into account by <c1,CAM_FRONT,1.0,2.0>?")


def test_a_questions_own_wordings_come_first(tmp_path: Path) -> None:
    from datafiles import row, write

    asked = row("<image>What is the target action of the ego vehicle?")
    rows = [asked, asked | {"paraphrases": ["What next?"]}, row("<image>Whatever?")]
    made, own, none = (paraphrased(each) for each in read(write(tmp_path / "a.jsonl", rows)))
    assert [each.question for each in made] == [
        "What is the target action of the ego vehicle?",
        "Which action is the ego vehicle aiming at?",
        "Name the target action of the ego vehicle.",
    ]
    assert all(each.messages[0].content.startswith("<image>") for each in made)
    assert [each.question for each in own[1:]] == ["What next?"] and len(none) == 1


@pytest.mark.real_data
def test_nearly_all_real_questions_have_other_wordings(real_samples: list[Sample]) -> None:
    covered = [each for each in real_samples if reworded(each.question)]
    assert len(covered) >= 850
    by_capability = {
        name: sum(each.capability == name for each in covered)
        for name in ("perception", "reasoning", "planning")
    }
    assert by_capability == {"perception": 354, "reasoning": 302, "planning": 196}


@pytest.mark.real_data
def test_real_questions_keep_tags_options_and_kind(real_samples: list[Sample]) -> None:
    for sample in real_samples:
        rule = next((each for each in RULES if each.pattern.match(sample.question)), None)
        if rule is None:
            continue
        assert template_of(example(rule)) == sample.template, sample.question
        # Some questions are about "both" or "neither": of these a yes is no answer to either.
        if (sample.answer or "").lower().rstrip(".") in ("yes", "no"):
            assert YES_OR_NO.match(sample.question), sample.question
        for each in paraphrased(sample)[1:]:
            keeps(sample.question, each.question)
            assert each.answer == sample.answer and each.images == sample.images
