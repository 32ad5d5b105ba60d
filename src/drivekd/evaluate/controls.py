"""What every score must be read beside: answers to black pictures, and the majority answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from drivekd.evaluate.pairs import Gap, Given, gaps, measured


@dataclass(frozen=True, slots=True)
class Beside:
    """One mean of a model with its controls.

    Attributes:
        measure: `accuracy` or `judged`.
        group: a capability, `average` or `everything`.
        controls: by the control's name, the model's mean, the control's and their difference over
            the questions that both have a score for.
    """

    measure: str
    group: str
    controls: Mapping[str, Gap]


def beside(model: Given, controls: Mapping[str, Given], *, seed: int = 0) -> list[Beside]:
    """The controls beside every mean that they have too; [] without controls.

    Args:
        model: its answers.
        controls: by name, `black` and `majority`.
        seed: of the bootstrap's draws.

    Raises:
        ValueError: answers and verdicts do not fit.
    """
    mine = measured(model)
    others = {name: measured(given) for name, given in controls.items()}
    found = []
    for measure, values in mine.items():
        gap = {
            name: gaps(values, other[measure], model.answers, seed=seed)
            for name, other in others.items()
            if measure in other
        }
        groups = dict.fromkeys(group for each in gap.values() for group in each)
        found += [
            Beside(
                measure, group, {name: each[group] for name, each in gap.items() if group in each}
            )
            for group in groups
        ]
    return found


def table(found: list[Beside]) -> str:
    """A line per mean for people: the model, each control, and what the model has more."""
    return "\n".join(
        f"{row.measure:<9} {row.group:<12}{next(iter(row.controls.values())).mine:6.1f}"
        + "".join(f"  {name} {_cell(gap):<32}" for name, gap in row.controls.items()).rstrip()
        for row in found
    )


def _cell(gap: Gap) -> str:
    interval = "" if gap.low is None else f" [{gap.low:+.1f}, {gap.high:+.1f}]"
    return f"{gap.theirs:.1f}: {gap.mean:+.1f}{interval}"
