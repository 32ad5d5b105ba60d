"""Jobs side by side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest

from drivekd.files.workers import side_by_side

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers import the jobs below by the name of this file."""
    monkeypatch.syspath_prepend(str(ROOT))


def square(number: int) -> int:
    time.sleep(0.02 * (number % 3))
    return number * number


def complain(number: int) -> int:
    if number == 1:
        raise RuntimeError("step 3, samples a, b: the loss is not a finite number")
    if number == 2:
        raise ValueError("job 2: expected 1, got 2")
    return number


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def linger(path: str) -> str:
    time.sleep(3.0)
    Path(path).touch()
    return path


def test_results_keep_the_order_of_the_jobs() -> None:
    assert list(side_by_side(square, range(7), 2)) == [n * n for n in range(7)]


def test_an_error_is_the_jobs_own() -> None:
    with pytest.raises(RuntimeError, match=r"^step 3, samples a, b: the loss"):
        list(side_by_side(complain, [0, 1], 1))
    with pytest.raises(ValueError, match=r"^job 2: expected 1, got 2$"):
        list(side_by_side(complain, [0, 2], 1))


def test_a_killed_worker_is_named() -> None:
    with pytest.raises(MemoryError, match="worker process ended before its job was done"):
        list(side_by_side(die, [0], 1))


def test_leaving_early_ends_the_workers(tmp_path: Path) -> None:
    """Neither the running job nor the next one comes to its end."""
    paths = [str(tmp_path / name) for name in "abc"]
    results = side_by_side(linger, paths, 1)
    assert next(results) == paths[0]
    started = time.monotonic()
    results.close()  # type: ignore[attr-defined]  a generator
    assert time.monotonic() - started < 2.5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_a_child_of_the_caller_survives_an_early_leave(tmp_path: Path) -> None:
    child = get_context("spawn").Process(target=time.sleep, args=(60,))
    child.start()
    try:
        results = side_by_side(square, range(4), 2)
        next(results)
        results.close()  # type: ignore[attr-defined]  a generator
        child.join(0.3)
        assert child.exitcode is None
    finally:
        child.kill()
        child.join()


def test_a_killed_parent_takes_its_workers_along(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from drivekd.files.workers import side_by_side\n"
        "def job(path):\n"
        "    Path(path).write_text(str(os.getpid()))\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    list(side_by_side(job, [sys.argv[1]], 1))\n"
    )
    note = tmp_path / "pid"
    with subprocess.Popen([sys.executable, str(script), str(note)]) as parent:
        assert comes_true(lambda: note.exists() and note.read_text() != "")
        parent.kill()
    status = Path("/proc") / note.read_text() / "stat"
    assert comes_true(lambda: not status.exists() or status.read_text().split()[2] == "Z")


def comes_true(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether something holds within a while."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()
