"""Whether an exported folder, read by plain transformers, still answers as the model did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer

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


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two models' greedy answers are the same."""

    questions: int  # how many were asked
    equal: int  # how many got the same answer, token for token
    tokens: int  # of the first model's tokens, how many come before the first other one
    of: int  # how many tokens the first model's answers have

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def questions(folder: Path) -> list[Sample]:
    """Six questions about two pictures of coloured noise, which are written into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    images, random = {}, np.random.default_rng(20260128)
    for camera in _CAMERAS:
        coarse = random.integers(0, 256, (6, 10, 3), dtype=np.uint8)
        images[camera] = folder / f"{camera}.png"
        Image.fromarray(coarse).resize(_SIZE, Image.Resampling.BICUBIC).save(images[camera])
    shown = "".join(f"{camera}: <image>\n" for camera in _CAMERAS)
    return [
        Sample(f"check-{n}", (Message("user", shown + text),), images, source="drivekd export")
        for n, text in enumerate(_QUESTIONS)
    ]


def plainly_loaded(folder: Path, family: Family, device: str = "cpu") -> Vlm:
    """A folder as any user of transformers reads it, with nothing of ours in between.

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
    """Greedy answers by `model.generate`, one question at a time: the new tokens of each."""
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


def agreement(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> Agreement:
    """Compare the answers of two models to the same questions."""
    same = [_shared(one, other) for one, other in zip(first, second, strict=True)]
    equal = sum(list(one) == list(other) for one, other in zip(first, second, strict=True))
    return Agreement(len(first), equal, sum(same), sum(map(len, first)))


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens stand before the first difference."""
    count = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        count += 1
    return count
