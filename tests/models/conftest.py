"""Pictures, samples and one tiny model per family, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drivekd.data.sample import CAMERAS, Message, Sample

MakeSample = Callable[..., Sample]

QUESTIONS = (
    ("What is <c1,CAM_FRONT,0.4700,0.6800><r3>?", "a red car"),
    ("Is it safe to change to the left lane?", "yes"),
    ("How far is it? Größe ≈ 12 m", "12.5 m\nin the left lane"),
)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A file of noise per name, made when first asked for."""
    folder = tmp_path_factory.mktemp("pictures")

    def picture(name: str, size: tuple[int, int] = (48, 48)) -> Path:
        path = folder / f"{name}_{size[0]}x{size[1]}.png"
        if not path.exists():
            rng = np.random.default_rng(sum(name.encode()))
            noise = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
        return path

    return picture


@pytest.fixture(scope="session")
def make(pictures: Callable[..., Path]) -> MakeSample:
    """`make(scene, question, answer, cameras=2)` in the layout of the embedded world."""

    def sample(
        scene: str, question: str = "Where?", answer: str | None = "there", cameras: int = 2
    ) -> Sample:
        images = {c: pictures(f"{scene}-{c}") for c in CAMERAS[:cameras]}
        shown = "".join(f"{c}: <image>\n" for c in images)
        messages = [Message("user", shown + question)]
        if answer is not None:
            messages.append(Message("assistant", answer))
        return Sample(f"{scene}:{question}", tuple(messages), images, source="test.jsonl:1")

    return sample


@pytest.fixture(scope="session")
def mixed(make: MakeSample) -> list[Sample]:
    """Questions of two scenes and one without images, of unequal lengths, interleaved."""
    first = [make("a", q, a) for q, a in QUESTIONS]
    second = [make("b", q, a, cameras=3) for q, a in QUESTIONS[:2]]
    plain = make("none", "Say something.", "something", cameras=0)
    return [first[0], second[0], plain, first[1], second[1], first[2]]
