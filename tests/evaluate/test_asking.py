from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from drivekd.data.sample import Message, Sample
from drivekd.evaluate.answers import asking as module
from drivekd.evaluate.answers.answer import Answer, other_scenes, shown
from drivekd.evaluate.answers.asking import Asking, answers, identity, prepared
from drivekd.evaluate.folder import read_answers
from drivekd.models.tiny import tiny_vlm
from drivekd.models.vlm import Vlm

#: draws from the whole vocabulary of a random model
HOT = Asking(max_new_tokens=4, temperature=1.0, runs=2)


def watch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Run and id of each question that the model is really asked."""
    asked: list[tuple[int, str]] = []
    plain = module.generate

    def watched(vlm: Vlm, part: list[Sample], **given: object) -> list[str]:
        asked.extend((given["sampling"].run, s.id) for s in part)  # type: ignore[attr-defined]
        return plain(vlm, part, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "generate", watched)
    return asked


def said(given: list[Answer]) -> list[str]:
    return [answer.reply for answer in given]


def test_every_question_is_answered_in_order(
    vlm: Vlm, samples: list[Sample], tmp_path: Path
) -> None:
    out = tmp_path / "arm" / "answers.jsonl"
    given = answers(vlm, samples, Asking(max_new_tokens=3), out)
    assert [a.id for a in given] == [s.id for s in samples]
    assert given[0].question == "Which colour?"
    assert (given[0].expected, given[0].template, given[0].scene) == ("yes", "t0", "scene0")
    assert read_answers(out) == given
    assert answers(vlm, samples, Asking(max_new_tokens=3)) == given


@pytest.mark.parametrize("asking", [Asking(max_new_tokens=3), HOT], ids=["greedy", "drawn"])
def test_interrupted_evaluation_continues(
    vlm: Vlm,
    samples: list[Sample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asking: Asking,
) -> None:
    out = tmp_path / "answers.jsonl"
    whole = answers(vlm, samples, asking, out)
    lines = out.read_text(encoding="utf-8").splitlines(keepends=True)
    out.write_text("".join(lines[:2]) + lines[2][:20], encoding="utf-8")
    asked = watch(monkeypatch)
    # Behind an interruption the questions stand in other batches; the draws are the same.
    assert answers(vlm, samples, asking, out) == whole
    assert asked == [(a.run, a.id) for a in whole[2:]]
    assert sorted(map(str, read_answers(out))) == sorted(map(str, whole))


def test_runs_differ_and_are_kept_apart(
    vlm: Vlm, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "answers.jsonl"
    first = answers(vlm, samples, replace(HOT, runs=1), out)
    asked = watch(monkeypatch)
    both = answers(vlm, samples, HOT, out)
    assert [(a.run, a.id) for a in both] == [(run, s.id) for run in (0, 1) for s in samples]
    assert both[: len(samples)] == first and said(both[len(samples) :]) != said(first)
    assert asked == [(1, s.id) for s in samples]
    assert answers(vlm, samples, replace(HOT, runs=1), out) == first  # the others stay in the file
    assert len(read_answers(out)) == 2 * len(samples)
    # alone or beside others, a sample draws the same
    assert said(answers(vlm, samples[3:4], HOT)) == [both[3].reply, both[3 + len(samples)].reply]
    assert said(answers(vlm, samples, replace(HOT, seed=1))) != said(both)


def test_there_is_one_run_where_all_would_be_alike(vlm: Vlm, samples: list[Sample]) -> None:
    given = answers(vlm, samples, Asking(max_new_tokens=2, runs=5))
    assert [a.run for a in given] == [0] * len(samples)


def test_answers_of_another_model_mode_or_question_are_refused(
    vlm: Vlm, samples: list[Sample], tmp_path: Path
) -> None:
    out, short = tmp_path / "answers.jsonl", Asking(max_new_tokens=1)
    answers(vlm, samples[:1], short, out)
    with pytest.raises(ValueError, match="images 'real'"):
        answers(vlm, samples[:1], Asking(images="grey"), out)
    with pytest.raises(ValueError, match="model"):
        answers(tiny_vlm(seed=3, image_size=48), samples[:1], short, out)
    changed = replace(samples[0], messages=(samples[0].messages[0], Message("assistant", "no")))
    with pytest.raises(ValueError, match="question"):
        answers(vlm, [changed], short, out)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"temperature": 0.5}, "temperature 0.0"),
        ({"seed": 7}, "seed 0"),
        ({"top_p": 0.5}, "top_p 1.0"),
        ({"max_new_tokens": 3}, r"max_new_tokens 1, expected 3; write to another folder"),
        ({"system": "Be brief."}, "to other words"),
    ],
)
def test_answers_asked_for_otherwise_are_refused(
    vlm: Vlm, samples: list[Sample], tmp_path: Path, change: dict[str, object], named: str
) -> None:
    out, asking = tmp_path / "answers.jsonl", Asking(max_new_tokens=1)
    answers(vlm, samples[:1], asking, out)
    with pytest.raises(ValueError, match=named):
        answers(vlm, samples[:1], replace(asking, **change), out)  # type: ignore[arg-type]


def test_answers_about_other_pictures_are_refused(
    vlm: Vlm, samples: list[Sample], tmp_path: Path
) -> None:
    def moved(place: str) -> list[Sample]:
        (tmp_path / place).mkdir()
        copies = {p: tmp_path / place / p.name for s in samples for p in s.images.values()}
        for path, copy in copies.items():
            copy.write_bytes(path.read_bytes())
        return [replace(s, images={c: copies[p] for c, p in s.images.items()}) for s in samples]

    out, asking = tmp_path / "answers.jsonl", Asking(max_new_tokens=2)
    first = moved("first")
    given = answers(vlm, first, asking, out)
    second = moved("second")  # later and elsewhere, but the same
    assert answers(vlm, second, asking, out) == given
    picture = second[0].images["CAM_BACK"]
    other = picture.read_bytes()  # of the same size: the last byte of a PNG is a checksum's
    picture.write_bytes(other[:-1] + bytes([other[-1] ^ 1]))
    with pytest.raises(ValueError, match="holds answers about other pictures"):
        answers(vlm, second, asking, out)
    # in the mode "other" it is the second scene that shows the first one's pictures
    swapped, other = tmp_path / "other.jsonl", Asking(max_new_tokens=1, images="other")
    answers(vlm, first, other, swapped)
    answers(vlm, first, other, swapped)
    assert shown(first, other_scenes(first))["s0q0"] == shown(first, {})["s1q0"]


def test_pictures_of_one_colour_make_scenes_alike(vlm: Vlm, samples: list[Sample]) -> None:
    grey = said(answers(vlm, samples, Asking(max_new_tokens=4, images="grey")))
    black = said(answers(vlm, samples, Asking(max_new_tokens=4, images="black")))
    assert grey[:3] == grey[3:] and black[:3] == black[3:]
    real = said(answers(vlm, samples, Asking(max_new_tokens=4)))
    other = said(answers(vlm, samples, Asking(max_new_tokens=4, images="other")))
    assert len({tuple(each[:3]) for each in (grey, black, real, other)}) == 4
    assert real[:3] == other[3:]  # two scenes: each sees the other
    assert real[3:] == other[:3]


def test_the_system_turn_leads_or_is_replaced(vlm: Vlm, samples: list[Sample]) -> None:
    own = replace(samples[0], id="own", messages=(Message("system", "A."), *samples[0].messages))
    led = prepared([samples[0], own], Asking(system="Be brief."))
    for sample in led:
        assert sample.messages == (Message("system", "Be brief."), *samples[0].messages)
    assert [s.messages[0].role for s in prepared([samples[0], own], Asking())] == ["user", "system"]
    asking = Asking(max_new_tokens=6)
    plain, brief = (answers(vlm, samples, replace(asking, system=t)) for t in (None, "Be brief."))
    assert said(plain) != said(brief)


def test_questions_that_cannot_be_scored_are_refused(vlm: Vlm, samples: list[Sample]) -> None:
    unanswered = replace(samples[0], messages=samples[0].messages[:1])
    with pytest.raises(ValueError, match="no answer"):
        answers(vlm, [unanswered])
    with pytest.raises(ValueError, match="twice"):
        answers(vlm, [samples[0], samples[0]])
    for options in (["red", "blue"], {"A": 1}, [1, 2]):
        with pytest.raises(ValueError, match="options"):
            answers(vlm, [replace(samples[0], meta={"options": options})])


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"runs": 0}, "runs 0: expected at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 0.0}, "top_p 0.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Asking(**wrong)  # type: ignore[arg-type]


def test_a_model_is_known_by_its_template_too() -> None:
    vlm, twin = tiny_vlm(image_size=48), tiny_vlm(image_size=48)
    assert identity(vlm) == identity(twin)
    twin.tokenizer.chat_template = f"{twin.tokenizer.chat_template} "
    assert identity(vlm) != identity(twin)
