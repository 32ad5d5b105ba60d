"""How often intervals of few scenes hold the truth [percent]; the last line is JSON.

    python benchmarks/coverage.py

- `accuracy`: right answers of scenes that differ (beta, correlation of a scene's answers 0 … .3),
  2 to 10 questions each, by correlation, true rate and number of scenes: `statistics.estimate`.
- `difference`: two models of equal skill on such scenes (rate .7, correlation .1): how often 0 is
  held, p is below .05 (`false`), and any of ten p's is after Holm (`family`): `.difference`.
- `seeds`: two recipes whose runs differ by seed (5 seeds, standard deviation 3 points).
- `band`: normal values of scenes, the bootstrap's plain quantiles beside `statistics.band`; with
  two scenes there is only the former.

Writes results/coverage.json.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from provenance import write_result

from drivekd.files.progress import track
from drivekd.statistics import FEWEST, band, difference, draw_scenes, estimate, holm

RATES, SCENES, ALIKE = (0.05, 0.5, 0.9, 0.95, 0.97), (5, 10, 20, 50, 100), (0.0, 0.1, 0.3)
SETS, FAMILY, SEEDS, SKILL, BETWEEN = 2000, 10, 5, 0.7, 0.03

Array = NDArray[np.float64]


def scenes_of(number: int, random: np.random.Generator) -> list[str]:
    """Names of the scenes of 2 to 10 questions each."""
    sizes = random.integers(2, 11, number)
    return [str(scene) for scene in np.repeat(np.arange(number), sizes)]


def rates(names: list[str], rate: float, alike: float, random: np.random.Generator) -> Array:
    """The chance of a right answer to each question."""
    if not alike:
        return np.full(len(names), rate)
    rest = (1 - alike) / alike
    drawn = random.beta(rate * rest, (1 - rate) * rest, len(set(names)))
    return np.asarray(drawn[np.unique(names, return_inverse=True)[1]], np.float64)


def answers(chance: Array, random: np.random.Generator) -> Array:
    """100 where an answer is right, else 0."""
    return 100.0 * (random.random(chance.shape) < chance)


def accuracy(number: int, rate: float, alike: float, sets: int) -> float:
    """Share of sets whose interval holds the true rate."""
    random, held = np.random.default_rng([number, int(100 * rate), int(100 * alike)]), 0
    for _ in range(sets):
        names = scenes_of(number, random)
        chance = rates(names, rate, alike, random)
        found = estimate(answers(chance, random), names)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 100 * rate <= found.high
    return round(100 * held / sets, 1)


def differences(number: int, sets: int) -> dict[str, float]:
    """Share of sets whose interval holds 0, whose p is below .05, and of families with any."""
    random, held, ps = np.random.default_rng([number, 1]), 0, []
    for _ in range(sets):
        names = scenes_of(number, random)
        chance = rates(names, SKILL, 0.1, random)
        found = difference(answers(chance, random), answers(chance, random), names)
        assert found.low is not None
        assert found.high is not None
        assert found.p is not None
        held += found.low <= 0 <= found.high
        ps.append(found.p)
    families = [holm(ps[i : i + FAMILY]) for i in range(0, sets - FAMILY + 1, FAMILY)]
    shares = {
        "held": held / sets,
        "false": np.mean([p < 0.05 for p in ps]),
        "family": np.mean([min(family) < 0.05 for family in families]),
    }
    return {name: round(100 * float(share), 1) for name, share in shares.items()}


def over_seeds(number: int, sets: int) -> float:
    """Share of sets of runs with several seeds whose interval of the difference holds 0."""
    random, held = np.random.default_rng([number, 2]), 0
    for _ in range(sets):
        names = scenes_of(number, random)
        chance = rates(names, SKILL, 0.1, random)
        runs = [chance + random.normal(0, BETWEEN, (SEEDS, 1)) for _ in range(2)]
        mine, theirs = (answers(run, random) for run in runs)
        found = difference(mine, theirs, names)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0 <= found.high
    return round(100 * held / sets, 1)


def bands(number: int, sets: int) -> dict[str, float]:
    """Share of sets whose band of the mean holds 0."""
    random = np.random.default_rng([number, 3])
    weights = draw_scenes(number, 1000, random) / number
    plain = stretched = 0
    for _ in range(sets):
        means = weights @ random.normal(0, 5, number)
        low, high = np.percentile(means[1:], [2.5, 97.5])
        plain += low <= 0 <= high
        if (ends := band(means, number)) is not None:
            stretched += ends[0] <= 0 <= ends[1]
    shares = {"plain": plain} | ({"band": stretched} if number >= FEWEST else {})
    return {name: round(100 * int(count) / sets, 1) for name, count in shares.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=SETS)
    sets = parser.parse_args().sets
    found: dict[str, Any] = {"accuracy": {}, "difference": {}, "seeds": {}, "band": {}}
    for alike in track(ALIKE, label="accuracies"):
        found["accuracy"][str(alike)] = {
            str(rate): {str(n): accuracy(n, rate, alike, sets) for n in SCENES} for rate in RATES
        }
    for number in track((2, *SCENES), label="differences and bands"):
        if number >= FEWEST:
            found["difference"][str(number)] = differences(number, sets)
            found["seeds"][str(number)] = over_seeds(number, sets)
        found["band"][str(number)] = bands(number, sets)
    name = "coverage" if sets == SETS else "coverage_quick"
    print(write_result(name, {"percent": found, "sets": sets}))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
