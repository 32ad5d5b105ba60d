"""What `combine.refresh: R` costs in fidelity: its update beside the exact one, over a real run.

    python benchmarks/refresh.py [--max-steps N]

One run of the demo's recipe, exact at every step. At each step the gradients of all losses are at
hand, so what R = 2, 4, 8 and 16 would have made of them is known too: coefficients and λ of their
last exact step, each with running means of its own. Writes results/refresh.json; the last line of
output is the mean cosine per R as JSON. Steps that are exact under R are left out.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from provenance import write_result
from torch import Tensor

from drivekd.demo.run import arm_recipe
from drivekd.distill import gradients
from drivekd.distill import plan as plans
from drivekd.distill.order import Window, windows
from drivekd.distill.plan import Plan
from drivekd.distill.run import Run, prepare
from drivekd.distill.step import kept_factors, solve, step
from drivekd.files.progress import track
from drivekd.recipe import to_yaml
from study import OUT, POOL, worlds

EVERY = (2, 4, 8, 16)


@dataclass
class Shadow:
    """A run with kept coefficients that follows the exact one."""

    plan: Plan  # with its R
    memory: dict[str, Any] = field(default_factory=dict)  # of the weighting
    kept: dict[str, Any] = field(default_factory=dict)  # from its last exact step
    #: with the exact update, at the steps that are not exact
    cosines: list[float] = field(default_factory=list)


def follow(shadow: Shadow, run: Run, exact: Tensor, window: Window) -> None:
    """One step of a shadow, from the gradients that the exact step left in `run.unit`."""
    factors = kept_factors(shadow.plan, shadow.kept, run.unit.indices)
    if factors is None:
        _, left = solve(shadow.plan, run.unit, run.method, shadow.memory, window.orders[0])
        shadow.memory.update(left.memory)
        shadow.kept = dict(left.kept)
        return
    reading = gradients.read(run.unit)
    mine = gradients.combination(run.unit, reading, np.array(factors))
    shadow.cosines.append(float(torch.cosine_similarity(mine.double(), exact.double(), dim=0)))
    shadow.kept["age"] += 1


def measure(run: Run) -> dict[int, list[float]]:
    """Cosines per R over all steps of a plan."""
    recipe, plan = run.plan.recipe, run.plan
    shadows = {
        every: Shadow(
            replace(
                plan,
                recipe=recipe.model_copy(
                    update={"combine": recipe.combine.model_copy(update={"refresh": every})}
                ),
            )
        )
        for every in EVERY
    }
    order, total = plan.schedule.order, plan.schedule.total_steps
    for window in track(windows(order, 0, total), total=total):
        step(run, window)
        for shadow in shadows.values():
            follow(shadow, run, run.update, window)
    return {every: shadow.cosines for every, shadow in shadows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-steps", type=int, help="the demo's number by default")
    given = parser.parse_args()
    if given.max_steps is not None and given.max_steps < 2:
        parser.error(f"--max-steps: expected at least 2, got {given.max_steps}")
    torch.set_num_threads(1)
    changes = [f"data.train={json.dumps([str(worlds('student', POOL))])}"]
    changes += [] if given.max_steps is None else [f"train.max_steps={given.max_steps}"]
    recipe = arm_recipe("drivekd", OUT / "refresh", changes)
    plan = plans.build(recipe)
    plans.fill_caches(plan)
    found = {
        str(every): {
            "mean": round(float(np.mean(cosines)), 4),
            "5th percentile": round(float(np.percentile(cosines, 5)), 4),
            "least": round(min(cosines), 4),
            "steps": len(cosines),
        }
        for every, cosines in measure(prepare(plan)).items()
    }
    name = "refresh" if given.max_steps is None else "refresh_quick"
    print(write_result(name, {"cosines": found, "recipe": to_yaml(recipe)}))
    print(json.dumps({every: row["mean"] for every, row in found.items()}))


if __name__ == "__main__":
    main()
