"""Silence for libraries that say too much: transformers, bitsandbytes."""

from __future__ import annotations

import logging as standard
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and reports of left-out layers, then restore both."""
    log: Any = logging  # its functions are not annotated
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def hush_quantised() -> None:
    """Let bitsandbytes log errors only, not every int8 layer that it computes in float16."""
    standard.getLogger("bitsandbytes").setLevel(standard.ERROR)
