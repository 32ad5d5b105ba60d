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
    models = plan.models
    users = [(models.student, models.features), *((t.vlm, t.features) for t in models.teachers)]
    readers = [vlm for vlm, cache in users if cache is None or cache.latest]

    def wanted(window: Window) -> Iterator[tuple[Vlm, Path]]:
        for batch in plan.trained.ranks.share(window.batches):
            for first, *_ in batch:
                images = plan.schedule.encoded[first].images
                yield from ((vlm, path) for path in images for vlm in readers)

    return ahead(windows, wanted, plan.recipe.train.dataloader_num_workers if readers else 0)
