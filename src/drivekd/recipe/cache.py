"""What may stand under `cache` in a recipe."""

from __future__ import annotations

from typing import Literal

from drivekd.recipe.part import Part, Positive


class Cache(Part):
    """The teachers' attention on disk, computed once and read by every later run [ours].

    Attributes:
        dir: folder of the store; none: teachers run in every training.
        dtype: of the stored numbers; `uint8` is scaled by each row's maximum.
        max_gb: largest size [GB] of the store; one that would grow beyond it is not written.
    """

    dir: str | None = None
    dtype: Literal["float16", "uint8", "float32"] = "float16"
    max_gb: Positive = 50.0
