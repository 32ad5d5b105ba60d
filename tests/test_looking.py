from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drivekd.data.sample import Message, Sample
from drivekd.demo.ask import ask
from drivekd.demo.looking import View, attention_cases, look, write_scenes
from drivekd.models.batch import collate
from drivekd.models.encode import encode
from drivekd.models.images import pixels
from drivekd.models.tiny import tiny_vlm
from drivekd.models.vlm import FAMILIES, Vlm, vision_parts
from drivekd.report.page import write_page

QUESTION = "What is <c1,CAM_FRONT,0.4700,0.6800><r9>?"


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def vlm(request: pytest.FixtureRequest) -> Vlm:
    return tiny_vlm(request.param, initializer_range=0.15, image_size=48, text_layers=3)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("run") / "world"
    folder.mkdir()
    rng = np.random.default_rng(2)
    found = {}
    for camera in ("CAM_FRONT", "CAM_BACK_LEFT"):
        found[camera] = folder / f"{camera}.png"
        Image.fromarray(rng.integers(0, 256, (48, 96, 3), dtype=np.uint8)).save(found[camera])
    return found


@pytest.fixture(scope="module")
def sample(images: dict[str, Path]) -> Sample:
    shown = "".join(f"{camera}: <image>\n" for camera in images)
    turns = (Message("user", shown + QUESTION), Message("assistant", "a car"))
    return Sample("q1", turns, images, "perception", "kind", "s0", "f0")


@pytest.mark.parametrize("rows", ["answer", "question"])
def test_maps_are_those_of_eager_attention(vlm: Vlm, sample: Sample, rows: str) -> None:
    seen = look(vlm, sample, View("penultimate", rows))
    assert (seen.layer, seen.layers) == (2, 3)
    encoded = encode(vlm, sample, add_answer=False)
    batch = collate(vlm, [encoded])
    inputs = pixels(vlm, encoded.images) | {"position_ids": batch.position_ids}
    vlm.model.set_attn_implementation("eager")
    with torch.no_grad():
        output = vlm.model(input_ids=batch.input_ids, output_attentions=True, **inputs)
    whole = output.attentions[1][0].mean(dim=0)
    first = len(whole) - 1 if rows == "answer" else encoded.prefix
    expected = whole[first:].mean(dim=0)[encoded.is_image].numpy()
    found = np.concatenate([grid.ravel() for grid in seen.maps.values()])
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert seen.share == pytest.approx(expected.sum(), abs=1e-5)
    assert list(seen.maps) == list(sample.images)


def test_looking_leaves_every_module_in_its_own_mode(vlm: Vlm, sample: Sample) -> None:
    parts = {False: vision_parts(vlm), True: [vlm.model.get_submodule("model.language_model")]}
    for mode, modules in parts.items():
        for module in modules:
            module.train(mode)
    look(vlm, sample, View(layer="first"))
    for mode, modules in parts.items():
        assert {each.training for module in modules for each in module.modules()} == {mode}
    vlm.model.eval()


def test_view_must_be_one_layer_of_the_model(vlm: Vlm, sample: Sample) -> None:
    with pytest.raises(ValueError, match="layer"):
        look(vlm, sample, View("all"))
    blank = Sample("q", (Message("user", "Hello?"),), {})
    with pytest.raises(ValueError, match="no images"):
        look(vlm, blank)


def test_cases_and_scenes_become_a_page(sample: Sample, images: dict[str, Path]) -> None:
    vlm = tiny_vlm(image_size=48)
    run = images["CAM_FRONT"].parent.parent
    models = {"teacher": {"perception": vlm}, "drivekd": vlm, "ce_only": {"planning": vlm}}
    attention_cases(models, [sample], run / "attention")
    write_scenes([sample], run / "scenes.json")
    cases = json.loads((run / "attention" / "cases.json").read_text())
    assert list(cases[0]["arms"]) == ["teacher", "drivekd"]
    assert cases[0]["images"]["CAM_FRONT"] == "world/CAM_FRONT.png"
    assert cases[0]["tags"] == [{"name": "c1", "camera": "CAM_FRONT", "x": 0.47, "y": 0.68}]
    with np.load(run / "attention" / "maps.npz") as maps:
        assert sorted(maps.files) == [
            f"0/{arm}/{camera}" for arm in ("drivekd", "teacher") for camera in sorted(images)
        ]
    (run / "summary.json").write_text(json.dumps({"scores": {}, "n": {}, "seconds": 1}))
    text = write_page(run).read_text(encoding="utf-8")
    assert text.count('<img src="data:image/webp') == 2 * (1 + 3)


def test_ask_answers_and_draws(vlm: Vlm, images: dict[str, Path], tmp_path: Path) -> None:
    drawn = tmp_path / "sub" / "look.png"
    reply = ask(vlm, images, "What is <c1,CAM_FRONT,0.4700,0.6800>?", drawn, max_new_tokens=3)
    assert isinstance(reply, str)
    with Image.open(drawn) as picture:
        assert picture.width >= 2 * 256
        assert np.asarray(picture).std() > 10


def test_ask_puts_the_question_as_the_world_does(
    images: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Sample] = []

    def listen(vlm: Vlm, samples: list[Sample], **given: object) -> list[str]:
        seen.extend(samples)
        return [" a car "]

    monkeypatch.setattr("drivekd.demo.ask.generate", listen)
    backwards = dict(reversed(images.items()))
    question = "What is <c1,CAM_FRONT,0.4700,0.6800>, or <c2,CAM_BACK_LEFT,0.99,0.01><r0>?"
    assert ask(
        tiny_vlm(image_size=48), {**backwards, "image_0": images["CAM_FRONT"]}, question
    ) == ("a car")
    assert seen[0].messages[0].content == (
        "CAM_FRONT: <image>\nCAM_BACK_LEFT: <image>\n<image>\n"
        "What is <c1,CAM_FRONT,0.4700,0.6800><r9>, or <c2,CAM_BACK_LEFT,0.99,0.01><r0>?"
    )
    assert list(seen[0].images) == ["CAM_FRONT", "CAM_BACK_LEFT", "image_0"]


@pytest.mark.parametrize(
    ("change", "question", "words"),
    [
        ({"CAM_FORNT": "CAM_FRONT"}, "What?", "unknown camera 'CAM_FORNT'"),
        ({"front": "CAM_FRONT"}, "What?", "unknown camera 'front'"),
        ({"CAM_BACK": "nowhere"}, "What?", "no file"),
        ({}, "  ", "question is empty"),
        ({}, "What is <image>?", "contains <image>"),
    ],
)
def test_ask_refuses(
    images: dict[str, Path], change: dict[str, str], question: str, words: str
) -> None:
    given = images | {k: images.get(v, Path(v)) for k, v in change.items()}
    with pytest.raises(ValueError, match=words):
        ask("no/such/model", given, question)


def test_ask_refuses_no_pictures_and_other_formats(images: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="no pictures"):
        ask("no/such/model", {}, "What?")
    with pytest.raises(ValueError, match=r"\.png"):
        ask("no/such/model", images, "What?", Path("look.jpg"))
