"""A fingerprint of a picture's pixels that survives saving it again and scaling it.

The signs of the 255 lowest frequencies of a 64×64 grey copy against their median (the "pHash" of
image search, with four times its usual bits). Cropped or mirrored copies are not found. Measured
rates: docs/data.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drivekd.data.pictures import UNREADABLE

#: bits in which two copies of one picture may differ [ours, measured]
SAME_PICTURE = 12
_SIDE, _KEPT = 64, 16
#: a picture whose frequencies are all weaker shows nothing to compare [grey levels of 255]
_FLAT = 1.0
#: pairs compared at once
_BLOCK = 1 << 22

Hash = NDArray[np.uint64]


def _cosines() -> NDArray[np.float64]:
    """The first rows [_KEPT, _SIDE] of the orthonormal discrete cosine transform (DCT-II)."""
    row, column = np.arange(_KEPT)[:, None], np.arange(_SIDE)[None]
    table = np.cos(math.pi * row * (2 * column + 1) / (2 * _SIDE)) * math.sqrt(2 / _SIDE)
    table[0] /= math.sqrt(2)
    return table


_COSINES = _cosines()


def inspect(source: Path | BinaryIO) -> Hash | str | None:
    """The fingerprint [4] of a picture file, or why it cannot be read.

    The file is decoded to its end, at reduced size where its format allows, so that one that was
    cut short is found. None for a picture without any contrast, which resembles all such others.
    """
    try:
        with Image.open(source) as image:
            image.draft("L", (4 * _SIDE, 4 * _SIDE))
            grey = image.convert("L")
    except FileNotFoundError:
        return "there is no such file"
    except Image.DecompressionBombError:
        return "holds too many pixels to be a camera's picture"
    except UNREADABLE as error:
        return f"cannot be read as an image ({str(error)[:80]})"
    return fingerprint(grey)


def fingerprint(grey: Image.Image) -> Hash | None:
    """The 256 bits [4] of a grey picture, None where it has no contrast."""
    small = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR), dtype=np.float64)
    waves = (_COSINES @ small @ _COSINES.T).ravel()
    waves[0] = 0.0  # the mean brightness
    if np.abs(waves).max() < _FLAT * _SIDE:
        return None
    return np.packbits(waves > np.median(waves)).view(np.uint64)


def nearest(pictures: NDArray[np.uint64], others: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """For each of the pictures [n, 4] the nearest of the others [m, 4] and its distance [bits].

    Compared in blocks of numpy: 10,000 against 10,000 take a few seconds. There must be others.
    """
    step = max(1, _BLOCK // len(others))
    for start in range(0, len(pictures), step):
        block = pictures[start : start + step, None]
        distance = np.bitwise_count(block[:, :, 0] ^ others[None, :, 0]).astype(np.uint16)
        for word in range(1, pictures.shape[1]):
            distance += np.bitwise_count(block[:, :, word] ^ others[None, :, word])
        best = distance.argmin(axis=1)
        yield from zip(best.tolist(), distance.min(axis=1).tolist(), strict=True)
