"""Errors over scenes and seeds: one implementation for evaluation, studies and benchmarks."""

from drivekd.statistics.resampling import FEWEST, band, draw_scenes, stretch
from drivekd.statistics.scenes import Difference, Estimate, difference, estimate, holm
from drivekd.statistics.seeds import OverSeeds, over_seeds, paired

__all__ = [
    "FEWEST",
    "Difference",
    "Estimate",
    "OverSeeds",
    "band",
    "difference",
    "draw_scenes",
    "estimate",
    "holm",
    "over_seeds",
    "paired",
    "stretch",
]
