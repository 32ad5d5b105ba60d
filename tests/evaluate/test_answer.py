from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drivekd.data.sample import Message, Sample
from drivekd.evaluate import answer as module
from drivekd.evaluate.answer import (
    answers,
    fingerprint,
    is_correct,
    other_scenes,
    read_answers,
)
from drivekd.models.tiny import tiny_vlm
from drivekd.models.vlm import Vlm

CAMERAS = ("CAM_FRONT", "CAM_BACK")


@pytest.fixture(scope="module")
def vlm() -> Vlm:
    return tiny_vlm(initializer_range=0.15, image_size=48)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(5)
    made = []
    for scene in range(2):
        images = {}
        for camera in CAMERAS:
            images[camera] = folder / f"{scene}{camera}.png"
            noise = rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)
            Image.fromarray(noise).save(images[camera])
        shown = "".join(f"{camera}: <image>\n" for camera in CAMERAS)
        for number, text in enumerate(("Which colour?", "Is it safe?", "Where?")):
            made.append(
                Sample(
                    f"s{scene}q{number}",
                    (Message("user", shown + text), Message("assistant", "yes")),
                    images,
                    capability="planning",
                    template=f"t{number}",
                    scene=f"scene{scene}",
                )
            )
    return made


def test_every_question_is_answered_in_order(
    vlm: Vlm, samples: list[Sample], tmp_path: Path
) -> None:
    out = tmp_path / "arm" / "answers.jsonl"
    given = answers(vlm, samples, "real", out, max_new_tokens=3)
    assert [a.id for a in given] == [s.id for s in samples]
    assert given[0].question == "Which colour?"
    assert (given[0].expected, given[0].template, given[0].scene) == ("yes", "t0", "scene0")
    assert read_answers(out) == given
    assert answers(vlm, samples, "real", max_new_tokens=3) == given


def test_interrupted_evaluation_continues(
    vlm: Vlm, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "answers.jsonl"
    whole = answers(vlm, samples, "real", out, max_new_tokens=3)
    lines = out.read_text(encoding="utf-8").splitlines(keepends=True)
    out.write_text("".join(lines[:2]) + lines[2][:20], encoding="utf-8")
    asked: list[str] = []
    plain = module.generate

    def watched(vlm: Vlm, part: list[Sample], **given: object) -> list[str]:
        asked.extend(s.id for s in part)
        return plain(vlm, part, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "generate", watched)
    assert answers(vlm, samples, "real", out, max_new_tokens=3) == whole
    assert asked == [s.id for s in samples[2:]]
    assert sorted(a.id for a in read_answers(out)) == sorted(s.id for s in samples)


def test_answers_of_another_model_mode_or_question_are_refused(
    vlm: Vlm, samples: list[Sample], tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    answers(vlm, samples[:1], "real", out, max_new_tokens=1)
    with pytest.raises(ValueError, match="images 'real'"):
        answers(vlm, samples[:1], "grey", out)
    with pytest.raises(ValueError, match="model '"):
        answers(tiny_vlm(seed=3, image_size=48), samples[:1], "real", out)
    changed = replace(samples[0], messages=(samples[0].messages[0], Message("assistant", "no")))
    with pytest.raises(ValueError, match="another question or answer"):
        answers(vlm, [changed], "real", out, max_new_tokens=1)


def test_answers_of_another_length_or_other_pictures_are_refused(
    vlm: Vlm, samples: list[Sample], tmp_path: Path
) -> None:
    def moved(place: str) -> list[Sample]:
        (tmp_path / place).mkdir()
        copies = {p: tmp_path / place / p.name for s in samples for p in s.images.values()}
        for path, copy in copies.items():
            copy.write_bytes(path.read_bytes())
        return [replace(s, images={c: copies[p] for c, p in s.images.items()}) for s in samples]

    out = tmp_path / "answers.jsonl"
    first = moved("first")
    given = answers(vlm, first, "real", out, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"max_new_tokens 2, asked for are .*delete it or write"):
        answers(vlm, first, "real", out, max_new_tokens=3)
    second = moved("second")  # later and elsewhere, but the same
    assert answers(vlm, second, "real", out, max_new_tokens=2) == given
    picture = second[0].images["CAM_BACK"]
    picture.write_bytes(picture.read_bytes() + b"more")
    with pytest.raises(ValueError, match="holds answers with pictures '"):
        answers(vlm, second, "real", out, max_new_tokens=2)
    # in the mode "other" it is the second scene that shows the first one's pictures
    swapped = tmp_path / "other.jsonl"
    answers(vlm, first, "other", swapped, max_new_tokens=1)
    answers(vlm, first, "other", swapped, max_new_tokens=1)
    assert module.shown(first, other_scenes(first))["s0q0"] == module.shown(first, {})["s1q0"]


def test_grey_pictures_make_scenes_alike(vlm: Vlm, samples: list[Sample]) -> None:
    grey = [a.reply for a in answers(vlm, samples, "grey", max_new_tokens=4)]
    assert grey[:3] == grey[3:]
    real = [a.reply for a in answers(vlm, samples, "real", max_new_tokens=4)]
    other = [a.reply for a in answers(vlm, samples, "other", max_new_tokens=4)]
    assert real[:3] == other[3:]  # two scenes: each sees the other
    assert real[3:] == other[:3]


def test_other_scenes_keep_the_camera(samples: list[Sample]) -> None:
    mapping = other_scenes(samples)
    assert len(mapping) == 4
    for path, stand_in in mapping.items():
        assert path != stand_in
        assert path.name[1:] == stand_in.name[1:]
    with pytest.raises(ValueError, match="two scenes"):
        other_scenes(samples[:3])


def test_fingerprint_follows_the_weights(vlm: Vlm) -> None:
    twin = tiny_vlm(initializer_range=0.15, image_size=48)
    assert fingerprint(vlm.model) == fingerprint(twin.model)
    with torch.no_grad():
        twin.model.get_input_embeddings().weight.mul_(1 + 1e-6)
    assert fingerprint(vlm.model) != fingerprint(twin.model)


def test_questions_that_cannot_be_scored_are_refused(vlm: Vlm, samples: list[Sample]) -> None:
    unanswered = replace(samples[0], messages=samples[0].messages[:1])
    with pytest.raises(ValueError, match="no answer"):
        answers(vlm, [unanswered])
    with pytest.raises(ValueError, match="occurs twice"):
        answers(vlm, [samples[0], samples[0]])
    for options in (["red", "blue"], {"A": 1}, [1, 2]):
        with pytest.raises(ValueError, match="expected letters with their texts"):
            answers(vlm, [replace(samples[0], meta={"options": options})])


def test_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match="lacks capability"):
        read_answers(path)
    path.write_text("nonsense\n" + json.dumps({}) + "\n")
    with pytest.raises(ValueError, match="line 1"):
        read_answers(path)
    with pytest.raises(ValueError, match="no such file"):
        read_answers(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize(
    ("reply", "expected", "right"),
    [
        ("Red.", "red", True),
        ("red car", "red", False),
        ("Yes, it is.", "yes", True),
        ("no", "yes", False),
        ("", "yes", False),
        ("It is <c1,CAM_FRONT,0.48,0.68><r9>.", "It is <c1,CAM_FRONT,0.47,0.68>", True),
        ("<c1,CAM_FRONT,715.0,503.6>", "<c1,CAM_FRONT,714.3,503.6>", True),
        ("<c1,CAM_FRONT,0.4464,0.5596>", "<c1,CAM_FRONT,714.3,503.6>", True),
        ("<c1,CAM_FRONT,914.3,503.6>", "<c1,CAM_FRONT,714.3,503.6>", False),
        ("It is <c1,CAM_BACK,0.47,0.68>", "It is <c1,CAM_FRONT,0.47,0.68>", False),
        ("It was <c1,CAM_FRONT,0.47,0.68>", "It is <c1,CAM_FRONT,0.47,0.68>", False),
        ("<c1,CAM_FRONT,0.47,0.68>", "<c1,CAM_FRONT,0.47,0.68>, <c2,CAM_BACK,0.5,0.5>", False),
    ],
)
def test_right_by_the_kind_of_answer(reply: str, expected: str, right: bool) -> None:
    assert is_correct(reply, expected) is right


def test_right_option() -> None:
    options = {"A": "stop", "B": "go"}
    assert is_correct("Final: {B. go}", "B", options)
    assert is_correct("go", "B. go", options)
    assert not is_correct("A", "B", options)
    assert not is_correct("C", "B", options)
    with pytest.raises(ValueError, match="names none of the options"):
        is_correct("A", "C", options)
