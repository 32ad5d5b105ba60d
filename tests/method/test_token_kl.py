"""Token-wise KL in pieces of the vocabulary: its twin, its gradients, its memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from drivekd.method.signals.token_kl import token_kl, token_kl_plain

Four = tuple[Tensor, Tensor, Tensor, Tensor]


def drawn(dtype: torch.dtype = torch.float64, student: int = 23, teacher: int = 29) -> Four:
    """7 tokens, widths 5 and 11, vocabularies of 23 and 29."""
    sizes = ((7, 5), (student, 5), (7, 11), (teacher, 11))
    hidden, head, theirs, their_head = (torch.randn(size, dtype=dtype) for size in sizes)
    return hidden.requires_grad_(), head.requires_grad_(), theirs, their_head


def plain(four: Four, temperature: float = 1.0) -> Tensor:
    return token_kl_plain(four[0] @ four[1].T, four[2] @ four[3].T, temperature)


def test_by_hand() -> None:
    student = torch.tensor([[0.25, 0.75]]).log()
    teacher = torch.tensor([[0.5, 0.5]]).log()
    expected = 0.5 * torch.tensor([2.0, 2 / 3]).log().sum()
    torch.testing.assert_close(token_kl_plain(student, teacher)[0], expected)
    unit = torch.eye(2)
    torch.testing.assert_close(token_kl(student, unit, teacher, unit)[0], expected)


def test_the_twin_is_torchs_divergence_times_the_square_of_the_temperature() -> None:
    s, t = torch.randn(2, 7, 23, dtype=torch.float64)
    expected = torch.nn.functional.kl_div(
        (s / 3).log_softmax(1), (t / 3).log_softmax(1), reduction="none", log_target=True
    ).sum(1)
    torch.testing.assert_close(token_kl_plain(s, t, 3.0), 9 * expected)


@pytest.mark.parametrize("chunk", [1, 6, 23, 100])
@pytest.mark.parametrize("sizes", [(23, 29), (29, 23), (23, 23)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_pieces_equal_the_plain_twin(
    chunk: int, sizes: tuple[int, int], temperature: float
) -> None:
    """Value and both gradients to 1e-12, over the vocabulary that both models have."""
    four = drawn(student=sizes[0], teacher=sizes[1])
    expected = plain(four, temperature)
    found = token_kl(*four, temperature=temperature, chunk=chunk)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weight = torch.randn(7, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad((found * weight).sum(), four[:2]),
        torch.autograd.grad((expected * weight).sum(), four[:2]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_gradcheck(temperature: float) -> None:
    student, head, theirs, their_head = drawn()

    def value(student: Tensor, head: Tensor) -> Tensor:
        return token_kl(student, head, theirs, their_head, temperature=temperature, chunk=6)

    assert gradcheck(value, (student, head))


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    student, head, theirs, their_head = drawn()
    theirs.requires_grad_(), their_head.requires_grad_()
    token_kl(student, head.detach(), theirs, their_head, chunk=6).sum().backward()
    assert student.grad is not None
    assert theirs.grad is their_head.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_stays_within_twice_the_plain_error(dtype: torch.dtype) -> None:
    """Of a plain float32 computation on the same inputs, even under autocast."""
    four = drawn(torch.float32, student=997, teacher=997)
    low = tuple((8 * x.detach()).to(dtype) for x in four)
    exact = plain(tuple(x.double() for x in low))  # type: ignore[arg-type]
    usual = plain(tuple(x.float() for x in low))  # type: ignore[arg-type]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = low[0].requires_grad_()
        found = token_kl(states, *low[1:], chunk=100)
    assert found.dtype == torch.float32
    error, budget = (float((x.detach() - exact).abs().max()) for x in (found, usual))
    assert error <= 2 * budget + 1e-6 * float(exact.abs().max())
    (gradient,) = torch.autograd.grad(found.sum(), states)
    assert gradient.dtype == dtype
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_equal_distributions_have_no_divergence_at_any_size_of_logits(size: float) -> None:
    hidden, head, *_ = drawn(torch.float32)
    states = (size * hidden.detach()).requires_grad_()
    found = token_kl(states, head, size * hidden, head, chunk=6)
    # The rounding of a float32 logit.
    logits = (states @ head.T).detach()
    assert float(found.detach().abs().max()) < 1e-6 * max(1.0, float(logits.abs().max()))
    (gradient,) = torch.autograd.grad(found.sum(), states)
    assert float(gradient.abs().max()) < 1e-4 * max(1.0, size)


class Largest(TorchDispatchMode):
    """Entries of every tensor that operations make, and how many sizes of the vocabulary's."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            # A view (a transposed head, a slice) is no memory of its own.
            if isinstance(tensor, Tensor) and tensor._base is None and not func.is_view:
                self.sizes.append(tensor.numel())
        return made


def largest(vocabulary: int, *, head: bool) -> list[int]:
    """Sizes of what is made by one forward and backward pass, largest first."""
    student, weight, theirs, their_weight = drawn(student=vocabulary, teacher=vocabulary)
    wanted = (student, weight) if head else (student,)
    weight.requires_grad_(head)
    with Largest() as seen:
        value = token_kl(student, weight, theirs, their_weight, chunk=50).sum()
        torch.autograd.grad(value, wanted)
    return sorted(seen.sizes, reverse=True)


def test_memory_does_not_grow_with_the_vocabulary() -> None:
    """7 × 50 logits or 50 × 11 entries of a head at a time, however many tokens there are."""
    for vocabulary in (200, 2000):
        assert largest(vocabulary, head=False)[0] <= 50 * 11
        sizes = largest(vocabulary, head=True)
        # The gradient of the student's head is a result; nothing else is as large.
        assert sizes[0] == vocabulary * 5
        assert [size for size in sizes if size > 50 * 11] == [sizes[0]]


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"temperature.* 0"):
        token_kl(*drawn(), temperature=0.0)
