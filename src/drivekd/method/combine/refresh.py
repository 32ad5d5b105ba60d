"""Coefficients that are computed at every R-th optimizer step and kept for the steps between.

[ours] An exact step needs one backward pass per loss. It leaves a and λ behind, and the steps until
the next one follow U = ∇ Σ_k stopgrad(a_k) ℓ_k, one backward pass of one sum. What AGP
guarantees for the cross-entropy then holds only as far as the gradients' angles stay what they
were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Kept = Mapping[str, Any]
"""What an exact step left, as plain data that goes into checkpoints; {} before the first.

members: the rows that samples of the step could have a gradient in, by name.
a: coefficient of each row that took part. weights: w_ce or λ of each. age: steps since, plus one.
"""


def kept_factors(kept: Kept, every: int, rows: Mapping[str, bool]) -> list[float] | None:
    """Factors a_k D_k of the rows' losses, or None where the step must be exact.

    It must be exact at the first step, `every` steps after the last exact one, and where the set of
    losses that the data have changed: coefficients belong to one set of active losses.

    Args:
        kept: what the last exact step left.
        every: R.
        rows: for the name of each row whether samples of this step can have a gradient in it.
    """
    if not kept or kept["age"] >= every or kept["members"] != _present(rows):
        return None
    return [kept["a"].get(name, 0.0) * kept["weights"].get(name, 0.0) for name in rows]


def keep(rows: Mapping[str, bool], a: Mapping[str, float], weights: Mapping[str, float]) -> Kept:
    """What an exact step leaves."""
    return {"members": _present(rows), "a": dict(a), "weights": dict(weights), "age": 1}


def aged(kept: Kept) -> Kept:
    """The same after a step that used it."""
    return {**kept, "age": kept["age"] + 1}


def logged(kept: Kept) -> dict[str, float]:
    """What is known at a step that uses kept coefficients: a_0 and λ, and that it was not exact."""
    anchors = [value for name, value in kept["a"].items() if name.partition("/")[0] == "ce"]
    weights = {
        f"lambda/{name.removeprefix('teacher/')}": value
        for name, value in kept["weights"].items()
        if name.startswith("teacher/")
    }
    return {"grad/exact": 0.0, "grad/ce_multiplier": sum(anchors) / len(anchors), **weights}


def _present(rows: Mapping[str, bool]) -> Sequence[str]:
    return [name for name, there in rows.items() if there]
