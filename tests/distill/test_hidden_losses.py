"""Losses between hidden states: the means, and packed = unpacked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from drivekd.method.signals.losses import hidden_cosine, hidden_mse, packed_hidden_loss

PLAIN = {"mse": hidden_mse, "cosine": hidden_cosine}
#: batch row, end of the shared prefix, and own segment of each sample; the last has no text
SPANS = [(0, 7, 7, 11), (0, 7, 11, 13), (0, 7, 13, 17), (1, 0, 0, 11), (2, 0, 2, 5)]
WIDTH = 3


def batch(n: int = 19) -> dict[str, Tensor]:
    row = torch.tensor([span[0] for span in SPANS])
    members = torch.zeros(len(SPANS), n, dtype=torch.bool)
    for s, (_, prefix, start, stop) in enumerate(SPANS):
        members[s, :prefix] = members[s, start:stop] = True
    is_image = torch.zeros(3, n, dtype=torch.bool)
    is_image[0, 2:5] = is_image[1, 1:3] = is_image[2, 2:5] = True
    return {"row": row, "members": members, "is_image": is_image}


def states(n: int = 19, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(3, n, WIDTH, dtype=dtype), torch.randn(3, n, WIDTH, dtype=dtype)


def run(pair: tuple[Tensor, Tensor], case: dict[str, Tensor], **how: Any) -> tuple[Tensor, Tensor]:
    return packed_hidden_loss(*pair, **{"rows": None, **case, **how})


def test_by_hand() -> None:
    student = torch.tensor([[[1.0, 2.0], [9.0, 9.0], [0.0, 1.0]]])
    teacher = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [3.0, 1.0]]])
    text = torch.tensor([[True, False, True]])
    assert hidden_mse(student, teacher, text).item() == pytest.approx((4 + 9) / 4)
    expected = 1 - (1 + 1) / (6**0.5 * 11**0.5)
    assert hidden_cosine(student, teacher, text).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", PLAIN)
def test_packed_equals_unpacked(loss: str) -> None:
    pair, case = states(), batch()
    values, present = run(pair, case, loss=loss)
    assert present.tolist() == [True, True, True, True, False]
    assert values[4] == 0
    for s in range(4):
        line, own = case["row"][s], case["members"][s]
        alone = [x[line][own][None] for x in (*pair, ~case["is_image"])]
        torch.testing.assert_close(values[s], PLAIN[loss](*alone)[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", PLAIN)
def test_float32_is_within_the_budget(loss: str) -> None:
    pair, case = states(), batch()
    low = tuple(x.float() for x in pair)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values, _ = run(low, case, loss=loss)  # type: ignore[arg-type]
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), run(pair, case, loss=loss)[0], rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("loss", PLAIN)
def test_image_positions_and_padding_never_count(loss: str) -> None:
    pair, case = states(), batch()
    expected = run(pair, case, loss=loss)[0]
    for other in (torch.nan, 1e30):
        for x in pair:
            x[case["is_image"]] = other
            x[0, 17:] = x[1, 11:] = other
        torch.testing.assert_close(run(pair, case, loss=loss)[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("loss", PLAIN)
def test_padding_changes_nothing(loss: str) -> None:
    pair, case = states(), batch()
    wider = {name: torch.nn.functional.pad(x, (0, 5)) for name, x in case.items() if name != "row"}
    longer = tuple(torch.cat([x, torch.randn(3, 5, WIDTH, dtype=x.dtype)], dim=1) for x in pair)
    found = run(longer, {**wider, "row": case["row"]}, loss=loss)  # type: ignore[arg-type]
    torch.testing.assert_close(found[0], run(pair, case, loss=loss)[0], rtol=1e-14, atol=0)


@pytest.mark.parametrize("loss", PLAIN)
def test_a_loss_does_not_depend_on_its_neighbours(loss: str) -> None:
    pair, case = states(), batch()
    values, _ = run(pair, case, loss=loss)
    fewer = {**case, "row": case["row"][1:2], "members": case["members"][1:2]}
    torch.testing.assert_close(run(pair, fewer, loss=loss)[0], values[1:2], rtol=0, atol=0)


@pytest.mark.parametrize("loss", PLAIN)
def test_text_rows_in_any_order_are_enough(loss: str) -> None:
    pair, case = states(), batch()
    text = (~case["is_image"]).any(0).nonzero().flatten().flip(0)
    few = tuple(x[:, text] for x in pair)
    found = run(few, case, rows=text, loss=loss)  # type: ignore[arg-type]
    torch.testing.assert_close(found[0], run(pair, case, loss=loss)[0])
    with pytest.raises(ValueError, match=r"samples \[0, 1, 2, 3\]"):
        run(tuple(x[:, :5] for x in pair), case, rows=torch.arange(5))  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", PLAIN)
def test_gradcheck_with_an_absent_sample(loss: str) -> None:
    student, teacher = states()
    student.requires_grad_(), teacher.requires_grad_()
    case = batch()
    assert gradcheck(lambda x: run((x, teacher), case, loss=loss)[0], (student,), fast_mode=True)
    text = ~case["is_image"]
    assert gradcheck(lambda x: PLAIN[loss](x, teacher.detach(), text), (student,), fast_mode=True)
    values, _ = run((student, teacher), case, loss=loss)
    gradient, none = torch.autograd.grad(values.sum(), (student, teacher), allow_unused=True)
    assert none is None
    assert (gradient[2] == 0).all()


def test_states_without_a_direction_are_absent_for_cosine() -> None:
    (student, teacher), case = states(), batch()
    student[1] = 0.0
    student.requires_grad_()
    values, present = run((student, teacher), case, loss="cosine")
    assert present.tolist() == [True, True, True, False, False]
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert bool(gradient.isfinite().all())
    assert run((student, teacher), case)[1].tolist() == [True] * 4 + [False]
