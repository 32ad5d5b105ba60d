"""Conversations that are continued side by side, a token at a time, and may leave one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from drivekd.models.batch import collate, embed
from drivekd.models.encode import Encoded
from drivekd.models.vlm import Vlm, language_model, lm_head


@dataclass(eq=False, slots=True)
class Rows:
    """Where several conversations stand, each in a row of its own.

    Attributes:
        cache: keys and values of all columns so far.
        visible: False at columns that are padding of their row.
        position: of the token that comes next; behind images all axes count alike.
        hidden: state behind the last token, which predicts the next one.
    """

    cache: DynamicCache
    visible: Bool[Tensor, "b n"]
    position: Int[Tensor, " b"]
    hidden: Float[Tensor, "b d"]

    def logits(self, vlm: Vlm) -> Float[Tensor, "b V"]:
        """What comes next in each row, before softmax."""
        found: Tensor = lm_head(vlm)(self.hidden)
        return found


def begin(vlm: Vlm, encoded: Sequence[Encoded]) -> Rows:
    """Run whole prompts, each with its own images, padded on the right to the longest.

    Nothing is shared between rows but the pictures that several of them name. Generating goes
    without gradients and in evaluation mode, both of which the caller sees to.

    Args:
        vlm: of a family that is not `crossed`.
        encoded: prompts up to the answer; at least one.
    """
    batch = collate(vlm, encoded)
    paths = [path for row in batch.images for path in row]
    positions = batch.position_ids if batch.position_ids.ndim == 3 else batch.position_ids[None]
    cache = DynamicCache(config=vlm.model.config.get_text_config())
    inputs = embed(vlm, batch.input_ids, batch.is_image, paths, None)
    hidden = decode(vlm, inputs, positions, batch.attention_mask, cache)
    row, last = torch.arange(len(encoded), device=vlm.device), batch.valid.sum(1) - 1
    return Rows(cache, batch.valid, positions[0, row, last] + 1, hidden[row, last])


def follow(vlm: Vlm, rows: Rows, tokens: Int[Tensor, " b"]) -> None:
    """Append one token to each row."""
    seen = torch.cat([rows.visible, rows.visible.new_ones(len(tokens), 1)], dim=1)
    inputs = embed(vlm, tokens[:, None], torch.zeros_like(seen[:, :1]), (), None)
    position = axes(vlm, rows.position[:, None])
    rows.hidden = decode(vlm, inputs, position, seen[:, None, None], rows.cache)[:, 0]
    rows.visible, rows.position = seen, rows.position + 1


def keep(rows: Rows, which: Sequence[int]) -> None:
    """Let all other rows go; the order stays."""
    index = torch.tensor(which, dtype=torch.long, device=rows.hidden.device)
    rows.cache.batch_select_indices(index)
    rows.visible, rows.position = rows.visible[index], rows.position[index]
    rows.hidden = rows.hidden[index]


def decode(
    vlm: Vlm,
    inputs: Mapping[str, Any],
    positions: Int[Tensor, "axes b n"],
    mask: Bool[Tensor, "b 1 n m"],
    cache: DynamicCache,
) -> Float[Tensor, "b n d"]:
    """Run the decoder on new tokens (see `embed`); their keys and values go into the cache."""
    hidden: Tensor = language_model(vlm)(
        **inputs,
        attention_mask=mask,
        position_ids=positions if vlm.family.rope_axes == 3 else positions[0],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return hidden


def axes(vlm: Vlm, positions: Int[Tensor, "b n"]) -> Int[Tensor, "axes b n"]:
    """The same position on every axis, as behind images all tokens are text."""
    return positions.expand(vlm.family.rope_axes, -1, -1)


def end_tokens(vlm: Vlm) -> list[int]:
    """Ids that end an answer."""
    ends = vlm.model.generation_config.eos_token_id
    if ends is None:
        ends = vlm.tokenizer.eos_token_id
    return [ends] if isinstance(ends, int) else list(ends)
