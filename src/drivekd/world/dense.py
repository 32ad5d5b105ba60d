"""Short questions about single image cells: many per scene, for grounding a model that is new.

`colour <r37>` is answered with what fills cell 37. They are training material only, in a file of
their own beside the scored questions, and count as perception.

Source: [ours].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drivekd.world.sight import ATTRIBUTES

NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class DenseQuestion:
    """What one attribute of one cell is."""

    attribute: str
    region: int
    answer: str

    @property
    def text(self) -> str:
        """The question as it is asked."""
        return f"{self.attribute} <r{self.region}>"


def dense_questions(
    labels: NDArray[np.int8], count: int, rng: np.random.Generator
) -> list[DenseQuestion]:
    """Draw questions about cells, most of them about cells that hold something.

    Args:
        labels: from `sight.cells`, any shape whose last axis are the attributes.
        count: how many; fewer where the scene is emptier than that.
        rng: draws cells and attributes.
    """
    flat = labels.reshape(-1, len(ATTRIBUTES))
    said = np.argwhere(flat > 0)
    rng.shuffle(said)
    empty = np.flatnonzero(flat[:, 0] == 0)
    chosen = [(int(cell), int(attribute)) for cell, attribute in said[: count * 7 // 8]]
    chosen += [(int(c), 0) for c in rng.permutation(empty)[: count - count * 7 // 8]]
    names = list(ATTRIBUTES)
    return [
        DenseQuestion(names[a], cell, _answer(names[a], int(flat[cell, a]))) for cell, a in chosen
    ]


def _answer(attribute: str, label: int) -> str:
    return ATTRIBUTES[attribute][label - 1] if label else NOTHING
