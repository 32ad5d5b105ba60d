"""How often AGP leaves what it cannot promise away: rates over random gradients.

    python benchmarks/projection_rates.py [--draws 20000] [--seed 0]

K = 3 teachers. g_0 is a random direction of length 1; g_t a random direction of length RATIO,
drawn anew for every t, in R^WIDTH: independent standard normal entries, normalised. A low width
makes conflicts strong, as gradients that share few directions have. Writes
results/projection_rates.json; the last line of the output is the same as JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from provenance import write_result

from drivekd.method.combine.projection import agp

TEACHERS = 3
WIDTHS = (4, 16, 64)
RATIOS = (1.0, 3.0, 10.0)
#: Relative to the lengths: a dot that projection made zero is zero up to rounding only.
ZERO = 1e-12


def draw(rng: np.random.Generator, width: int, ratio: float) -> NDArray[np.float64]:
    """Gradients [1+K, width]."""
    g = rng.standard_normal((1 + TEACHERS, width))
    g /= np.linalg.norm(g, axis=1, keepdims=True)
    g[1:] *= ratio
    return g


def negative(dots: NDArray[np.float64], squares: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which inner products are below zero by more than rounding."""
    return dots < -ZERO * np.sqrt(squares)


def look(g: NDArray[np.float64], order: list[int]) -> tuple[bool, bool, bool, bool]:
    """Whether stage 1 fired, stage 2 fired, a pair is left in conflict, U opposes a teacher."""
    G = g @ g.T
    solved = agp(G, order)
    first, second = solved.stage1, solved.stage2
    assert first is not None
    assert second is not None
    followers = g[1:] + first.added[:, None] * g[0]
    rows = g[0] + followers
    projected = second.projected @ rows
    lengths = np.outer((projected**2).sum(1), (rows**2).sum(1))
    left = negative(projected @ rows.T, lengths)
    np.fill_diagonal(left, False)
    update = projected.sum(axis=0)
    against = negative(g[1:] @ update, (g[1:] ** 2).sum(1) * (update @ update))
    return bool(first.fired.any()), bool(second.fired.any()), bool(left.any()), against.any()


def rates(width: int, ratio: float, draws: int, seed: int) -> dict[str, Any]:
    """Shares of draws in percent; `of_fired` counts draws in which stage 2 fired only."""
    rng = np.random.default_rng([seed, width, round(1000 * ratio)])
    seen = np.array(
        [
            look(draw(rng, width, ratio), [int(i) for i in rng.permutation(TEACHERS)])
            for _ in range(draws)
        ]
    )
    first, second, left, against = seen.T

    def percent(flags: NDArray[np.bool_]) -> float | None:
        return round(100 * float(flags.mean()), 1) if len(flags) else None

    return {
        "width": width,
        "ratio": ratio,
        "stage1_fired": percent(first),
        "stage2_fired": percent(second),
        "conflict_left_of_fired": percent(left[second]),
        "update_against_a_teacher": percent(against),
        "update_against_a_teacher_of_fired": percent(against[second]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    content = {
        "distribution": f"K = {TEACHERS}; directions of standard normal vectors in R^width; "
        "|g_0| = 1, |g_t| = ratio; random order",
        "draws": asked.draws,
        "seed": asked.seed,
        "rates": [
            rates(width, ratio, asked.draws, asked.seed)
            for width, ratio in itertools.product(WIDTHS, RATIOS)
        ],
    }
    write_result("projection_rates", content)
    print(json.dumps(content))


if __name__ == "__main__":
    main()
