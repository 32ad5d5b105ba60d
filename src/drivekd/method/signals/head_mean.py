"""Softmax attention averaged over heads, with a backward pass that keeps little.

Pure functions of queries and keys; attention.py takes them from a running model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

HEADS_AT_ONCE = 2**18
"""Scores [entries] computed at a time, 1 MB: a block that leaves the cache costs double."""

ROWS_AT_ONCE = 128
"""Rows computed at a time on a CPU, with the columns that any of them attends to.

Half of a causal map, and most of a row in which many questions share one prefix, is so never
computed. A GPU does all rows at once: to ask it what they reach would make it wait.
"""

KEPT_ENTRIES = 2**23
"""Softmax entries of a map that are kept for its backward pass rather than computed again.

At most 32 MB a map: tiny models train a quarter faster, at full size nothing is kept.
"""


Mask = Bool[Tensor, "Bm 1 n k"] | Float[Tensor, "Bm 1 n k"]
Chunk = tuple[slice, slice]


class Block(NamedTuple):
    """Some rows of the map.

    Attributes:
        rows: which of the rows wanted.
        columns: those that any of these rows may attend to.
        bias: their additive mask [Bm, 1, 1, r, c]; None where it changes nothing.
        dead: those that attend to nothing [Bm, r, 1]; None where it is known that there are none.
    """

    rows: slice
    columns: slice | Tensor
    bias: Tensor | None
    dead: Tensor | None


Blocks = dict[tuple[int, int], tuple[Tensor, Tensor | None, list[Block]]]
"""Blocks by mask and rows wanted: layers of one forward pass share them, by identity."""


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
    known: Blocks | None = None,
) -> Float[Tensor, "B R m"]:
    """Softmax attention of chosen rows averaged over heads, Ā = (1/H) Σ_h softmax(q_h k_hᵀ·scale).

    Differentiable in q and k. Only q, k and the blocks are kept for the backward pass, which
    recomputes the heads; without gradient nothing is kept. [release: the map; ours: the way]

    Args:
        q: queries.
        k: keys; query heads h·H/Hk … share key head h (grouped-query attention).
        mask: boolean (True = may attend) or additive, the same for all heads; its batch axis may
            be 1. None: causal from the upper left if `causal`, else everything, as SDPA reads it.
        scale: factor of the scores; d^-½ by default.
        causal: what `mask=None` means.
        rows: positions of the rows wanted, in any order; all by default.
        known: remembers what was worked out about a mask, for calls with the same one.

    Returns:
        float32 (float64 for float64 inputs); rows of fully masked positions are zero.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    blocks = _blocks(q, k, mask, rows, causal, {} if known is None else known)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        result: Tensor = _HeadMean.apply(q, k, rows, scale, blocks)  # type: ignore[no-untyped-call]
        return result
    return _mean(q, k, rows, scale, blocks)


class _HeadMean(torch.autograd.Function):
    """The map with a backward that recomputes the heads instead of keeping them."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, rows: Tensor | None, scale: float, blocks: Sequence[Block]
    ) -> Tensor:
        kept: list[Tensor] = []
        mean = _mean(q, k, rows, scale, blocks, kept)
        ctx.save_for_backward(q, k, rows, *kept)
        ctx.settings = (scale, blocks)
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, rows, *kept = ctx.saved_tensors
        scale, blocks = ctx.settings
        return *_mean_backward(grad, q, k, rows, scale, blocks, kept), None, None, None


def _mean(
    q: Tensor,
    k: Tensor,
    rows: Tensor | None,
    scale: float,
    blocks: Sequence[Block],
    kept: list[Tensor] | None = None,
) -> Tensor:
    """The map; where `kept` is given, small probabilities are put there for the backward pass."""
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        scaled, keys = _operands(q, k, rows, scale)
        total = keys.new_zeros(len(q), scaled.shape[3], k.shape[2])
        keeps = scaled.shape[:4].numel() * k.shape[2] <= KEPT_ENTRIES
        for block in blocks:
            seen = keys[:, :, block.columns]
            part = total.new_zeros(len(q), block.rows.stop - block.rows.start, seen.shape[2])
            for heads, group in _chunks(scaled, part):
                p = _probabilities(scaled[:, heads, group, block.rows], seen[:, heads], block.bias)
                for head in p.flatten(1, 2).unbind(1):
                    part += head
                if kept is not None and keeps:
                    kept.append(p)
            if block.dead is not None:
                part.masked_fill_(block.dead, 0.0)
            total[:, block.rows, block.columns] = part
        return total.div_(q.shape[1])


def _mean_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    rows: Tensor | None,
    scale: float,
    blocks: Sequence[Block],
    kept: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """∂/∂q and ∂/∂k: with P_h = softmax and dP = grad/H, dS_h = P_h ∘ (dP − Σ_cols P_h ∘ dP)."""
    with torch.autocast(q.device.type, enabled=False):
        scaled, keys = _operands(q, k, rows, scale)
        grad_q, grad_k = torch.empty_like(scaled), torch.zeros_like(keys)
        again = iter(kept)
        for block in blocks:
            seen = keys[:, :, block.columns]
            dp = grad[:, block.rows, block.columns] / q.shape[1]
            dp = dp if block.dead is None else dp.masked_fill_(block.dead, 0.0)
            grad_seen = torch.zeros_like(seen)
            for heads, group in _chunks(scaled, dp):
                q_, k_ = scaled[:, heads, group, block.rows], seen[:, heads]
                p = next(again) if kept else _probabilities(q_, k_, block.bias)
                ds = p * dp[:, None, None]
                ds.addcmul_(p, ds.sum(-1, keepdim=True), value=-1.0)
                flat = ds.flatten(2, 3)
                grad_q[:, heads, group, block.rows] = (flat @ k_).view_as(q_)
                grad_seen[:, heads] += flat.transpose(-1, -2) @ q_.flatten(2, 3)
            grad_k[:, :, block.columns] += grad_seen
        full = grad_q.mul_(scale).flatten(1, 2)  # grad_k has the scale already, by q_
        if rows is not None:
            full = torch.zeros_like(q, dtype=full.dtype).index_add_(2, rows, full)
        return full.to(q.dtype), grad_k.to(k.dtype)


def _operands(q: Tensor, k: Tensor, rows: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Scaled q [B, Hk, H/Hk, R, d] of the rows wanted and k, in the map's precision."""
    picked = q if rows is None else q.index_select(2, rows)
    split = picked.reshape(len(q), k.shape[1], -1, *picked.shape[2:])
    return split.to(_accurate(q)) * scale, k.to(_accurate(k))


def _probabilities(q_: Tensor, k_: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention of some heads [B, hk, g, r, c]."""
    # One product per key head for all of its query heads: k is never repeated.
    scores = (q_.flatten(2, 3) @ k_.transpose(-1, -2)).view(*q_.shape[:-1], k_.shape[2])
    if bias is not None:
        scores += bias
    return torch.softmax(scores, dim=-1)


def _blocks(
    q: Tensor, k: Tensor, mask: Tensor | None, rows: Tensor | None, causal: bool, known: Blocks
) -> list[Block]:
    """The rows wanted, some at a time, with their mask as an additive one.

    Adding is 1.5 to 3 times as fast as filling. Rows that may attend to nothing are left open
    here and zeroed in the map: softmax over nothing is NaN.
    """
    if mask is None:
        return list(_cut(q, k, mask, rows, causal))
    name = (id(mask), id(rows))
    if name not in known:  # an id stands for a tensor only while that lives
        known[name] = mask, rows, list(_cut(q, k, mask, rows, causal))
    return known[name][2]


def _cut(
    q: Tensor, k: Tensor, mask: Tensor | None, rows: Tensor | None, causal: bool
) -> Iterator[Block]:
    wanted = torch.arange(q.shape[2], device=q.device) if rows is None else rows
    step = ROWS_AT_ONCE if q.is_cpu else max(1, len(wanted))
    for start in range(0, len(wanted), step):
        place = slice(start, min(start + step, len(wanted)))
        if mask is None and not causal:
            yield Block(place, slice(0, k.shape[2]), None, None)
            continue
        at = wanted[place]
        if mask is None:
            open_ = (at[:, None] >= torch.arange(k.shape[2], device=q.device))[None, None]
        else:
            open_ = mask[:, :, place] if rows is None else mask[:, :, at]
        bias = _additive(open_, q) if open_.dtype == torch.bool else open_.to(_accurate(q))
        columns = _reached(bias) if q.is_cpu else slice(0, k.shape[2])
        bias = bias[..., columns]
        dead = bias.amax(dim=-1, keepdim=True) == -torch.inf
        if q.is_cpu and not bool(dead.any()):
            yield Block(place, columns, bias[:, :, None], None)
        else:
            yield Block(place, columns, bias.masked_fill(dead, 0.0)[:, :, None], dead[:, 0])


def _reached(bias: Tensor) -> slice | Tensor:
    """The columns that any row of an additive mask attends to; at least one."""
    found = (bias.amax(dim=(0, 1, 2)) > -torch.inf).nonzero().squeeze(1)
    if len(found) == 0:
        return slice(0, 1)
    last = int(found[-1]) + 1
    return slice(0, last) if len(found) == last else found


def _additive(allowed: Tensor, q: Tensor) -> Tensor:
    zeros = torch.zeros((), dtype=_accurate(q), device=q.device)
    return torch.where(allowed, zeros, -torch.inf)


def _accurate(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _chunks(q: Tensor, part: Tensor) -> list[Chunk]:
    """Slices of key heads and of query heads within them that fit HEADS_AT_ONCE, at least one."""
    heads, group = q.shape[1:3]
    fit = max(1, HEADS_AT_ONCE // max(1, part.numel()))
    if fit >= group:
        step = fit // group
        return [(slice(h, h + step), slice(None)) for h in range(0, heads, step)]
    within = [slice(g, g + fit) for g in range(0, group, fit)]
    return [(slice(h, h + 1), some) for h in range(heads) for some in within]
