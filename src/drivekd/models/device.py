"""Whether this PyTorch can compute where it is asked to."""

from __future__ import annotations

import torch


def refuse_absent(device: str | torch.device) -> None:
    """Say of a device that it is not there.

    Raises:
        ValueError: PyTorch knows none of this name, or sees no GPU.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"device {device!r} is unknown to PyTorch: choose cpu or cuda") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device}: this PyTorch sees no GPU; choose cpu")
