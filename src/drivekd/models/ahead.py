"""Pictures read and processed by threads before they are asked for."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from drivekd.models.images import AHEAD, Processed, identity, processed
from drivekd.models.vlm import Vlm

T = TypeVar("T")
Wanted = Callable[[T], Iterable[tuple[Vlm, Path]]]

#: Pictures of coming items that each thread makes ahead, or those of the next item if more.
PER_WORKER = 8


@contextmanager
def ahead(items: Iterable[T], wanted: Wanted[T], workers: int) -> Iterator[Iterator[T]]:
    """Go through items while threads make the pictures of the next ones.

    Inside the block `pixels` takes what is ready, waits for what is being made, and makes itself
    what nobody asked for: the same numbers, errors and order as without threads. Pillow and NumPy
    let other threads run while they decode and resize. Leaving the block ends the threads. [ours]

    Args:
        items: in the order in which they will be worked on.
        wanted: the pictures that an item needs, and for whom.
        workers: threads; 0: everything is made when it is needed.

    Yields:
        The items.
    """
    if not workers:
        yield iter(items)
        return
    ready: dict[Hashable, Future[Processed]] = {}
    token = AHEAD.set(ready)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="pictures")
    try:
        yield _paced(items, _Queue(pool, ready), wanted, PER_WORKER * workers)
    finally:
        AHEAD.reset(token)
        pool.shutdown(cancel_futures=True)


@dataclass(eq=False)
class _Queue:
    """Pictures that threads make, and how many items still want each."""

    pool: ThreadPoolExecutor
    ready: dict[Hashable, Future[Processed]]
    wanted: Counter[Hashable] = field(default_factory=Counter)

    def ask(self, pictures: Iterable[tuple[Vlm, Path]]) -> frozenset[Hashable]:
        found = {identity(vlm, path): (vlm, path) for vlm, path in pictures}
        for key, (vlm, path) in found.items():
            if key not in self.ready:
                self.ready[key] = self.pool.submit(processed, vlm, path)
        self.wanted.update(list(found))
        return frozenset(found)

    def forget(self, keys: frozenset[Hashable]) -> None:
        self.wanted.subtract(keys)
        for key in keys:
            if not self.wanted[key]:
                del self.wanted[key], self.ready[key]


def _paced(items: Iterable[T], queue: _Queue, wanted: Wanted[T], room: int) -> Iterator[T]:
    """The items; before each one, the next and as many more as there is room for are asked for."""
    coming: deque[tuple[T, frozenset[Hashable]]] = deque()
    left = iter(items)
    while True:
        while len(coming) < 2 or max(len(coming), sum(len(keys) for _, keys in coming)) < room:
            item = next(left, None)
            if item is None:
                break
            coming.append((item, queue.ask(wanted(item))))
        if not coming:
            return
        now, keys = coming.popleft()
        yield now
        queue.forget(keys)


def unseen(vlm: Vlm) -> Wanted[Iterable[Path]]:
    """What a model needs of groups of files that it sees one after another and remembers."""
    seen: set[Path] = set()

    def wanted(files: Iterable[Path]) -> list[tuple[Vlm, Path]]:
        new = [path for path in files if path not in seen]
        seen.update(new)
        return [(vlm, path) for path in new]

    return wanted
