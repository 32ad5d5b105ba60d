"""A tiny model and questions about two scenes, shared by the tests of this folder."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from drivekd.data.sample import Message, Sample
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
