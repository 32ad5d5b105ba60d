"""Sums per scene that the pre-study keeps while it reads, never the features of single samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from drivekd.statistics import draw_scenes
from drivekd.study.curves import Curve, pair_mean, ratio

Array = NDArray[np.float64]


@dataclass(slots=True)
class Total:
    """Sums of one quantity."""

    sums: dict[str, Array] = field(default_factory=dict)  # by scene
    #: by scene, of the shape of the values or one number for all of them
    counts: dict[str, Array] = field(default_factory=dict)
    n: int = 0  # samples added

    def add(self, scene: str, value: Array, count: Array | float = 1.0) -> None:
        """Add one sample's values, or sums with their counts."""
        self.sums[scene] = self.sums.get(scene, 0.0) + value.astype(np.float64)
        self.counts[scene] = self.counts.get(scene, np.zeros(())) + np.asarray(count, np.float64)
        self.n += 1


@dataclass(slots=True)
class Sums:
    """All quantities of a study by name, such as `intra/attention/perception`."""

    of: dict[str, Total] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Total:
        """Return the quantity of this name, empty where nothing was added yet."""
        return self.of.setdefault(name, Total())

    def count(self, name: str) -> int:
        return self.of[name].n if name in self.of else 0

    def named(self, start: str) -> list[str]:
        return [name.removeprefix(start) for name in self.of if name.startswith(start)]


def mean_curve(total: Total, draws: int, random: Callable[[], np.random.Generator]) -> Curve:
    """Mean over samples at every place, with bootstrap draws over scenes."""
    sums = np.stack(list(total.sums.values()))
    counts = np.stack([np.broadcast_to(c, sums.shape[1:]) for c in total.counts.values()])
    weights = draw_scenes(len(sums), draws, random())
    return Curve(ratio(sums, counts, weights), total.n, len(sums))


def pair_curve(total: Total, draws: int, random: Callable[[], np.random.Generator]) -> Curve:
    """Mean cosine over pairs of samples in every layer, with bootstrap draws over scenes.

    The values that were added are unit vectors [layers, width]. Every layer sees the same draws.
    """
    counts = np.array([float(c) for c in total.counts.values()])
    weights = draw_scenes(len(counts), draws, random())
    scenes = list(total.sums.values())
    layers = range(len(scenes[0]))
    found = [pair_mean(np.stack([s[layer] for s in scenes]), counts, weights) for layer in layers]
    return Curve(np.stack(found, axis=1), total.n, len(counts))
