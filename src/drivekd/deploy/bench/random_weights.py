"""Published architectures with random weights: they cost as much as trained ones and no download.

Tokens are bytes, so a text is longer than in the model's own vocabulary: prompt lengths are told
with every measurement.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import transformers
from transformers import AutoModelForImageTextToText

from drivekd.models.published import PUBLISHED, config_of, skeleton
from drivekd.models.tiny import IMAGENET_MEAN, IMAGENET_STD, build_tokenizer
from drivekd.models.vlm import Family, Vlm


def shell(name: str, *, max_image_tokens: int = 256) -> Vlm:
    """A published model that can be fed but not run: its weights have shapes and no numbers.

    Args:
        name: hub id, or the part of it behind the slash.
        max_image_tokens: as for `drivekd.models.vlm.load`.

    Raises:
        ValueError: no published model of that name is known.
    """
    source = _known(name)
    config = config_of(source)
    bare = skeleton(config, source)
    family = bare.family
    tokenizer = build_tokenizer(family=family.name)
    ids = {"image_token_id": family.image_token, "vision_start_token_id": family.image_start}
    for key, token in ids.items():  # the tokenizer's own; the vocabulary keeps its size
        if hasattr(config, key):
            setattr(config, key, tokenizer.convert_tokens_to_ids(token))
    processor = _image_processor(family, config, max_image_tokens)
    return replace(bare, tokenizer=tokenizer, image_processor=processor)


def filled(bare: Vlm, device: str, dtype: torch.dtype) -> Vlm:
    """The same model with random weights, in evaluation mode.

    Args:
        bare: from `shell`.
        device: where the weights go.
        dtype: of the weights.
    """
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        model: Any = AutoModelForImageTextToText.from_config(
            bare.model.config, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False
        )
    return replace(bare, model=model.eval())


def _known(name: str) -> str:
    found = [source for source in PUBLISHED if name in (source, source.partition("/")[2])]
    if not found:
        raise ValueError(
            f"model {name!r}: no configuration of that name is known; expected one of "
            f"{', '.join(PUBLISHED)}"
        )
    return found[0]


def _image_processor(family: Family, config: Any, max_image_tokens: int) -> Any:
    """One tile of the tower's size, or as many pixels as make so many visual tokens."""
    cls = getattr(transformers, family.image_processor)
    vision = config.vision_config
    if family.one_size:
        height, width = vision.image_size
        size = {"height": int(height), "width": int(width)}
        colours = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}
        return cls(size=size, crop_to_patches=False, **colours)
    merge = int(vision.spatial_merge_size)
    cell = (int(vision.patch_size) * merge) ** 2
    return cls(
        size={"shortest_edge": 4 * cell, "longest_edge": max_image_tokens * cell},
        patch_size=int(vision.patch_size),
        merge_size=merge,
        temporal_patch_size=int(vision.temporal_patch_size),
    )
