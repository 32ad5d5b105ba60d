"""Which entries of an attention map are stored, and as which numbers.

Stored is what a token can attend to and a loss reads [ours]: of a full map each row's columns up
to itself; of a text→vision map the rows that are text and their image columns up to themselves.
Everything else is 0 or never looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Dtype = Literal["float16", "uint8", "float32"]

KINDS: Mapping[str, torch.dtype] = {
    "float16": torch.float16,
    "uint8": torch.uint8,
    "float32": torch.float32,
}

_LEVELS = 255
"""The largest uint8, which stands for a row's maximum."""


@dataclass(frozen=True)
class Packed:
    """Stored numbers of one part of L maps.

    Attributes:
        values: the E entries kept of each map, row after row.
        scale: each row's maximum; None where values need none.
    """

    values: Shaped[Tensor, "L E"]
    scale: Float[Tensor, "L r"] | None

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def to(self, device: torch.device) -> Packed:
        scale = None if self.scale is None else self.scale.to(device)
        return Packed(self.values.to(device), scale)


def masks(
    is_image: Bool[Tensor, " n"], prefix: int, *, whole: bool
) -> tuple[Bool[Tensor, "p P"], Bool[Tensor, "o n"]]:
    """Entries kept of a sample's map: of its prefix's part, and of its own.

    Args:
        is_image: image tokens of the sample.
        prefix: its leading tokens that other samples share.
        whole: of a full map, not the text→vision block alone.
    """
    rows, columns = _sides(is_image, whole)
    place = torch.arange(len(is_image), device=is_image.device)
    kept = columns & (place <= rows[:, None])
    above = int((rows < prefix).sum())
    return kept[:above, :prefix], kept[above:]


def entries(is_image: Bool[Tensor, " n"], prefix: int, *, whole: bool) -> tuple[int, int]:
    """How many entries `masks` marks in both parts, without making them."""
    rows, columns = _sides(is_image, whole)
    reached = columns.cumsum(0)[rows]
    return int(reached[rows < prefix].sum()), int(reached[rows >= prefix].sum())


def _sides(
    is_image: Bool[Tensor, " n"], whole: bool
) -> tuple[Int[Tensor, " rows"], Bool[Tensor, " n"]]:
    """Positions of the rows of a map, and which of its columns are read."""
    if whole:
        return torch.arange(len(is_image), device=is_image.device), torch.ones_like(is_image)
    return (~is_image).nonzero().squeeze(1), is_image


def packed_bytes(
    is_image: Bool[Tensor, " n"], prefix: int, *, whole: bool, maps: int, dtype: Dtype
) -> tuple[int, int]:
    """Bytes of the stored numbers of both parts of so many maps."""
    rows, _ = _sides(is_image, whole)
    above, below = entries(is_image, prefix, whole=whole)
    size, scale = KINDS[dtype].itemsize, 4 if dtype == "uint8" else 0
    first = int((rows < prefix).sum())
    return (
        maps * (size * above + scale * first),
        maps * (size * below + scale * (len(rows) - first)),
    )


def pack(part: Float[Tensor, "L r c"], mask: Bool[Tensor, "r c"], dtype: Dtype) -> Packed:
    """The entries that a mask marks, as numbers of a type.

    float16 keeps 11 bits of a number. uint8 is round(255 a / max of the row): its error is at most
    max / 510, whatever the number. [ours]
    """
    kept = part[:, mask]
    if dtype != "uint8":
        return Packed(kept.to(KINDS[dtype]), None)
    scale = (
        torch.where(mask, part, 0.0).amax(2) if mask.shape[1] else part.new_zeros(part.shape[:2])
    )
    relative = part / torch.where(scale > 0, scale, 1.0)[:, :, None]
    return Packed((relative[:, mask] * _LEVELS).round().to(torch.uint8), scale)


def unpack(packed: Packed, mask: Bool[Tensor, "r c"]) -> Float[Tensor, "L r c"]:
    """The maps' part in float32, 0 where nothing was kept."""
    count = len(packed.values)
    part = torch.zeros(count, *mask.shape, device=mask.device)
    part.masked_scatter_(mask.expand_as(part), packed.values.float())
    return part if packed.scale is None else part.mul_(packed.scale[:, :, None] / _LEVELS)
