"""Answers of models that see images in cross-attention layers, by transformers' own generation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.models.mllama import processing_mllama as mllama

from drivekd.models.encode import Encoded
from drivekd.models.images import ImageMode, picture
from drivekd.models.sampling import Sampling, choice
from drivekd.models.vlm import Vlm


def continuation(
    vlm: Vlm,
    encoded: Encoded,
    image_mode: ImageMode,
    other: Mapping[Path, Path] | None,
    max_new_tokens: int,
    sampling: Sampling,
) -> list[int]:
    """New tokens of one question; one question at a time, for nothing is shared.

    Args:
        vlm: of a family that is `crossed`.
        encoded: the question, one token per image.
        image_mode: as for `drivekd.models.images.pixels`.
        other: the same.
        max_new_tokens: longest answer [tokens].
        sampling: how tokens are chosen.
    """
    ids = encoded.input_ids[None].to(vlm.device)
    choose = choice(sampling, [encoded.sample.id], max_new_tokens, vlm.device)

    def only(known: Tensor, logits: Tensor) -> Tensor:
        """Leave nothing but the chosen token to transformers, which takes the best one."""
        token = choose(logits, known.shape[1] - ids.shape[1])
        return torch.full_like(logits, -torch.inf).scatter(-1, token[:, None], 0.0)

    seen = _seen(vlm, encoded, image_mode, other) if encoded.images else {}
    model: Any = vlm.model
    made: Tensor = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        logits_processor=LogitsProcessorList([only] if sampling.temperature else []),
        **seen,
    )
    return [int(token) for token in made[0, ids.shape[1] :]]


def _seen(
    vlm: Vlm, encoded: Encoded, image_mode: ImageMode, other: Mapping[Path, Path] | None
) -> dict[str, Tensor]:
    """Tiles of the pictures, and which tokens see which: those from its own token on."""
    shown = [picture(vlm, path, image_mode, other) for path in encoded.images]
    tiles = vlm.image_processor(images=[shown], return_tensors="pt")
    ids = encoded.input_ids.tolist()
    mask = mllama.convert_sparse_cross_attention_mask_to_dense(
        [mllama.get_cross_attention_token_mask(ids, vlm.image_token_id)],
        num_tiles=[[int(count) for count in tiles["num_tiles"][0]]],
        max_num_tiles=vlm.image_processor.max_image_tiles,
        length=len(ids),
    )
    names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
    seen = {name: torch.as_tensor(tiles[name]) for name in names}
    seen["pixel_values"] = seen["pixel_values"].to(vlm.model.dtype)
    seen["cross_attention_mask"] = torch.as_tensor(mask)
    return {name: each.to(vlm.device) for name, each in seen.items()}
