"""What was measured on: processor, versions, commit, memory in use and free, and how fast it is."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch.nn.functional import linear

HERE = Path(__file__).resolve()
_GROUP = Path("/sys/fs/cgroup")
#: of a matrix that no cache holds [bytes], and how often each product is timed
_BYTES, _TRIES = 1 << 28, 5
#: of the large square matrix, by device
_SIDE = {"cpu": 2048, "cuda": 8192}


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def hardware(device: str) -> str:
    """The device that computes: a GPU's name, or the processor with its cores."""
    if torch.device(device).type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used"


def versions() -> str:
    """Versions of what computes."""
    return ", ".join(f"{name} {version(name)}" for name in ("drivekd", "torch", "transformers"))


def commit() -> str | None:
    """The commit of this code, with `-dirty` if it was changed since; None if it is installed."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["git", "-C", str(HERE.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603

    try:
        if git("ls-files", "--error-unmatch", HERE.name).returncode != 0:
            return None  # a repository around us is another project's
        changed = git("diff", "--quiet", "HEAD", "--", "..").returncode != 0
        return git("rev-parse", "--short=12", "HEAD").stdout.strip() + ("-dirty" if changed else "")
    except OSError:  # no git
        return None


def free_memory(device: str) -> int:
    """Bytes that a process can still take on a device, within its control group's limit.

    Raises:
        OSError: the system does not say.
    """
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    rows = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    free = next(int(row.split()[1]) * 1024 for row in rows if row.startswith("MemAvailable"))
    limits = [_GROUP / name for name in ("memory.max", "memory.current")]
    texts = [path.read_text(encoding="utf-8").strip() for path in limits if path.is_file()]
    if len(texts) == 2 and texts[0] != "max":
        free = min(free, int(texts[0]) - int(texts[1]))
    return free


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


def reset_peak(device: str) -> None:
    """Forget what was in use before."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def read_peak(device: str) -> Peak:
    """The peaks since the last reset."""
    on_gpu = torch.device(device).type == "cuda"
    allocator = torch.cuda.max_memory_allocated(device) / 1e6 if on_gpu else None
    return Peak(resident("VmHWM"), allocator)


def resident(name: str = "VmRSS") -> float:
    """Resident memory of this process [MB], or with `VmHWM` the peak of it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(x.split()[1]) * 1024 / 1e6 for x in lines if x.startswith(f"{name}:"))


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
