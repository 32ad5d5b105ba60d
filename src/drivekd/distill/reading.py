"""The pictures that coming steps of a run read, made by threads while a step runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from drivekd.distill.order import Window
from drivekd.distill.plan import Plan
from drivekd.models.ahead import ahead
from drivekd.models.vlm import Vlm


def steps(plan: Plan, windows: Iterable[Window]) -> AbstractContextManager[Iterator[Window]]:
    """The steps, while threads make the pictures that this process reads in the next ones.

    Those of models that keep what they saw are not made here: they are read before the first step.
    """
    users = [(plan.student, plan.features), *((each.vlm, each.features) for each in plan.teachers)]
    readers = [vlm for vlm, cache in users if cache is None or cache.latest]

    def wanted(window: Window) -> Iterator[tuple[Vlm, Path]]:
        for batch in plan.ranks.share(window.batches):
            for first, *_ in batch:
                yield from ((vlm, path) for path in plan.encoded[first].images for vlm in readers)

    return ahead(windows, wanted, plan.recipe.train.dataloader_num_workers if readers else 0)
