"""Tiny models that answer and judge, and questions about two scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import Qwen2Config, Qwen2ForCausalLM

from drivekd.data.sample import Message, Sample
from drivekd.models.tiny import build_tokenizer, tiny_vlm
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


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random text model of two layers and its tokenizer."""
    folder = tmp_path_factory.mktemp("text")
    tokenizer = build_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
