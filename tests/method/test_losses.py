"""Attention losses: the masks, the means, and packed = unpacked."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from drivekd.method.signals.losses import (
    attention_cosine,
    attention_mse,
    full_mask,
    packed_loss,
    text_to_vision_mask,
)

PLAIN = {"mse": attention_mse, "cosine": attention_cosine}
VARIANTS = list(itertools.product(["text_to_vision", "full"], ["mse", "cosine"], [False, True]))


def softmax_map(mask: Tensor) -> Tensor:
    """Random attention under a boolean mask."""
    scores = torch.randn(mask.shape, dtype=torch.float64) * 2
    return scores.masked_fill(~mask, -torch.inf).softmax(-1)


@dataclass(frozen=True)
class Packed:
    """Rows of a batch, what the samples in them are, and maps under the mask they imply."""

    row: Tensor
    members: Tensor
    is_image: Tensor
    student: Tensor
    teacher: Tensor


def packed(n: int = 19) -> Packed:
    """Row 0: prefix 0-6 with images 2-4, segments 7-10, 11-12, 13-16; row 1: one sample, 0-10.

    Row 2: one sample without image tokens, 0-4. What is left of every row is padding, which
    attends itself only.
    """
    spans = [(0, 7, 7, 11), (0, 7, 11, 13), (0, 7, 13, 17), (1, 0, 0, 11), (2, 0, 0, 5)]
    row = torch.tensor([span[0] for span in spans])
    members = torch.zeros(len(spans), n, dtype=torch.bool)
    for s, (_, prefix, start, stop) in enumerate(spans):
        members[s, :prefix] = members[s, start:stop] = True
    is_image = torch.zeros(3, n, dtype=torch.bool)
    is_image[0, 2:5] = True
    is_image[1, 1:3] = is_image[1, 5:7] = True
    # A pair is visible if causal and in a sample together; the sample's members may be the prefix.
    together = torch.zeros(3, n, n, dtype=torch.bool)
    for s in range(len(spans)):
        together[row[s]] |= members[s][:, None] & members[s][None, :]
    visible = together.tril() | torch.eye(n, dtype=torch.bool)
    return Packed(row, members, is_image, softmax_map(visible), softmax_map(visible))


def alone(case: Packed, s: int, x: Tensor) -> Tensor:
    """Sample s cut out of its row: [1, len, len] of a map or [1, len] of a mask."""
    own, line = case.members[s], case.row[s]
    return x[line][own][:, own][None] if x.dim() == 3 else x[line][own][None]


def plain_mask(case: Packed, s: int, signal: str, reachable: bool) -> Tensor:
    is_image = alone(case, s, case.is_image)
    limit = reachable or None
    if signal == "text_to_vision":
        return text_to_vision_mask(is_image, reachable=limit)
    return full_mask(torch.ones_like(is_image), limit)


def run(case: Packed, **how: Any) -> tuple[Tensor, Tensor]:
    settings = {"rows": None, **how}
    student, teacher = case.student, case.teacher
    if settings["rows"] is not None:
        student, teacher = student[:, settings["rows"]], teacher[:, settings["rows"]]
    return packed_loss(
        student,
        teacher,
        row=case.row,
        members=case.members,
        is_image=case.is_image,
        **settings,
    )


def test_text_to_vision_mask_by_hand() -> None:
    is_image = torch.tensor([[False, True, False, False]])
    valid = torch.tensor([[True, True, True, False]])
    mask = text_to_vision_mask(is_image)
    assert mask[0].nonzero().tolist() == [[0, 1], [2, 1], [3, 1]]
    assert text_to_vision_mask(is_image, valid)[0].nonzero().tolist() == [[0, 1], [2, 1]]
    for reachable in (True, torch.ones(4, 4).tril().bool(), torch.ones(1, 4, 4).tril().bool()):
        assert text_to_vision_mask(is_image, valid, reachable)[0].nonzero().tolist() == [[2, 1]]
    assert torch.equal(text_to_vision_mask(is_image, reachable=False), mask)


def test_padded_image_tokens_do_not_count() -> None:
    is_image = torch.tensor([[True, False, True]])
    valid = torch.tensor([[True, True, False]])
    assert text_to_vision_mask(is_image, valid)[0].nonzero().tolist() == [[1, 0]]


def test_full_mask_by_hand() -> None:
    valid = torch.tensor([[True, True, False]])
    assert full_mask(valid)[0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert full_mask(valid, reachable=True)[0].nonzero().tolist() == [[0, 0], [1, 0], [1, 1]]


def test_mse_by_hand() -> None:
    student = torch.tensor([[[0.5, 0.0], [0.25, 0.75]]])
    teacher = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
    both = torch.ones(1, 2, 2, dtype=torch.bool)
    lower = both.tril()
    assert attention_mse(student, teacher, both).item() == pytest.approx(0.375 / 4)
    assert attention_mse(student, teacher, lower).item() == pytest.approx(0.375 / 3)


def test_cosine_by_hand() -> None:
    student = torch.tensor([[[1.0, 9.0], [1.0, 0.0]]])
    teacher = torch.tensor([[[1.0, 0.0], [0.0, 5.0]]])
    mask = torch.tensor([[[True, False], [True, False]]])
    assert attention_cosine(student, teacher, mask).item() == pytest.approx(1 - 0.5**0.5)


def test_an_empty_mask_is_an_error() -> None:
    maps = torch.rand(2, 3, 3)
    mask = torch.ones(2, 3, 3, dtype=torch.bool)
    mask[1] = False
    for loss in PLAIN.values():
        with pytest.raises(ValueError, match=r"samples \[1\] of 2"):
            loss(maps, maps, mask)


def test_a_map_without_direction_is_an_error() -> None:
    mask = torch.ones(1, 3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="direction"):
        attention_cosine(torch.zeros(1, 3, 3), torch.rand(1, 3, 3), mask)


def test_half_precision_neither_overflows_nor_vanishes() -> None:
    """In fp16 the count of 300² pairs is infinite and a squared difference of 1e-4 is zero."""
    student = torch.full((1, 300, 300), 1e-2, dtype=torch.float16)
    teacher = torch.full((1, 300, 300), 1.01e-2, dtype=torch.float16)
    mask = torch.ones(1, 300, 300, dtype=torch.bool)
    expected = (student.double() - teacher.double())[0, 0, 0].item() ** 2
    assert attention_mse(student, teacher, mask).item() == pytest.approx(expected, rel=1e-4)
    assert attention_mse(student, teacher, mask).dtype == torch.float32


@pytest.mark.parametrize(("signal", "loss", "reachable"), VARIANTS)
def test_packed_equals_unpacked(signal: str, loss: str, reachable: bool) -> None:
    case = packed()
    values, present = run(case, signal=signal, loss=loss, reachable=reachable)
    assert values.dtype == torch.float64
    for s in range(5):
        mask = plain_mask(case, s, signal, reachable)
        if not mask.any():
            assert s == 4
            assert not present[s]
            assert values[s] == 0
            continue
        assert present[s]
        maps = alone(case, s, case.student), alone(case, s, case.teacher)
        torch.testing.assert_close(values[s], PLAIN[loss](*maps, mask)[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("signal", "loss", "reachable"), VARIANTS)
def test_packed_in_float32_is_within_the_budget(signal: str, loss: str, reachable: bool) -> None:
    case = packed()
    low = Packed(case.row, case.members, case.is_image, case.student.float(), case.teacher.float())
    how = {"signal": signal, "loss": loss, "reachable": reachable}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values, present = run(low, **how)
    exact, exactly_present = run(case, **how)
    assert torch.equal(present, exactly_present)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), exact, rtol=2e-6, atol=1e-9)


def test_denominator_of_a_packed_sample_is_its_own() -> None:
    """Of the full map len², len(len+1)/2 if only reachable pairs count; text × images otherwise."""
    case = packed()
    length = case.members.sum(1).double()
    full, _ = run(case, signal="full")
    reachable, _ = run(case, signal="full", reachable=True)
    torch.testing.assert_close(full * length**2, reachable * length * (length + 1) / 2)
    text, _ = run(case, signal="text_to_vision")
    below, _ = run(case, signal="text_to_vision", reachable=True)
    # Sample 3: 7 text rows, 4 image columns; image tokens 1, 2 precede 6 text rows, 5 and 6 four.
    torch.testing.assert_close(text[3] * 28, below[3] * (2 * 6 + 2 * 4))


@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_rows_that_the_loss_needs_are_enough(loss: str) -> None:
    """The text rows of all samples in any order, image rows left out."""
    case = packed()
    text = (~case.is_image).any(0).nonzero().flatten().flip(0)
    expected = run(case, signal="text_to_vision", loss=loss)
    for a, b in zip(
        run(case, rows=text, signal="text_to_vision", loss=loss), expected, strict=True
    ):
        torch.testing.assert_close(a, b)


def test_lacking_rows_are_an_error() -> None:
    case = packed()
    text = torch.tensor([0, 1, 5, 6, 7, 8, 9, 10])
    with pytest.raises(ValueError, match=r"samples \[1, 2, 3, 4\]"):
        run(case, rows=text, signal="text_to_vision")


@pytest.mark.parametrize(("signal", "loss", "reachable"), VARIANTS)
def test_padding_changes_nothing(signal: str, loss: str, reachable: bool) -> None:
    case = packed()
    n, more = case.student.shape[-1], 5

    def pad(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, more))

    def pad_map(x: Tensor) -> Tensor:
        out = torch.nn.functional.pad(x, (0, more, 0, more))
        out[:, range(n, n + more), range(n, n + more)] = torch.rand(3, more, dtype=x.dtype)
        return out

    padded = Packed(
        case.row,
        pad(case.members),
        pad(case.is_image),
        pad_map(case.student),
        pad_map(case.teacher),
    )
    how = {"signal": signal, "loss": loss, "reachable": reachable}
    for a, b in zip(run(padded, **how), run(case, **how), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("signal", "loss", "reachable"), VARIANTS)
def test_a_loss_does_not_depend_on_its_neighbours(signal: str, loss: str, reachable: bool) -> None:
    case = packed()
    how = {"signal": signal, "loss": loss, "reachable": reachable}
    values, _ = run(case, **how)
    fewer = Packed(case.row[1:2], case.members[1:2], case.is_image, case.student, case.teacher)
    torch.testing.assert_close(run(fewer, **how)[0], values[1:2])


@pytest.mark.parametrize(("signal", "loss", "reachable"), VARIANTS)
def test_gradcheck_with_an_absent_sample(signal: str, loss: str, reachable: bool) -> None:
    case = packed(n=17)
    student = case.student.clone().requires_grad_()

    def value(maps: Tensor) -> Tensor:
        moved = Packed(case.row, case.members, case.is_image, maps, case.teacher)
        return run(moved, signal=signal, loss=loss, reachable=reachable)[0]

    assert gradcheck(value, (student,), fast_mode=True)


@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_gradcheck_of_the_plain_forms(loss: str) -> None:
    student, teacher = (torch.rand(2, 5, 5, dtype=torch.float64) for _ in range(2))
    mask = text_to_vision_mask(torch.tensor([[True, False] * 2 + [False]] * 2))
    assert gradcheck(lambda x: PLAIN[loss](x, teacher, mask), (student.requires_grad_(),))


@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_absent_is_exactly_zero_and_without_gradient(loss: str) -> None:
    case = packed()
    student = case.student.clone().requires_grad_()
    moved = Packed(case.row, case.members, case.is_image, student, case.teacher)
    values, present = run(moved, signal="text_to_vision", loss=loss)
    assert present.tolist() == [True] * 4 + [False]
    assert values[4].item() == 0.0
    (grad,) = torch.autograd.grad(values.sum(), student)
    assert torch.isfinite(grad).all()
    assert (grad[2] == 0).all()
    (none,) = torch.autograd.grad(run(moved, signal="text_to_vision", loss=loss)[0][4], student)
    assert (none == 0).all()


def test_text_before_every_image_has_no_direction() -> None:
    """Its block is there and zero: present for `mse`, absent for `cosine` and if unreachable."""
    maps = softmax_map(torch.ones(1, 3, 3, dtype=torch.bool).tril()).requires_grad_()
    how: dict[str, Any] = {
        "rows": None,
        "row": torch.tensor([0]),
        "members": torch.ones(1, 3, dtype=torch.bool),
        "is_image": torch.tensor([[False, False, True]]),
        "signal": "text_to_vision",
    }
    teacher = maps.detach()
    assert packed_loss(maps, teacher, **how)[1].tolist() == [True]
    assert packed_loss(maps, teacher, **how, reachable=True)[1].tolist() == [False]
    value, present = packed_loss(maps, teacher, **how, loss="cosine")
    assert present.tolist() == [False]
    (grad,) = torch.autograd.grad(value.sum(), maps)
    assert (grad == 0).all()


def test_the_teacher_gets_no_gradient() -> None:
    case = packed()
    student, teacher = (x.clone().requires_grad_() for x in (case.student, case.teacher))
    moved = Packed(case.row, case.members, case.is_image, student, teacher)
    run(moved, signal="full")[0].sum().backward()
    assert student.grad is not None
    assert teacher.grad is None
