"""Frozen models that rest in the host's memory and come to a device for as long as they run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def rest(model: nn.Module) -> None:
    """Move a model to the host's memory, pinned where there is a GPU: it is copied from often."""
    model.to("cpu")
    if torch.cuda.is_available():
        for parameter in model.parameters():
            parameter.data = parameter.data.pin_memory()


@contextmanager
def visiting(model: nn.Module, device: torch.device | None) -> Iterator[None]:
    """Have a frozen model on a device inside, None: where it is; afterwards where it was [ours].

    Nobody changes frozen weights, so they are copied one way only: the device's copies are dropped
    and the ones at rest taken again, the same bits. Buffers, which a model may replace while it
    runs, go both ways. A tensor that outlives the visit should be detached from its parameter.
    """
    if device is None:
        yield
        return
    resting = [(parameter, parameter.data) for parameter in model.parameters()]
    homes = {name: buffer.device for name, buffer in model.named_buffers()}
    try:
        for parameter, weights in resting:
            parameter.data = carried(weights, device)
        for buffer in model.buffers():
            buffer.data = carried(buffer.data, device)
        yield
    finally:
        for parameter, weights in resting:
            parameter.data = weights
        for name, buffer in model.named_buffers():
            buffer.data = carried(buffer.data, homes.get(name, torch.device("cpu")))


def carried(tensor: Tensor, device: torch.device) -> Tensor:
    """Carry a tensor to a device if it is not there; from pinned memory nobody waits for it."""
    return tensor.to(device, non_blocking=device.type != "cpu")


def refuse_absent(device: str | torch.device) -> None:
    """Raise a ValueError for a device that PyTorch does not know, or a GPU that it does not see."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"device {device!r} is unknown to PyTorch: choose cpu or cuda") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device}: this PyTorch sees no GPU; choose cpu")
