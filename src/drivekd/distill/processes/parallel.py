"""Several processes that train one student: which of them this is, and what they sum.

Every process computes the order of the data for itself (order.py), takes its share of each window,
and sums gradients and losses with the others before anything is decided. From there on all of them
do the same with the same numbers, so their weights stay equal without being sent around. [ours]
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

#: How long a process waits for the others, which may be reading data or writing a checkpoint.
PATIENCE = timedelta(minutes=60)

#: Sent by `torchrun` and `accelerate launch` to every process that they start.
_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """One process among those that train a student; by default it is alone.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        device: where tensors must lie to be sent.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether it is the one that writes files."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """What this process does of things that all of them know."""
        return items[self.rank :: self.size]


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that `torchrun` or `accelerate launch` started, and part at the end.

    gloo between CPUs, nccl between GPUs, of which each process takes the one that LOCAL_RANK names.
    A process group that exists already is used and left as it is. Where an error ends one process,
    parting early is what ends the others.

    Raises:
        ValueError: the environment is incomplete, or there are fewer GPUs than processes here.
        RuntimeError: another process ended.
    """
    given = dist.is_available() and dist.is_initialized()
    if not given and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if not given:
        _join()
    on_gpu = "nccl" in str(dist.get_backend_config())
    device = f"cuda:{torch.cuda.current_device()}" if on_gpu else "cpu"
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), device)
    try:
        yield ranks
    except RuntimeError as error:
        if not _lost(error):
            raise
        raise RuntimeError(
            f"process {ranks.rank} of {ranks.size} stopped because another one ended; the message "
            f"of that one says why"
        ) from error
    finally:
        if not given:
            dist.destroy_process_group()


def _join() -> None:
    missing = [name for name in _NEEDED if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} announces several processes, but "
            f"{', '.join(missing)} is not set; start them with torchrun or accelerate launch, or "
            "unset WORLD_SIZE"
        )
    if not torch.cuda.is_available():
        dist.init_process_group("gloo", timeout=PATIENCE)
        return
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= gpus:
        raise ValueError(
            f"LOCAL_RANK={local}, but there are {gpus} GPUs here: start at most one process for "
            f"each (--nproc_per_node {gpus})"
        )
    torch.cuda.set_device(local)
    device = torch.device("cuda", local)
    dist.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE, device_id=device)


def _lost(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a broken connection to another process."""
    while error is not None:
        if isinstance(error, dist.DistError) or "gloo/transport" in str(error):
            return True
        error = error.__cause__
    return False


def sum_(ranks: Ranks, tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their sums over all processes, which are the same bits in each."""
    if ranks.size > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def of_first(ranks: Ranks, tensor: Tensor) -> Tensor:
    """The tensor that the first process has, in each: devices that differ round differently."""
    if ranks.size > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def wait(ranks: Ranks) -> None:
    """Go on when all processes have come here."""
    sum_(ranks, [torch.zeros(1, device=ranks.device)])


def agree(ranks: Ranks, what: str, *parts: Any) -> None:
    """Stop where the processes do not have the same.

    Args:
        ranks: those that are asked.
        what: what the parts are, for the message.
        parts: tensors, or things whose `repr` says all about them.

    Raises:
        RuntimeError: in every process, naming those that differ from the first.
    """
    if ranks.size == 1:
        return
    total = hashlib.sha256()
    for part in parts:
        total.update(_bytes(part) if isinstance(part, Tensor) else repr(part).encode())
    mine = torch.tensor(list(total.digest()), dtype=torch.uint8, device=ranks.device)
    seen = [torch.empty_like(mine) for _ in range(ranks.size)]
    dist.all_gather(seen, mine)
    others = [str(rank) for rank, each in enumerate(seen) if not torch.equal(each, seen[0])]
    if others:
        raise RuntimeError(
            f"{what} of process {', '.join(others)} is not that of process 0: give every process "
            f"the same recipe, data, models and output_dir, and machines that compute alike"
        )


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
