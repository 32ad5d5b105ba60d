"""Every row of the paper's ablation tables on the embedded world, on validation scenes.

    python benchmarks/ablation.py --seeds 3

An arm is a shipped recipe (recipes/ablations), some at a second ρ: below 3, where the second stage
of AGP cannot fire, and above. A seed draws training scenes, data order and projection order; all
arms of a seed share the scenes, their order, the steps and the start. Each arm is compared with
cross-entropy and with AGP: paired t over seeds, and over scenes and seeds together.
Writes results/ablation.json and docs/pictures/ablation.png. A second call continues.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from provenance import write_result

from drivekd.data.sample import CAPABILITIES
from drivekd.demo.run import arm_recipe
from drivekd.evaluate.answers.answer import Answer
from drivekd.evaluate.pairs import gaps_of_seeds
from drivekd.evaluate.score import score
from drivekd.recipe import to_yaml
from study import OUT, VALIDATION, brief, compare, job, run_jobs, worlds

PARTS = (*CAPABILITIES, "average")
SIGNALS = (
    "ce_only",
    "kl",
    "hidden",
    "full_1_pen",
    "text_to_vision_everywhere",
    "swapped_layers",
    "cosine",
    "single_perception",
    "single_reasoning",
    "single_planning",
    "full_everywhere",
    "mismatched",
)
COMBINERS = ("sum", "sum_ceK", "pcgrad", "pcgrad_caps", "stage1_only", "drivekd", "agp_once")
LOW = 2.0
"""A ρ at which the second stage of AGP cannot fire; the recipes have one at which it can."""

SEEDS = 3
PICTURE = Path("docs/pictures/ablation.png")


def arms() -> dict[str, tuple[str, list[str]]]:
    """Name of each arm to its recipe and the changes of it."""
    low = [f"capabilities.{name}.rho={LOW}" for name in CAPABILITIES]
    plain = {name: (name, []) for name in (*SIGNALS, *COMBINERS)}
    plain["refresh8"] = ("drivekd", ["combine.refresh=8"])
    return plain | {f"{name}-rho{LOW:g}": (name, low) for name in COMBINERS}


def pairs() -> list[tuple[str, str]]:
    """What is compared: each arm with cross-entropy and with AGP, combiners at their own ρ.

    Projection counts cross-entropy K times, so `sum_ceK` is what it is held against.
    """
    found = [(name, "ce_only") for name in arms() if name != "ce_only"]
    for end in ("", f"-rho{LOW:g}"):
        found += [(f"{name}{end}", f"sum_ceK{end}") for name in COMBINERS if name != "sum_ceK"]
        found += [(f"{name}{end}", f"drivekd{end}") for name in COMBINERS if name != "drivekd"]
    rest = (*(name for name in SIGNALS if name != "ce_only"), "refresh8", f"drivekd-rho{LOW:g}")
    return found + [(name, "drivekd") for name in rest]


def over_scenes(
    found: Mapping[str, Sequence[Answer]], one: str, other: str, seeds: Sequence[int]
) -> dict[str, dict[str, float | None]]:
    """One arm minus another, with errors over scenes and seeds."""
    mine, theirs = ([found[f"{arm}/{seed}"] for seed in seeds] for arm in (one, other))
    return {
        f"{one} - {other}, {part}": {
            name: None if (value := getattr(difference, name)) is None else round(value, 2)
            for name in ("mean", "low", "high", "p", "scenes")
        }
        for part, difference in gaps_of_seeds(mine, theirs).items()
    }


def draw(scores: Mapping[str, Mapping[str, float]], seeds: Sequence[int], path: Path) -> None:
    """Percent right of every arm, a dot per seed and a bar at their mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(reversed(arms()))
    figure, axes = pyplot.subplots(
        1, len(PARTS), figsize=(13, 0.26 * len(names) + 1.2), sharey=True
    )
    for axis, part in zip(axes, PARTS, strict=True):
        for place, name in enumerate(names):
            values = [scores[f"{name}/{seed}"][part] for seed in seeds]
            colour = "tab:red" if name.startswith("drivekd") else "tab:blue"
            axis.plot(values, [place] * len(values), ".", color=colour, alpha=0.5)
            axis.plot(sum(values) / len(values), place, "|", color=colour, markersize=13)
        for name, style in (("ce_only", ":"), ("drivekd", "-")):
            mean = sum(scores[f"{name}/{seed}"][part] for seed in seeds) / len(seeds)
            axis.axvline(mean, color="grey", linewidth=0.8, linestyle=style)
        axis.set_title(part)
        axis.set_xlabel("right [%]")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), names)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--max-steps", type=int, help="optimizer steps of every arm")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    if given.seeds < 2:
        parser.error(f"--seeds: expected at least 2, got {given.seeds}")
    seeds, scenes = range(given.seeds), worlds("val", VALIDATION)
    steps = [] if given.max_steps is None else [f"train.max_steps={given.max_steps}"]
    jobs = [
        job(f"ablation{given.max_steps or ''}/{name}/{seed}", arm, seed, scenes, [*changes, *steps])
        for seed, (name, (arm, changes)) in itertools.product(seeds, arms().items())
    ]
    answered = run_jobs(jobs, given.workers)
    found = {name.partition("/")[2]: each for name, each in answered.items()}
    scores = {name: brief(score(each)) for name, each in found.items()}
    compared: dict[str, Any] = {}
    for one, other in pairs():
        compared |= over_scenes(found, one, other, seeds)
    content = {
        "scores": scores,
        "paired": compare(scores, pairs(), seeds),
        "scenes": compared,
        "seeds": list(seeds),
        "recipe": to_yaml(arm_recipe("drivekd", OUT, steps)),
    }
    if steps or given.seeds < SEEDS:  # a quick look replaces nothing that is published
        print(write_result("ablation_quick", content))
        return
    draw(scores, seeds, PICTURE)
    print(write_result("ablation", content))


if __name__ == "__main__":
    main()
