"""What is stored of a map is what attention reaches and a loss reads, within the stated error."""

from __future__ import annotations

import pytest
import torch

from drivekd.distill.targets.store_format import entries, masks, pack, packed_bytes, unpack

#: Two images of 2 and 3 tokens, text before, between and behind; the prefix ends with the last.
IS_IMAGE = torch.tensor([0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0], dtype=torch.bool)
PREFIX = 9


def part(rows: int, columns: int, maps: int = 2) -> torch.Tensor:
    """Rows like attention: they sum to 1 and span several orders of magnitude."""
    return (4 * torch.randn(maps, rows, columns)).softmax(2)


def test_a_full_map_keeps_its_lower_triangle() -> None:
    above, below = masks(IS_IMAGE, PREFIX, whole=True)
    n = len(IS_IMAGE)
    assert torch.equal(
        torch.cat([torch.nn.functional.pad(above, (0, 2)), below]),
        torch.ones(n, n, dtype=torch.bool).tril(),
    )


def test_text_to_vision_keeps_image_columns_of_text_rows() -> None:
    above, below = masks(IS_IMAGE, PREFIX, whole=False)
    assert above.int().tolist() == [
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 1, 1, 1, 0],
    ]
    assert below.int().tolist() == [IS_IMAGE.int().tolist()] * 2


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("prefix", [0, PREFIX])
@pytest.mark.parametrize("dtype", ["float16", "uint8", "float32"])
def test_sizes_are_those_of_what_is_packed(whole: bool, prefix: int, dtype: str) -> None:
    sides = masks(IS_IMAGE, prefix, whole=whole)
    assert entries(IS_IMAGE, prefix, whole=whole) == tuple(int(mask.sum()) for mask in sides)
    packed = [pack(part(*mask.shape), mask, dtype) for mask in sides]
    need = packed_bytes(IS_IMAGE, prefix, whole=whole, maps=2, dtype=dtype)
    assert need == tuple(each.bytes for each in packed)


@pytest.mark.parametrize(
    ("dtype", "relative", "absolute", "of_maximum"),
    [("float32", 0, 0, 0), ("float16", 2**-11, 2**-25, 0), ("uint8", 0, 0, 1.0001 / 510)],
)
def test_numbers_come_back_within_their_error(
    dtype: str, relative: float, absolute: float, of_maximum: float
) -> None:
    mask = torch.ones(13, 37, dtype=torch.bool).tril(24)
    maps = part(13, 37) * mask
    found = unpack(pack(maps, mask, dtype), mask)
    error = (found - maps).abs()
    limit = relative * maps + absolute + of_maximum * maps.amax(2, keepdim=True)
    assert (error <= limit).all()
    assert dtype == "float32" or error.max() > 0
    assert not found[:, ~mask].any()


def test_rows_of_nothing_stay_nothing() -> None:
    mask = torch.tensor([[False, False], [True, True]])
    found = unpack(pack(torch.zeros(3, 2, 2), mask, "uint8"), mask)
    assert torch.equal(found, torch.zeros(3, 2, 2))


def test_a_sample_of_the_goals_size() -> None:
    """200 text tokens over 1,536 image tokens: at most 0.7 MB a sample and layer in float16."""
    is_image = torch.zeros(1736, dtype=torch.bool)
    is_image[:1536] = True
    need = sum(packed_bytes(is_image, 1536, whole=False, maps=1, dtype="float16"))
    assert need == 200 * 1536 * 2 == 614_400
