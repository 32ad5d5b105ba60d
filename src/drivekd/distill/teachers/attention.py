"""Head-averaged attention maps of chosen layers, while every layer runs on SDPA.

SDPA returns no attention weights, and eager attention keeps every head of every layer. Here the
model runs transformers' own SDPA; for layers that someone asked for, the map averaged over heads
is computed beside it from the same q, k and mask, optionally for a few rows only, and its backward
recomputes head by head instead of keeping the heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from drivekd.method.signals.head_mean import Blocks, head_mean

NAME = "drivekd_sdpa"
"""Under this name the tapped SDPA is registered with transformers."""

_TAP = "_drivekd_tap"


@dataclass(frozen=True)
class _Tap:
    """A request to record the map of one layer, attached to its attention module."""

    layer: int
    rows: Tensor | None
    maps: dict[int, Tensor]
    known: Blocks


def _tapped_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Run transformers' SDPA and record the map where `capture` asked this module for one."""
    tap: _Tap | None = getattr(module, _TAP, None)
    if tap is not None:
        _record(tap, module, query, key, attention_mask, kwargs)
    output: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, **kwargs
    )
    return output


def _record(
    tap: _Tap,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    kwargs: Mapping[str, Any],
) -> None:
    recomputing = _in_backward()
    if tap.layer in tap.maps and not recomputing:
        raise ValueError(
            f"attention capture: layer {tap.layer + 1} ran twice in one `capture` block, which "
            "records one forward pass; open one block per pass"
        )
    causal = kwargs.get("is_causal")
    computed = head_mean(
        query,
        key,
        mask,
        scale=kwargs.get("scaling"),
        causal=bool(getattr(module, "is_causal", True) if causal is None else causal)
        and query.shape[2] > 1,
        rows=tap.rows,
        known=tap.known,
    )
    # A checkpointed layer runs again during backward and must save the same tensors again; the
    # map that the loss was built on is the first one, and the one of the recomputation is dropped.
    if not recomputing:
        tap.maps[tap.layer] = computed


def _in_backward() -> bool:
    """Whether autograd is running: a forward pass now recomputes a checkpointed layer."""
    # The same private query as in torch.utils.checkpoint; there is no public one.
    return torch._C._current_graph_task_id() != -1


def install(model: PreTrainedModel) -> None:
    """Switch the text attention of a model to the tapped SDPA; the vision tower stays on SDPA.

    Results stay bit-equal to plain SDPA. Safe to call again.

    Raises:
        ValueError: transformers refuses to change the attention of this class of model.
    """
    AttentionInterface.register(NAME, _tapped_sdpa)
    # Without this second one, padding is ignored without a word.
    AttentionMaskInterface.register(NAME, sdpa_mask)
    parts = getattr(model.config, "sub_configs", {})
    if "text_config" in parts:
        others = {part: "sdpa" for part in parts if part != "text_config"}
        model.set_attn_implementation({"text_config": NAME, **others})
    else:
        model.set_attn_implementation(NAME)
    text = model.config.get_text_config()
    if text._attn_implementation != NAME:
        raise ValueError(
            f"attention of {type(model).__name__}: expected {NAME!r} after switching, got "
            f"{text._attn_implementation!r}; this class does not use transformers' attention "
            "interface, so its maps cannot be captured"
        )


@contextmanager
def capture(
    layers: nn.ModuleList, wanted: Mapping[int, Int[Tensor, " R"] | None]
) -> Iterator[dict[int, Tensor]]:
    """Record head-averaged attention maps of chosen layers during one forward pass.

    Each map is float32 [B, R, n] (R = n where all rows are wanted), masked as SDPA was, and
    differentiable in the layer's q and k where gradients are enabled.

    With activation checkpointing the backward pass must run inside the block too, because the
    layers run again then.

    Args:
        layers: the decoder layers of a model on which `install` was called; each has `self_attn`.
        wanted: 0-based layer to the positions of the rows to compute (for the whole batch), or to
            None for all rows.

    Yields:
        Layer to map, filled while the model runs.

    Raises:
        ValueError: a layer does not exist, is being captured already, ran twice, or its map is
            missing at the end of a block that ended normally.
    """
    maps: dict[int, Tensor] = {}
    known: Blocks = {}
    modules = {layer: _untapped(layers, layer) for layer in wanted}
    try:
        for layer, module in modules.items():
            setattr(module, _TAP, _Tap(layer, wanted[layer], maps, known))
        yield maps
    finally:
        for module in modules.values():
            module.__dict__.pop(_TAP, None)
    missing = sorted(set(wanted) - set(maps))
    if missing:
        raise ValueError(
            f"attention capture: no map of layers {[layer + 1 for layer in missing]} (of "
            f"{len(layers)}); expected one forward pass through them inside the block, on a model "
            "prepared by drivekd.distill.teachers.attention.install"
        )


def _untapped(layers: nn.ModuleList, layer: int) -> nn.Module:
    module = _attention_of(layers, layer)
    if _TAP in module.__dict__:
        raise ValueError(
            f"attention capture: layer {layer + 1} is being captured already; blocks for the same "
            "layer cannot be nested"
        )
    return module


def _attention_of(layers: nn.ModuleList, layer: int) -> nn.Module:
    if not 0 <= layer < len(layers):
        raise ValueError(f"layer {layer + 1} of a model with layers 1 to {len(layers)}")
    module: nn.Module = layers[layer].self_attn  # type: ignore[assignment]
    return module


class _Stop(Exception):  # noqa: N818  not an error: it ends a forward pass early
    """Raised inside a model to leave it; never seen outside `stop_after`."""


@contextmanager
def stop_after(layers: nn.ModuleList, index: int, *, whole: bool = False) -> Iterator[None]:
    """End the forward pass inside the block once the attention of layer `index` (from 0) has run.

    What comes later (that layer's feed-forward part, all further layers, the final norm, the
    head) is not computed; the block is left at that point, so nothing may follow the forward pass
    in it. Maps up to and including this layer are those of the full pass, bit for bit.

    Args:
        layers: the decoder layers of a model.
        index: the last one that runs, from 0.
        whole: let that layer finish, because its output states are wanted (states.py; open its
            block first, so that they are recorded before the pass ends).
    """

    def leave(*_: Any) -> None:
        raise _Stop

    attention = _attention_of(layers, index)
    handle = (layers[index] if whole else attention).register_forward_hook(leave)
    try:
        with suppress(_Stop):
            yield
    finally:
        handle.remove()
