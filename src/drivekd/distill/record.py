"""What is logged of a step: losses, weights, angles of the gradients; read, never computed anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drivekd.distill.saving import log
from drivekd.distill.saving.log import Totals
from drivekd.distill.teachers.teacher import Term
from drivekd.method.combine.projection import Solution
from drivekd.method.combine.telemetry import telemetry

SIGNALS = {"hidden": "hidden", "logits_kl": "kl"}
"""How the log calls a signal; every other is `attn`."""


@dataclass(frozen=True)
class Combined:
    """What one projection was made of: its `Solution` and the names of its rows.

    Attributes:
        solution: of the unit.
        teachers: active ones.
        anchors: of the cross-entropy's rows.
        rows: of stage 2.
    """

    solution: Solution
    teachers: Sequence[str]
    anchors: Sequence[str]
    rows: Sequence[str]


def add_unit(
    totals: Totals,
    terms: Sequence[Term],
    tables: Sequence[NDArray[np.float64]],
    values: dict[str, float],
    combined: Combined | None,
) -> None:
    """Count what one unit left.

    Args:
        totals: receives it.
        terms: of the run.
        tables: of each batch the losses, see `Losses.table`.
        values: to be counted once each.
        combined: None where coefficients were kept from an earlier unit.
    """
    for table in tables:
        _add_losses(totals, terms, table)
    if combined is not None:
        c = combined
        log.add_all(totals, telemetry(c.solution, c.teachers, c.anchors, c.rows))
    log.add_all(totals, values)


def _add_losses(totals: Totals, terms: Sequence[Term], table: NDArray[np.float64]) -> None:
    """Count means over the samples that have the term and a share in it."""
    log.add(totals, "loss/ce", float(table[0].mean()), table.shape[1])
    K = len(terms)
    for term, values, carried in zip(terms, table[1 : 1 + K], table[1 + K :], strict=True):
        if (carried > 0).any():
            mean, count = float(values[carried > 0].mean()), int((carried > 0).sum())
            log.add(totals, f"loss/{loss_name(term)}", mean, count)


def loss_name(term: Term) -> str:
    """The name of a term's loss in the log."""
    return f"{SIGNALS.get(term.signal, 'attn')}/{term.capability}"
