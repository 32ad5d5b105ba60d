"""How fast a machine reads memory and multiplies matrices: what no model can go below."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

#: of a matrix that no cache holds [bytes], and how often each product is timed
_BYTES, _TRIES = 1 << 28, 5
#: of the large square matrix, by device
_SIDE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True, slots=True)
class Rates:
    """What was reached.

    Attributes:
        bytes_per_s: read by a matrix-vector product, in the best of both precisions.
        flops_per_s: of a large matrix product in the model's precision.
    """

    bytes_per_s: float
    flops_per_s: float


def rates(device: str, dtype: torch.dtype) -> Rates:
    """Measure both rates with all threads that PyTorch uses; takes about a second.

    Args:
        device: where.
        dtype: of the model.
    """
    where = torch.device(device)
    read = []
    for kind in {torch.float32, dtype}:
        side = int((_BYTES / kind.itemsize) ** 0.5)
        matrix = torch.rand(side, side, dtype=kind, device=where)
        vector = torch.rand(1, side, dtype=kind, device=where)
        seconds = _best(lambda m=matrix, v=vector: linear(v, m), where)  # type: ignore[misc]
        read.append(side * side * kind.itemsize / seconds)
    side = _SIDE[where.type]
    left, right = (torch.rand(side, side, dtype=dtype, device=where) for _ in range(2))
    seconds = _best(lambda: linear(left, right), where)
    return Rates(max(read), 2 * side**3 / seconds)


def _best(work: Callable[[], object], where: torch.device) -> float:
    """The shortest of several times [s], after one that does not count."""
    work()
    found = []
    for _ in range(_TRIES):
        synchronise(where)
        started = time.perf_counter()
        work()
        synchronise(where)
        found.append(time.perf_counter() - started)
    return min(found)


def synchronise(device: torch.device) -> None:
    """Wait for a GPU to have done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
