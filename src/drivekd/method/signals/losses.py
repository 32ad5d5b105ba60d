"""Losses between a student's and a teacher's head-averaged attention maps, or hidden states.

The plain forms say what is meant, one mask and one mean; the packed ones compute the same for many
samples that share rows of a batch, which is what training uses. Maps are head-averaged softmax
attention, at least float32: raw map differences are 1e-7 … 1e-3, and counts of map entries
overflow half precision.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

Signal = Literal["text_to_vision", "full"]
Distance = Literal["mse", "cosine"]
Reachable = Bool[Tensor, "n n"] | Bool[Tensor, "B n n"] | bool | None


def text_to_vision_mask(
    is_image: Bool[Tensor, "B n"],
    valid: Bool[Tensor, "B n"] | None = None,
    reachable: Reachable = None,
) -> Bool[Tensor, "B n n"]:
    """Mark the pairs text row × image column.

    M[r, c] = valid_r · ¬image_r · image_c · valid_c. By default pairs count that causality forbids
    (a text row before an image), where both maps are 0. [release; figure agrees]

    Args:
        is_image: image tokens; everything else is text.
        valid: everything but padding; all by default.
        reachable: True, or a mask of the pairs that attention can reach, counts only those; True
            means column ≤ row. [ours]
    """
    valid = torch.ones_like(is_image) if valid is None else valid
    mask = (valid & ~is_image)[:, :, None] & (valid & is_image)[:, None, :]
    return _restrict(mask, reachable)


def full_mask(valid: Bool[Tensor, "B n"], reachable: Reachable = None) -> Bool[Tensor, "B n n"]:
    """Mark all pairs without padding: upper triangle too [release], not if `reachable` [ours]."""
    return _restrict(valid[:, :, None] & valid[:, None, :], reachable)


def _restrict(mask: Bool[Tensor, "B n n"], reachable: Reachable) -> Bool[Tensor, "B n n"]:
    if reachable is None or reachable is False:
        return mask
    if reachable is True:
        return mask.tril()
    return mask & reachable


def attention_mse(
    student_map: Float[Tensor, "B n n"],
    teacher_map: Float[Tensor, "B n n"],
    mask: Bool[Tensor, "B n n"],
) -> Float[Tensor, " B"]:
    """Mean squared difference over the masked pairs of each sample, Σ M (S−T)² / Σ M [release].

    Raises:
        ValueError: a sample's mask is empty: such a term is absent and not zero.
    """
    count = _count(mask)
    squares = (_accurate(student_map) - _accurate(teacher_map)).square()
    return torch.where(mask, squares, 0.0).sum(dim=(1, 2)) / count


def attention_cosine(
    student_map: Float[Tensor, "B n n"],
    teacher_map: Float[Tensor, "B n n"],
    mask: Bool[Tensor, "B n n"],
) -> Float[Tensor, " B"]:
    """1 − cos between the masked maps of each sample, flattened [ours].

    Raises:
        ValueError: a sample's mask is empty, or a map vanishes on it and has no direction.
    """
    _count(mask)
    student = torch.where(mask, _accurate(student_map), 0.0).flatten(1)
    teacher = torch.where(mask, _accurate(teacher_map), 0.0).flatten(1)
    length = torch.linalg.vector_norm
    norms: Tensor = length(student, dim=1) * length(teacher, dim=1)
    if (norms == 0).any():
        raise ValueError(
            "attention_cosine: a map is zero on its whole mask (text before the image?) and has no "
            "direction; leave such terms out or use loss 'mse'"
        )
    cos = (student * teacher).sum(dim=1) / norms
    return torch.ones_like(cos) - cos


def hidden_mse(
    student: Float[Tensor, "B n d"], teacher: Float[Tensor, "B n d"], text: Bool[Tensor, "B n"]
) -> Float[Tensor, " B"]:
    """Mean squared difference of states over each sample's text positions and width [ours]."""
    squares = (_accurate(student) - _accurate(teacher)).square().mean(dim=2)
    return torch.where(text, squares, 0.0).sum(dim=1) / text.sum(dim=1)


def hidden_cosine(
    student: Float[Tensor, "B n d"], teacher: Float[Tensor, "B n d"], text: Bool[Tensor, "B n"]
) -> Float[Tensor, " B"]:
    """1 − cos between each sample's states at text positions, flattened [ours]."""
    one, other = ((_accurate(x) * text[:, :, None]).flatten(1) for x in (student, teacher))
    return 1.0 - torch.cosine_similarity(one, other, dim=1)


def _count(mask: Bool[Tensor, "B n n"]) -> Float[Tensor, " B"]:
    count = mask.sum(dim=(1, 2))
    empty = (count == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"attention loss: the mask of samples {empty} of {len(count)} is empty, expected at "
            "least one pair; leave terms without image tokens out beforehand (they are absent, "
            "not zero)"
        )
    return count.to(torch.float64 if mask.shape[-1] > 4096 else torch.float32)


def packed_loss(
    student: Float[Tensor, "B R n"],
    teacher: Float[Tensor, "B R n"],
    *,
    rows: Int[Tensor, " R"] | None,
    row: Int[Tensor, " S"],
    members: Bool[Tensor, "S n"],
    is_image: Bool[Tensor, "B n"],
    signal: Signal,
    loss: Distance = "mse",
    reachable: bool = False,
) -> tuple[Float[Tensor, " S"], Bool[Tensor, " S"]]:
    """One attention loss per sample, where samples may share a row of the batch.

    Sample s is what `members[s]` marks of batch row `row[s]`: a prefix that the samples of a row
    share, and its own tokens. Its loss is that of `attention_mse` or `attention_cosine` on the
    sample alone, the prefix included, over its own pairs only [release: losses; ours: packed].

    Exact because a token attends to its own sample only: both maps must be 0 where a column is no
    member of the row's sample or lies after it. So `reachable` changes denominators only.

    Args:
        student: head-averaged maps of the rows given by `rows`.
        teacher: the target, same rows and columns; receives no gradient.
        rows: positions of the map's rows, all that the signal needs; None: all n.
        row: batch row of each sample.
        members: positions that make up each sample, without padding.
        is_image: image tokens of the batch rows.
        signal: `text_to_vision`: rows are the members that are text; `full`: all members.
        loss: `mse` or `cosine`.
        reachable: count only column ≤ row.

    Returns:
        The loss of each sample (at least float32; exactly 0 and without gradient where absent),
        and whether it is present: it has pairs, and for `cosine` both maps have a direction.

    Raises:
        ValueError: `rows` lacks one that a sample needs.
    """
    own_rows, columns = members, None  # columns that count; None: all
    if signal == "text_to_vision":
        own_rows, columns = members & ~is_image[row], is_image
    own_columns = members if columns is None else members & columns[row]
    pairs = _pairs(own_rows, own_columns, reachable)
    own_rows = own_rows if rows is None else _picked(own_rows, rows)
    student, teacher = _accurate(student), _accurate(teacher).detach()

    def total(product: Tensor) -> Tensor:
        """Σ over each sample's own pairs; elementwise, because autocast would round a matmul."""
        inside = product if columns is None else product * columns[:, None, :]
        return (inside.sum(dim=-1)[row] * own_rows).sum(dim=-1)

    if loss == "mse":
        squares = _SquaredDistance.apply(student, teacher, columns)  # type: ignore[no-untyped-call]
        return (squares[row] * own_rows).sum(-1) / pairs.clamp(min=1).to(student.dtype), pairs > 0
    ss, tt, st = total(student.square()), total(teacher.square()), total(student * teacher)
    present = (pairs > 0) & (ss > 0) & (tt > 0)
    return _one_minus_cosine(ss, tt, st, present), present


class _SquaredDistance(torch.autograd.Function):
    """Σ_columns (S − T)² of every row [B, R]; reads a map once forward and once backward.

    Its plain twin is `attention_mse`; written with autograd's own operations, a full map would be
    read and written nine times.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, columns: Tensor | None) -> Tensor:
        difference = student - teacher
        if columns is not None:
            difference.mul_(columns[:, None, :])
        ctx.save_for_backward(difference)
        norm: Tensor = torch.linalg.vector_norm(difference, dim=-1)
        return norm.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (difference,) = ctx.saved_tensors
        return difference * (2.0 * grad)[:, :, None], None, None


def packed_hidden_loss(
    student: Float[Tensor, "B R d"],
    teacher: Float[Tensor, "B R d"],
    *,
    rows: Int[Tensor, " R"] | None,
    row: Int[Tensor, " S"],
    members: Bool[Tensor, "S n"],
    is_image: Bool[Tensor, "B n"],
    loss: Distance = "mse",
) -> tuple[Float[Tensor, " S"], Bool[Tensor, " S"]]:
    """One loss between hidden states per sample, where samples may share a row of the batch.

    Over the text positions T_s of the sample, shared prefix included [ours]: `mse` is
    Σ_{i ∈ T_s} ‖s_i − t_i‖² / (|T_s| d), `cosine` is 1 − cos of the states of T_s flattened. Image
    tokens and padding never count.

    Args:
        student: states, projected to the teacher's width, at the positions given by `rows`.
        teacher: the target; receives no gradient.
        rows: the positions, at least all that are text in any sample; None: all n.
        row: batch row of each sample.
        members: positions that make up each sample, without padding.
        is_image: image tokens of the batch rows.
        loss: `mse` or `cosine`.

    Returns:
        The loss of each sample (at least float32; exactly 0 and without gradient where absent),
        and whether it is present: it has text, and for `cosine` both sides have a direction.

    Raises:
        ValueError: `rows` lacks one that a sample needs.
    """
    own = members & ~is_image[row]
    own = own if rows is None else _picked(own, rows)
    count = own.sum(dim=1)
    student, teacher = _accurate(student), _accurate(teacher).detach()

    def total(product: Tensor) -> Tensor:
        """Σ over each sample's own positions and the width."""
        return torch.where(own, product.sum(dim=-1)[row], 0.0).sum(dim=-1)

    if loss == "mse":
        entries = (count.clamp(min=1) * student.shape[2]).to(student.dtype)
        return total((student - teacher).square()) / entries, count > 0
    ss, tt, st = total(student.square()), total(teacher.square()), total(student * teacher)
    present = (count > 0) & (ss > 0) & (tt > 0)
    return _one_minus_cosine(ss, tt, st, present), present


def _one_minus_cosine(
    ss: Float[Tensor, " S"],
    tt: Float[Tensor, " S"],
    st: Float[Tensor, " S"],
    present: Bool[Tensor, " S"],
) -> Float[Tensor, " S"]:
    # Both branches of `where` are differentiated: the absent ones must not divide by zero.
    cos = st / torch.where(present, ss, 1.0).sqrt() / torch.where(present, tt, 1.0).sqrt()
    return torch.where(present, 1.0 - cos, 0.0)


def _pairs(
    own_rows: Bool[Tensor, "S n"], own_columns: Bool[Tensor, "S n"], reachable: bool
) -> Int[Tensor, " S"]:
    """Number of pairs of each sample: its rows times its columns, or only columns ≤ row."""
    if reachable:
        return (own_columns.cumsum(dim=1) * own_rows).sum(dim=1)
    return own_rows.sum(dim=1) * own_columns.sum(dim=1)


def _picked(own_rows: Bool[Tensor, "S n"], rows: Int[Tensor, " R"]) -> Bool[Tensor, "S R"]:
    """Membership at the rows that the map has, none of the sample's being left out."""
    covered = torch.zeros(own_rows.shape[1], dtype=torch.bool, device=own_rows.device)
    covered[rows] = True
    lacking = (own_rows & ~covered).any(dim=1)
    if bool(lacking.any()):
        raise ValueError(
            f"attention or hidden loss: it was given {len(rows)} rows and lacks some that samples "
            f"{lacking.nonzero().flatten().tolist()} need; capture every row that is text in any "
            "sample, or all rows for the full map"
        )
    return own_rows[:, rows]


def _accurate(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
