"""What was measured on: processor, versions, commit, and how much memory is free."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve()
_GROUP = Path("/sys/fs/cgroup")


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
    import torch

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
    import torch

    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    rows = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    free = next(int(row.split()[1]) * 1024 for row in rows if row.startswith("MemAvailable"))
    limits = [_GROUP / name for name in ("memory.max", "memory.current")]
    texts = [path.read_text(encoding="utf-8").strip() for path in limits if path.is_file()]
    if len(texts) == 2 and texts[0] != "max":
        free = min(free, int(texts[0]) - int(texts[1]))
    return free
