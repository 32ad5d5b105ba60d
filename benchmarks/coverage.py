"""How often intervals of few scenes hold the truth, plain and stretched; the last line is JSON.

    python benchmarks/coverage.py

Scenes have normal values around 0 with standard deviation 5 and six questions each, all of a scene
alike; a set is that many scenes, and its mean gets its 95 % interval. `plain` are the quantiles of
the bootstrap, `stretched` is what `evaluate/resampling.py` gives; `false` is the share of sets
whose p is below .05 although there is no difference. Writes results/coverage.json.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from provenance import write_result

from drivekd.evaluate.resampling import (
    DIFFERENCES,
    Part,
    alone,
    draws,
    estimate,
    p_value,
    resampled,
)
from drivekd.files.progress import track

SCENES = (5, 8, 10, 20, 40)
SETS, QUESTIONS, SPREAD = 2000, 6, 5.0


def shares(scenes: int, sets: int) -> dict[str, float]:
    """Percent of the sets in which each interval holds 0, and in which p is below .05."""
    weights = draws(scenes, 0)
    plain = stretched = false = 0
    for number in range(sets):
        values = np.random.default_rng([scenes, number]).normal(0, SPREAD, scenes)
        mix = alone(Part(QUESTIONS * values, np.full(scenes, float(QUESTIONS))))
        low, high = np.percentile(resampled(mix, weights)[1:], [2.5, 97.5])
        found, p = estimate(mix, weights, DIFFERENCES), p_value(mix, weights)
        assert found.low is not None
        assert found.high is not None
        assert p is not None
        plain += low <= 0 <= high
        stretched += found.low <= 0 <= found.high
        false += p < 0.05
    counts = {"plain": plain, "stretched": stretched, "false": false}
    return {name: round(100 * int(count) / sets, 1) for name, count in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=SETS)
    sets = parser.parse_args().sets
    found = {str(scenes): shares(scenes, sets) for scenes in track(SCENES, label="scenes")}
    name = "coverage" if sets == SETS else "coverage_quick"
    print(write_result(name, {"percent": found, "sets": sets}))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
