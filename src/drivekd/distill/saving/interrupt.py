"""Ctrl-C and SIGTERM while a student is trained: the step is finished and saved, then it ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import parent_process
from types import FrameType

import torch

from drivekd.distill.processes import parallel
from drivekd.distill.processes.parallel import Ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Request:
    """Whether this process was asked to end, and how.

    Attributes:
        signal: one of `SIGNALS`; None where nobody asked.
    """

    signal: int | None = None


@contextmanager
def requests() -> Iterator[Request]:
    """Turn the first Ctrl-C or SIGTERM into a request; a second one acts as it always does.

    Signals are left alone in other threads than the main one, and in worker processes, which their
    parent ends.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread() or parent_process() is not None:
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def take(number: int, frame: FrameType | None) -> None:
        request.signal = number
        restore()

    for number in SIGNALS:
        signal.signal(number, take)
    try:
        yield request
    finally:
        restore()


def asked(request: Request, ranks: Ranks) -> int | None:
    """The signal by which any of the processes was asked to end, the same for all of them."""
    if ranks.size == 1:
        return request.signal
    counts = torch.tensor([request.signal == each for each in SIGNALS], dtype=torch.float32)
    counts = counts.to(ranks.device)
    parallel.sum_(ranks, [counts])
    came = counts.nonzero()
    return None if len(came) == 0 else SIGNALS[int(came[-1])]


def end(number: int) -> None:
    """End the process as this signal would have, so that whoever started it can tell.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM; the exit code is 128 + its number.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
