"""Verification of an exported folder: does it answer in plain transformers as the model did?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer

from drivekd.data.cameras import prompt
from drivekd.data.sample import Message, Sample
from drivekd.models.encode import encode
from drivekd.models.images import pixels
from drivekd.models.quiet import quiet
from drivekd.models.vlm import Family, Vlm

_CAMERAS = ("CAM_FRONT", "CAM_BACK")
_QUESTIONS = (
    "What is in front of the ego vehicle?",
    "Which colour has the nearest car?",
    "How many pedestrians are there?",
    "What should the ego vehicle do next, and why?",
    "Is it safe to change to the left lane?",
    "Describe the scene.",
)
_SIZE = (160, 96)  # of a picture [px]
NEW_TOKENS = 16  # longest answer


def questions(folder: Path) -> list[Sample]:
    """Make six questions about two pictures of coloured noise, which are written into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    images, random = {}, np.random.default_rng(20260128)
    for camera in _CAMERAS:
        coarse = random.integers(0, 256, (6, 10, 3), dtype=np.uint8)
        images[camera] = folder / f"{camera}.png"
        Image.fromarray(coarse).resize(_SIZE, Image.Resampling.BICUBIC).save(images[camera])
    messages = [Message("user", prompt(question, _CAMERAS)) for question in _QUESTIONS]
    return [
        Sample(f"check-{n}", (message,), images, source="drivekd export")
        for n, message in enumerate(messages)
    ]


def plainly_loaded(folder: Path, family: Family, device: str = "cpu") -> Vlm:
    """Read a folder as any user of transformers does, with nothing of ours in between.

    `AutoProcessor` needs torchvision for its video part, so the image processor is read by name.
    """
    with quiet():
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype="auto", device_map=device, trust_remote_code=False
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        processor = getattr(transformers, family.image_processor).from_pretrained(folder)
    return Vlm(model.eval(), tokenizer, processor, family, str(folder))


@torch.no_grad()
def replies(vlm: Vlm, samples: Sequence[Sample]) -> list[list[int]]:
    """Answer greedily by `model.generate`, one question at a time: the new tokens of each."""
    given: list[list[int]] = []
    model: Any = vlm.model
    for sample in samples:
        encoded = encode(vlm, sample, add_answer=False)
        inputs: dict[str, Any] = dict(pixels(vlm, encoded.images))
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        ids = encoded.input_ids[None].to(vlm.device)
        if vlm.family.rope_axes == 3:
            inputs["mm_token_type_ids"] = encoded.is_image[None].int().to(vlm.device)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            **inputs,
        )
        given.append(out[0, ids.shape[1] :].tolist())
    return given


def agreement(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> dict[str, int]:
    """Compare the answers of two models to the same questions.

    Counted are `questions`, those whose answers are `equal` token for token, and how many `tokens`
    `of` the first model's come before the first difference.
    """
    pairs = [(list(one), list(other)) for one, other in zip(first, second, strict=True)]
    return {
        "questions": len(pairs),
        "equal": sum(one == other for one, other in pairs),
        "tokens": sum(len([*takewhile(_same, zip(*pair, strict=False))]) for pair in pairs),
        "of": sum(len(one) for one, _ in pairs),
    }


def _same(tokens: tuple[int, int]) -> bool:
    return tokens[0] == tokens[1]
