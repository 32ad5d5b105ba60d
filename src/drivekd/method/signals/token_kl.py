"""KL divergence of two models' next-token distributions, a piece of the vocabulary at a time.

Logits of all answer tokens over a vocabulary of 150,000 are gigabytes in float32, and softmax and
KL hold several copies of them. Here logits are made from hidden states and head weights piece by
piece, in the forward pass and again in the backward pass, and never exist as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

VOCABULARY_AT_ONCE = 4096
"""Tokens of the vocabulary whose logits exist at a time: 16 MB per 1,000 answer tokens."""


def token_kl_plain(
    student_logits: Float[Tensor, "m V"],
    teacher_logits: Float[Tensor, "m W"],
    temperature: float = 1.0,
) -> Float[Tensor, " m"]:
    """τ² KL(softmax(t/τ) ‖ softmax(s/τ)) of each token, in the plainest form; see `token_kl`."""
    shared = min(student_logits.shape[1], teacher_logits.shape[1])
    s, t = (logits[:, :shared] / temperature for logits in (student_logits, teacher_logits))
    difference = t.log_softmax(dim=1) - s.log_softmax(dim=1)
    return temperature**2 * (t.softmax(dim=1) * difference).sum(dim=1)


def token_kl(
    student: Float[Tensor, "m d"],
    student_head: Float[Tensor, "V d"],
    teacher: Float[Tensor, "m dt"],
    teacher_head: Float[Tensor, "W dt"],
    *,
    temperature: float = 1.0,
    chunk: int = VOCABULARY_AT_ONCE,
) -> Float[Tensor, " m"]:
    """KL(teacher ‖ student) of the next token at each of m positions, times τ² [ours].

    KL = Σ_v p_v (log p_v − log q_v), p = softmax(t/τ), q = softmax(s/τ), with logits t and s of the
    first min(V, W) tokens, the vocabulary that both have. τ² keeps the gradient's size when τ
    grows. [paper: the ablation; ours: all of its details]

    Products are made in float32 at least. Beyond the results, memory is a few tensors
    [m, chunk] and [chunk, d]; the gradient of the student's head is the only one as large as it.

    Args:
        student: hidden states that predict the tokens; differentiable.
        student_head: weight of its language-model head; differentiable.
        teacher: the teacher's hidden states; no gradient.
        teacher_head: weight of its head; no gradient.
        temperature: τ > 0.
        chunk: tokens of the vocabulary at a time.

    Raises:
        ValueError: the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"token_kl: expected a temperature above 0, got {temperature}")
    fixed = teacher.detach(), teacher_head.detach()
    found: Tensor = _TokenKl.apply(student, student_head, *fixed, temperature, chunk)  # type: ignore[no-untyped-call]
    return found


class _TokenKl(torch.autograd.Function):
    """One pass over the vocabulary forward, one backward, nothing as large as it kept."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        student_head: Tensor,
        teacher: Tensor,
        teacher_head: Tensor,
        temperature: float,
        chunk: int,
    ) -> Tensor:
        # With top = max t: total = Σ e^(t−top), weighted = Σ e^(t−top) (t−s); s_norm = log Σ e^s.
        weighted = student.new_zeros(len(student), dtype=_accurate(student.dtype))
        total, top = torch.zeros_like(weighted), torch.full_like(weighted, -torch.inf)
        s_norm = top
        for part in _parts(student_head, teacher_head, chunk):
            s = _logits(student, student_head[part], temperature)
            t = _logits(teacher, teacher_head[part], temperature)
            s_norm = torch.logaddexp(s_norm, s.logsumexp(dim=1))
            higher = torch.maximum(top, t.amax(dim=1))
            share, before = (t - higher[:, None]).exp_(), (top - higher).exp()
            total = total * before + share.sum(dim=1)
            weighted = weighted * before + share.mul_(t.sub_(s)).sum(dim=1)
            top = higher
        t_norm = top + total.log()
        ctx.save_for_backward(student, student_head, teacher, teacher_head, s_norm, t_norm)
        ctx.how = temperature, chunk
        return temperature**2 * (weighted / total - t_norm + s_norm)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The slope of τ² KL along a logit v of the student is τ (q_v − p_v)."""
        student, student_head, teacher, teacher_head, s_norm, t_norm = ctx.saved_tensors
        temperature, chunk = ctx.how
        for_states, for_head = ctx.needs_input_grad[:2]
        states = student.to(s_norm.dtype)
        to_states = torch.zeros_like(states) if for_states else None
        to_head = torch.zeros_like(student_head) if for_head else None
        for part in _parts(student_head, teacher_head, chunk):
            s = _logits(student, student_head[part], temperature)
            t = _logits(teacher, teacher_head[part], temperature)
            slope = s.sub_(s_norm[:, None]).exp_().sub_(t.sub_(t_norm[:, None]).exp_())
            slope.mul_(gradient[:, None] * temperature)
            with torch.autocast(states.device.type, enabled=False):
                if to_states is not None:
                    to_states.addmm_(slope, student_head[part].to(slope.dtype))
                if to_head is not None:
                    to_head[part] = (slope.T @ states).to(to_head.dtype)
        if to_states is not None:
            to_states = to_states.to(student.dtype)
        return to_states, to_head, None, None, None, None


def _parts(student_head: Tensor, teacher_head: Tensor, chunk: int) -> Iterator[slice]:
    """The shared vocabulary in pieces."""
    shared = min(len(student_head), len(teacher_head))
    for start in range(0, shared, chunk):
        yield slice(start, min(start + chunk, shared))


def _logits(states: Tensor, head: Tensor, temperature: float) -> Tensor:
    dtype = _accurate(states.dtype)
    with torch.autocast(states.device.type, enabled=False):  # it would round the products
        return (states.to(dtype) @ head.to(dtype).T).div_(temperature)


def _accurate(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32
