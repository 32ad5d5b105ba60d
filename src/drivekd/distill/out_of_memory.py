"""Memory that ran out: said in one line with what to lower, never passed over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from drivekd.distill.order import length
from drivekd.distill.plan import Plan
from drivekd.models.batch import Row
from drivekd.recipe import Recipe


def happened(error: Exception) -> bool:
    """Whether memory ran out; of the host's, PyTorch says so by an error of no class of its own."""
    of_class = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return of_class or "DefaultCPUAllocator: can't allocate memory" in str(error)


def of_a_batch(plan: Plan, batches: Sequence[Sequence[Row]]) -> str:
    """What the batch was that did not fit, and what makes batches smaller."""
    settings = plan.recipe.train
    rows, order = max(map(len, batches)), plan.schedule.order
    tokens = max(length(order, row) for batch in batches for row in batch)
    return (
        f"out of memory with {rows} {'row' if rows == 1 else 'rows'} of up to {tokens} tokens; "
        f"checkpoints are untouched. Lower train.per_device_train_batch_size "
        f"({settings.per_device_train_batch_size}) and raise train.gradient_accumulation_steps "
        f"instead, lower data.questions_per_row, or set train.gradient_checkpointing or "
        f"train.bf16; then resume"
    )


@contextmanager
def before_the_first_step(recipe: Recipe) -> Iterator[None]:
    """Say of memory that ends before the first step what takes it there.

    Raises:
        RuntimeError: in place of the error by which PyTorch or Python say so.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not happened(error):
            raise
        kept = len(recipe.capabilities) + 1
        raise RuntimeError(
            f"out of memory before the first step: models, AdamW's state and {kept} gradients of "
            f"what is trained have to fit. Lower train.cache_features_gb and "
            f"train.cache_targets_gb, take fewer or smaller teachers, set train.bf16 (teachers in "
            f"half precision), or spread the student by train.fsdp"
        ) from error
