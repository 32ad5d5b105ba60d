"""Progress with the time left: a bar on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")

#: seconds between two plain lines; work that ends sooner shows none [s]
PLAIN_INTERVAL = 10.0
_LINE = "{desc}: {n_fmt}{of_total}, {rate_noinv:.1f}/s{left}{postfix}"


def track(
    items: Iterable[T],
    total: int | None = None,
    label: str = "",
    status: Callable[[], str] = str,
    before: int = 0,
) -> Iterator[T]:
    """Yield the items and show on stderr how many are done and how long the rest will take.

    Of several processes that do the same, as torchrun starts them, only the first shows anything.

    Args:
        items: what to go through.
        total: their number; taken from `len(items)` where it has one. Without a number the
            count and the rate are shown, but no time left.
        label: what is being done, e.g. `rendering scenes`.
        status: what else there is to show, called whenever something is shown.
        before: of the total, those that an earlier call went through.
    """
    if os.environ.get("RANK", "0") != "0":
        return iter(items)
    if total is None and isinstance(items, Sized):
        total = len(items)
    return iter(_Progress(status, items, desc=label or "progress", total=total, initial=before))


def tell(line: str) -> None:
    """Show one line on stderr; of several processes that do the same, only the first shows it."""
    if os.environ.get("RANK", "0") == "0":
        tqdm.write(line, sys.stderr)
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """A length of time for people: `42s`, `8m18s`, `2h05m`."""
    full = round(seconds)
    if full < 60:
        return f"{full}s"
    if full < 3600:
        return f"{full // 60}m{full % 60:02d}s"
    return f"{full // 3600}h{full % 3600 // 60:02d}m"


class _Progress(tqdm):  # type: ignore[type-arg]  # it is generic in its stubs only
    """tqdm with a status, and with lines such as `rendering scenes: 120/5000, 9.8/s, 8m18s left`.

    Its rate is the average since the start, for what is tracked here takes uneven time.
    """

    monitor_interval = 0  # every item looks at the clock, so no thread has to

    def __init__(self, status: Callable[[], str], items: Iterable[T], **settings: Any) -> None:
        self._status = status
        if sys.stderr.isatty():
            settings |= {"file": sys.stderr, "dynamic_ncols": True}
        else:
            settings |= {"file": _Lines(), "bar_format": _LINE}
            settings |= {"mininterval": PLAIN_INTERVAL, "delay": PLAIN_INTERVAL}
        super().__init__(items, miniters=1, smoothing=0, **settings)

    @property
    def format_dict(self) -> Any:
        facts = super().format_dict
        done, total, seconds = self.n - self.initial, self.total, facts["elapsed"]
        left = ""
        if total is not None and self.n >= total:
            left = f", done in {duration(seconds)}"
        elif total is not None and done:
            left = f", {duration(seconds / done * (total - self.n))} left"
        of_total = "" if total is None else f"/{total}"
        return {**facts, "postfix": self._status(), "left": left, "of_total": of_total}


class _Lines(io.TextIOBase):
    """Stderr without what moves a terminal's cursor: each text that is written is one line."""

    def write(self, text: str) -> int:
        if line := re.sub(r"[\r\n]|\x1b\[A", "", text).strip():
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        return len(text)
