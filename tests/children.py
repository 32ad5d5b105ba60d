"""Child processes forked from this one, which has everything loaded: to be killed, or starved."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch


def start(work: Callable[[], object], said: Path) -> int:
    """Fork a child that does some work and ends; its process id.

    It ends with 0, or 1 after an error; `said` receives what it writes to stderr, an error last.
    """
    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        sys.stderr = said.open("w", encoding="utf-8")
        logging.basicConfig(stream=sys.stderr, force=True)  # pytest had kept it for itself
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a child; its exit code, or minus the signal that ended it."""
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def killed_after(child: int, seconds: float) -> int:
    """Kill a child after a while unless it ends before; how it ended, as of `ended`."""
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return ended(child)
