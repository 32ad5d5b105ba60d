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
"""Rows computed at a time on a CPU, with the columns up to the last that any of them attends to.

Half of a causal map is so never computed. A GPU does all rows at once: to ask it how far they
reach would make it wait.
"""

KEPT_ENTRIES = 2**23
"""Softmax entries of a map that are kept for its backward pass rather than computed again.

At most 32 MB a map: tiny models train a quarter faster, at full size nothing is kept.
"""


Mask = Bool[Tensor, "Bm 1 n k"] | Float[Tensor, "Bm 1 n k"]
Chunk = tuple[slice, slice]


class _Part(NamedTuple):
    """Some rows of the map.

    Attributes:
        rows: which of the rows wanted.
        columns: up to the last one that any of these rows may attend to.
        bias: their additive mask [Bm, 1, 1, r, c]; None where it changes nothing.
        dead: those that attend to nothing [Bm, r, 1]; None where it is known that there are none.
    """

    rows: slice
    columns: slice
    bias: Tensor | None
    dead: Tensor | None


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
        scaled, keys = _operands(q, k, rows, scale)
        total = keys.new_zeros(len(q), scaled.shape[3], k.shape[2])
        keeps = scaled.shape[:4].numel() * k.shape[2] <= KEPT_ENTRIES
        for part in _parts(q, k, mask, rows, causal):
            target = total[:, part.rows, part.columns]
            for heads, group in _chunks(scaled, part):
                q_, k_ = scaled[:, heads, group, part.rows], keys[:, heads, part.columns]
                p = _probabilities(q_, k_, part.bias)
                for head in p.flatten(1, 2).unbind(1):
                    target += head
                if kept is not None and keeps:
                    kept.append(p)
            if part.dead is not None:
                target.masked_fill_(part.dead, 0.0)
        return total.div_(q.shape[1])


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
        scaled, keys = _operands(q, k, rows, scale)
        grad_q, grad_k = torch.empty_like(scaled), torch.zeros_like(keys)
        again = iter(kept)
        for part in _parts(q, k, mask, rows, causal):
            dp = grad[:, part.rows, part.columns] / q.shape[1]
            dp = dp if part.dead is None else dp.masked_fill_(part.dead, 0.0)
            for heads, group in _chunks(scaled, part):
                q_, k_ = scaled[:, heads, group, part.rows], keys[:, heads, part.columns]
                p = next(again) if kept else _probabilities(q_, k_, part.bias)
                ds = p * dp[:, None, None]
                ds.addcmul_(p, ds.sum(-1, keepdim=True), value=-1.0)
                flat = ds.flatten(2, 3)
                grad_q[:, heads, group, part.rows] = (flat @ k_).view_as(q_)
                grad_k[:, heads, part.columns] += flat.transpose(-1, -2) @ q_.flatten(2, 3)
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


def _parts(
    q: Tensor, k: Tensor, mask: Tensor | None, rows: Tensor | None, causal: bool
) -> Iterator[_Part]:
    """The rows wanted, some at a time, with their mask as an additive one.

    Adding is 1.5 to 3 times as fast as filling. Rows that may attend to nothing are left open
    here and zeroed in the map: softmax over nothing is NaN.
    """
    wanted = torch.arange(q.shape[2], device=q.device) if rows is None else rows
    step = ROWS_AT_ONCE if q.is_cpu else max(1, len(wanted))
    for start in range(0, len(wanted), step):
        place = slice(start, min(start + step, len(wanted)))
        if mask is None and not causal:
            yield _Part(place, slice(0, k.shape[2]), None, None)
            continue
        at, dead = wanted[place], None
        if mask is None:
            bias = _additive(at[:, None] >= torch.arange(k.shape[2], device=q.device), q)
            bias = bias[None, None]
        else:
            bias, dead = _opened(mask[:, :, place] if rows is None else mask[:, :, at], q)
        reach = _reach(bias) if q.is_cpu else k.shape[2]
        yield _Part(place, slice(0, reach), bias[:, :, None, :, :reach], dead)


def _opened(mask: Tensor, q: Tensor) -> tuple[Tensor, Tensor | None]:
    """An additive mask in which every row attends to something, and the rows that did not."""
    if mask.dtype == torch.bool:
        mask = _additive(mask, q)
    dead = mask.amax(dim=-1, keepdim=True) == -torch.inf
    if dead.is_cpu and not bool(dead.any()):
        return mask.to(_accurate(q)), None
    return mask.to(_accurate(q)).masked_fill(dead, 0.0), dead[:, 0]


def _reach(bias: Tensor) -> int:
    """How many leading columns the rows of an additive mask attend to."""
    return int((bias.amax(dim=(0, 1, 2)) > -torch.inf).nonzero()[-1]) + 1


def _additive(allowed: Tensor, q: Tensor) -> Tensor:
    zeros = torch.zeros((), dtype=_accurate(q), device=q.device)
    return torch.where(allowed, zeros, -torch.inf)


def _accurate(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _chunks(q: Tensor, part: _Part) -> list[Chunk]:
    """Slices of key heads and of query heads within them that fit HEADS_AT_ONCE, at least one."""
    batch, heads, group = q.shape[:3]
    entries = batch * (part.rows.stop - part.rows.start) * part.columns.stop
    fit = max(1, HEADS_AT_ONCE // max(1, entries))
    if fit >= group:
        step = fit // group
        return [(slice(h, h + step), slice(None)) for h in range(0, heads, step)]
    within = [slice(g, g + fit) for g in range(0, group, fit)]
    return [(slice(h, h + 1), some) for h in range(heads) for some in within]
