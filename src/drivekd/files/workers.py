"""Jobs side by side in processes: results in order, errors as they were, Ctrl-C ends everything."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")


def side_by_side(function: Callable[[J], R], jobs: Iterable[J], workers: int) -> Iterator[R]:
    """Yield `function(job)` of every job in their order, computed in fresh processes.

    An interrupt, leaving the iteration early, or the end of this process by any signal ends the
    workers at once: what a job does has to survive that, as checkpoints and files that are renamed
    when complete do.

    Args:
        function: a module-level function.
        jobs: its arguments; they and the results travel between processes.
        workers: how many processes.

    Raises:
        MemoryError: a worker was killed from outside, most often for its memory.
    """
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_end_with_parent
    ) as pool:
        with _deaf():
            futures = [pool.submit(function, job) for job in jobs]
        done = False
        try:
            for future in futures:
                yield _result(future)
            done = True
        finally:
            if not done:
                # Only the pool knows which of this process's children are its own.
                ours = list((pool._processes or {}).values())
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in ours:
                    worker.terminate()


def _end_with_parent() -> None:
    """A killed parent cannot end its workers: each watches for that itself."""
    parent = parent_process()
    assert parent is not None, "this runs in worker processes"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _result(future: Future[R]) -> R:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise MemoryError(
            "a worker process ended before its job was done, most likely because memory ran out: "
            "give fewer workers; a script that calls this has to do so below "
            "`if __name__ == '__main__':`"
        ) from error
    except RuntimeError as error:  # raised again here, so that it is known to be ours
        raise RuntimeError(str(error)) from error


@contextmanager
def _deaf() -> Iterator[None]:
    """Worker processes started in here never see Ctrl-C: their parent does, and ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
