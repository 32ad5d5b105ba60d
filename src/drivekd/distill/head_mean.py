"""Softmax attention averaged over heads, with a backward pass that keeps little.

Pure functions of queries and keys; attention.py takes them from a running model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

HEADS_AT_ONCE = 2**20
"""Scores [entries] computed at a time: few small heads go in one product, large ones one by one.

Measured on one CPU core, forward: 16 heads of 150 × 500 in 1.6 ms together, 1.7 ms one by one;
28 heads of 500 × 500 in 30 ms together, 15 ms one by one (blocks beyond the cache cost double).
"""

KEPT_ENTRIES = 2**23
"""Softmax entries of a map that are kept for its backward pass rather than computed again.

At most 32 MB a map: tiny models train a quarter faster, at full size nothing is kept.
"""


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
        kept: list[Tensor] = []
        mean = _mean(q, k, mask, rows, scale, causal, kept)
        ctx.save_for_backward(q, k, mask, rows, *kept)
        ctx.settings = (scale, causal)
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, mask, rows, *kept = ctx.saved_tensors
        scale, causal = ctx.settings
        passed = _mean_backward(grad, q, k, mask, rows, scale, causal, kept)
        return *passed, None, None, None, None


def _mean(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    rows: Tensor | None,
    scale: float,
    causal: bool,
    kept: list[Tensor] | None = None,
) -> Tensor:
    """The map; where `kept` is given, small probabilities are put there for the backward pass."""
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        bias, dead = _bias(q, k, mask, rows, causal)
        picked = _split_heads(_pick(q, rows), k)
        total = q.new_zeros(q.shape[0], picked.shape[3], k.shape[2], dtype=_accurate(q))
        keeps = picked.shape[:4].numel() * k.shape[2] <= KEPT_ENTRIES
        for chunk in _chunks(picked, k):
            p = _probabilities(*_operands(picked, k, scale, chunk), bias)
            total += p.sum(dim=(1, 2))
            if kept is not None and keeps:
                kept.append(p)
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
    kept: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """∂/∂q and ∂/∂k: with P_h = softmax and dP = grad/H, dS_h = P_h ∘ (dP − Σ_cols P_h ∘ dP)."""
    with torch.autocast(q.device.type, enabled=False):
        bias, dead = _bias(q, k, mask, rows, causal)
        picked = _split_heads(_pick(q, rows), k)
        grad = (grad if dead is None else grad.masked_fill(dead, 0.0)) / q.shape[1]
        grad_q = torch.empty_like(picked, dtype=_accurate(q))
        grad_k = torch.zeros_like(k, dtype=_accurate(q))
        for i, chunk in enumerate(_chunks(picked, k)):
            q_, k_ = _operands(picked, k, scale, chunk)
            p = kept[i] if kept else _probabilities(q_, k_, bias)
            ds = p * grad[:, None, None]
            ds.addcmul_(p, ds.sum(-1, keepdim=True), value=-1.0)
            flat = ds.flatten(2, 3)
            grad_q[:, chunk[0], chunk[1]] = (flat @ k_).view_as(q_) * scale
            grad_k[:, chunk[0]] += flat.transpose(-1, -2) @ q_.flatten(2, 3)  # q_ is scaled
        full = grad_q.flatten(1, 2)
        if rows is not None:
            full = torch.zeros_like(q, dtype=full.dtype).index_add_(2, rows, full)
        return full.to(q.dtype), grad_k.to(k.dtype)


def _operands(q: Tensor, k: Tensor, scale: float, chunk: Chunk) -> tuple[Tensor, Tensor]:
    """Scaled q [B, hk, g, R, d] and k [B, hk, m, d] of some heads, in the map's precision."""
    return q[:, chunk[0], chunk[1]].to(_accurate(q)) * scale, k[:, chunk[0]].to(_accurate(k))


def _probabilities(q_: Tensor, k_: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention of some heads [B, hk, g, R, m]."""
    # One product per key head for all of its query heads: k is never repeated.
    scores = (q_.flatten(2, 3) @ k_.transpose(-1, -2)).view(*q_.shape[:-1], k_.shape[2])
    if bias is not None:
        scores += bias[:, None]
    return torch.softmax(scores, dim=-1)


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
