from __future__ import annotations

import pytest
import torch

from drivekd.data.sample import Sample
from drivekd.evaluate.answers.answer import fingerprint, is_correct, other_scenes
from drivekd.models.tiny import tiny_vlm
from drivekd.models.vlm import Vlm


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
    with pytest.raises(ValueError, match="options"):
        is_correct("A", "C", options)
