"""The most memory that was in use: of the process as the system counts, of the GPU's allocator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True)
class Peak:
    """What was in use at most [MB = 10⁶ bytes].

    Attributes:
        process: resident memory; on a GPU machine that of the host.
        allocator: of the GPU; None on a CPU, where PyTorch counts nothing.
    """

    process: float
    allocator: float | None

    @property
    def of_device(self) -> float:
        """The memory that the model lives in."""
        return self.process if self.allocator is None else self.allocator


def reset(device: str) -> None:
    """Forget what was in use before."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def read(device: str) -> Peak:
    """The peaks since the last reset."""
    on_gpu = torch.device(device).type == "cuda"
    allocator = torch.cuda.max_memory_allocated(device) / 1e6 if on_gpu else None
    return Peak(resident("VmHWM"), allocator)


def resident(name: str = "VmRSS") -> float:
    """Resident memory of this process [MB], or with `VmHWM` the peak of it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(x.split()[1]) * 1024 / 1e6 for x in lines if x.startswith(f"{name}:"))
