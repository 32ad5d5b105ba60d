"""Head-averaged attention maps of chosen layers, while every layer runs on SDPA.

SDPA returns no attention weights, and eager attention keeps every head of every layer. Here the
model runs transformers' own SDPA; for layers that someone asked for, the map averaged over heads
is computed beside it from the same q, k and mask, optionally for a few rows only, and its backward
recomputes head by head instead of keeping the heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "drivekd_sdpa"
"""Under this name the tapped SDPA is registered with transformers."""

HEADS_AT_ONCE = 2**21
"""Scores [entries] computed at a time: few small heads go in one product, large ones one by one.

Measured on one CPU core: 16 heads of 150 x 500 in 1.6 ms together against 1.7 ms one by one;
28 heads of 500 x 500 in 30 ms together, 15 ms one by one (they no longer fit the cache).
"""

_TAP = "_drivekd_tap"

Mask = Bool[Tensor, "Bm 1 n k"] | Float[Tensor, "Bm 1 n k"]
Chunk = tuple[slice, slice]


def head_mean_plain(
    q: Float[Tensor, "B H n d"],
    k: Float[Tensor, "B Hk m d"],
    bias: Float[Tensor, "Bm 1 n m"],
    scale: float,
) -> Float[Tensor, "B n m"]:
    """Softmax attention averaged over heads, in the plainest form; the twin of `head_mean`."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return torch.softmax(q @ k.transpose(-1, -2) * scale + bias, dim=-1).mean(dim=1)


def head_mean(
    q: Float[Tensor, "B H n d"],
    k: Float[Tensor, "B Hk m d"],
    mask: Mask | None = None,
    *,
    scale: float | None = None,
    causal: bool = True,
    rows: Int[Tensor, " R"] | None = None,
) -> Float[Tensor, "B R m"]:
    """Softmax attention of chosen rows averaged over heads, Ā = (1/H) Σ_h softmax(q_h k_hᵀ·scale).

    Differentiable in q and k. Only q and k (and the mask) are kept for the backward pass, which
    recomputes the heads; without gradient nothing is kept. [release: the map; ours: the way]

    Args:
        q: queries.
        k: keys; query heads h·H/Hk … share key head h (grouped-query attention).
        mask: boolean (True = may attend) or additive, the same for all heads; its batch axis may
            be 1. None: causal from the upper left if `causal`, else everything, as SDPA reads it.
        scale: factor of the scores; d^-½ by default.
        causal: what `mask=None` means.
        rows: positions of the rows wanted, in any order; all by default.

    Returns:
        float32 (float64 for float64 inputs); rows of fully masked positions are zero.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        result: Tensor = _HeadMean.apply(q, k, mask, rows, scale, causal)  # type: ignore[no-untyped-call]
        return result
    return _mean(q, k, mask, rows, scale, causal)


class _HeadMean(torch.autograd.Function):
    """The map with a backward that recomputes the heads instead of keeping them."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        mask: Tensor | None,
        rows: Tensor | None,
        scale: float,
        causal: bool,
    ) -> Tensor:
        ctx.save_for_backward(q, k, mask, rows)
        ctx.settings = (scale, causal)
        return _mean(q, k, mask, rows, scale, causal)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, mask, rows = ctx.saved_tensors
        return *_mean_backward(grad, q, k, mask, rows, *ctx.settings), None, None, None, None


def _mean(
    q: Tensor, k: Tensor, mask: Tensor | None, rows: Tensor | None, scale: float, causal: bool
) -> Tensor:
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        bias, dead = _bias(q, k, mask, rows, causal)
        picked = _split_heads(_pick(q, rows), k)
        total = q.new_zeros(q.shape[0], picked.shape[3], k.shape[2], dtype=_accurate(q))
        for chunk in _chunks(picked, k):
            total += _attend(picked, k, bias, scale, chunk)[0].sum(dim=(1, 2))
        total /= q.shape[1]
        return total if dead is None else total.masked_fill_(dead, 0.0)


def _mean_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    rows: Tensor | None,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """∂/∂q and ∂/∂k: with P_h = softmax and dP = grad/H, dS_h = P_h ∘ (dP − Σ_cols P_h ∘ dP)."""
    with torch.autocast(q.device.type, enabled=False):
        bias, dead = _bias(q, k, mask, rows, causal)
        picked = _split_heads(_pick(q, rows), k)
        grad = (grad if dead is None else grad.masked_fill(dead, 0.0)) / q.shape[1]
        grad_q = torch.empty_like(picked, dtype=_accurate(q))
        grad_k = torch.zeros_like(k, dtype=_accurate(q))
        for chunk in _chunks(picked, k):
            p, q_, k_ = _attend(picked, k, bias, scale, chunk)
            ds = p * grad[:, None, None]
            ds.addcmul_(p, ds.sum(-1, keepdim=True), value=-1.0)
            flat = ds.flatten(2, 3)
            grad_q[:, chunk[0], chunk[1]] = (flat @ k_).view_as(q_) * scale
            grad_k[:, chunk[0]] += flat.transpose(-1, -2) @ q_.flatten(2, 3)  # q_ is scaled
        full = grad_q.flatten(1, 2)
        if rows is not None:
            full = torch.zeros_like(q, dtype=full.dtype).index_add_(2, rows, full)
        return full.to(q.dtype), grad_k.to(k.dtype)


def _attend(
    q: Tensor, k: Tensor, bias: Tensor | None, scale: float, chunk: Chunk
) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities of some heads [B, hk, g, R, m], with their scaled q and their k."""
    q_ = q[:, chunk[0], chunk[1]].to(_accurate(q)) * scale
    k_ = k[:, chunk[0]].to(_accurate(k))
    shape = (*q_.shape[:-1], k.shape[2])
    # One product per key head for all of its query heads: k is never repeated.
    queries, keys = q_.flatten(2, 3).flatten(0, 1), k_.flatten(0, 1).transpose(-1, -2)
    if bias is None:
        scores = queries @ keys
    else:
        scores = bias[:, None].expand(shape).reshape(-1, *queries.shape[1:2], shape[-1])
        scores = torch.baddbmm(scores, queries, keys)
    return torch.softmax(scores.view(shape), dim=-1), q_, k_


def _bias(
    q: Tensor, k: Tensor, mask: Tensor | None, rows: Tensor | None, causal: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The mask of the rows wanted as an additive one, and which rows [B, R, 1] attend to nothing.

    Adding is 1.5 to 3 times as fast as filling. Rows that may attend to nothing are left open
    here and zeroed in the map: softmax over nothing is NaN.
    """
    if mask is None:
        if not causal:
            return None, None
        at = torch.arange(q.shape[2], device=q.device) if rows is None else rows
        allowed = at[:, None] >= torch.arange(k.shape[2], device=q.device)
        return _additive(allowed[None, None], q), None
    mask = _pick(mask, rows)
    if mask.dtype == torch.bool:
        dead = ~mask.any(dim=-1, keepdim=True)
        return _additive(mask | dead, q), dead[:, 0]
    dead = (mask == -torch.inf).all(dim=-1, keepdim=True)
    return mask.to(_accurate(q)).masked_fill(dead, 0.0), dead[:, 0]


def _additive(allowed: Tensor, q: Tensor) -> Tensor:
    zeros = torch.zeros((), dtype=_accurate(q), device=q.device)
    return torch.where(allowed, zeros, -torch.inf)


def _pick(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(2, rows)


def _split_heads(x: Tensor, k: Tensor) -> Tensor:
    """[B, H, n, d] → [B, Hk, H/Hk, n, d]."""
    return x.reshape(x.shape[0], k.shape[1], -1, *x.shape[2:])


def _accurate(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _chunks(q: Tensor, k: Tensor) -> list[Chunk]:
    """Slices of key heads and of query heads within them that fit HEADS_AT_ONCE, at least one."""
    batch, heads, group, rows = q.shape[:4]
    fit = max(1, HEADS_AT_ONCE // max(1, batch * rows * k.shape[2]))
    if fit >= group:
        step = fit // group
        return [(slice(h, h + step), slice(None)) for h in range(0, heads, step)]
    within = [slice(g, g + fit) for g in range(0, group, fit)]
    return [(slice(h, h + 1), part) for h in range(heads) for part in within]


@dataclass(frozen=True)
class _Tap:
    """A request to record the map of one layer, attached to its attention module."""

    layer: int
    rows: Tensor | None
    maps: dict[int, Tensor]


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
    modules = {layer: _untapped(layers, layer) for layer in wanted}
    try:
        for layer, module in modules.items():
            setattr(module, _TAP, _Tap(layer, wanted[layer], maps))
        yield maps
    finally:
        for module in modules.values():
            module.__dict__.pop(_TAP, None)
    missing = sorted(set(wanted) - set(maps))
    if missing:
        raise ValueError(
            f"attention capture: no map of layers {[layer + 1 for layer in missing]} (of "
            f"{len(layers)}); expected one forward pass through them inside the block, on a model "
            "prepared by drivekd.distill.attention.install"
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
def stop_after(layers: nn.ModuleList, index: int) -> Iterator[None]:
    """End the forward pass inside the block once the attention of layer `index` (from 0) has run.

    What comes later (that layer's feed-forward part, all further layers, the final norm, the
    head) is not computed; the block is left at that point, so nothing may follow the forward pass
    in it. Maps up to and including this layer are those of the full pass, bit for bit.
    """

    def leave(*_: Any) -> None:
        raise _Stop

    handle = _attention_of(layers, index).register_forward_hook(leave)
    try:
        yield
    except _Stop:
        pass
    finally:
        handle.remove()
