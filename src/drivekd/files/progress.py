"""Progress with an estimate of the time left: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")

#: seconds between two plain lines when stderr is not a terminal [s]
PLAIN_INTERVAL = 10.0
#: seconds between two steps of a bar [s]
BAR_INTERVAL = 0.1


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
        status: says what else there is to show, asked whenever something is shown.
        before: of the total, those that an earlier call went through.

    Yields:
        The items, unchanged and in order.
    """
    if os.environ.get("RANK", "0") != "0":
        return iter(items)
    if total is None and isinstance(items, Sized):
        total = len(items)
    shown = _bar if sys.stderr.isatty() else _lines
    return shown(items, total, label, status, before)


def tell(line: str) -> None:
    """Show one line on stderr; of several processes that do the same, only the first shows it."""
    if os.environ.get("RANK", "0") == "0":
        _write(line)


def _bar(
    items: Iterable[T], total: int | None, label: str, status: Callable[[], str], before: int
) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn(
            "{task.fields[status]}",
            markup=False,
            table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),  # the room left
        ),
    )
    with Progress(*columns, console=Console(stderr=True), expand=True) as progress:
        task = progress.add_task(label, total=total, completed=before, status="")
        shown, new = time.monotonic(), 0
        for item in items:
            yield item
            new += 1
            if time.monotonic() - shown >= BAR_INTERVAL:  # drawing costs more than most items
                progress.update(task, advance=new, status=status())
                shown, new = time.monotonic(), 0
        progress.update(task, advance=new, status=status())


def _lines(
    items: Iterable[T], total: int | None, label: str, status: Callable[[], str], before: int
) -> Iterator[T]:
    started = shown = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - shown >= PLAIN_INTERVAL:
            shown = now
            _write(_line(label, done, total, now - started, status(), before))
    # The last line comes only where an earlier one did: quick work stays quiet.
    if shown != started:
        _write(_line(label, done, total, time.monotonic() - started, status(), before))


def _line(
    label: str, done: int, total: int | None, seconds: float, status: str, before: int
) -> str:
    """One plain line, e.g. `rendering scenes: 120/5000, 9.8/s, 8m18s left`."""
    reached = before + done
    count = f"{reached}/{total}" if total is not None else str(reached)
    parts = [count, f"{done / seconds:.1f}/s"]
    if total is not None and reached < total:
        parts.append(f"{duration(seconds / done * (total - reached))} left")
    elif reached == total:
        parts.append(f"done in {duration(seconds)}")
    parts += [status] if status else []
    return f"{label or 'progress'}: {', '.join(parts)}"


def duration(seconds: float) -> str:
    """A length of time for people: `42s`, `8m18s`, `2h05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _write(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
