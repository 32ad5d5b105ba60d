"""From a unit's Gram matrices to coefficients, by the combiner that the recipe names.

Chosen once, before the loop. Each choice is a function of the weighted Gram matrices and of a
random order, and says for the log what it did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drivekd.method.combine import telemetry
from drivekd.method.combine.grouped import solve_grouped
from drivekd.method.combine.missing import skip_coefficients
from drivekd.method.combine.projection import COMBINERS, Combiner
from drivekd.method.combine.torchjd import PREFIX, torchjd_combiner
from drivekd.recipe import Recipe

Matrices = NDArray[np.float64]
Draw = Callable[[int], Sequence[int]]
"""A random permutation of so many things, drawn for this unit."""


@dataclass(frozen=True)
class Problem:
    """Weighted mean gradients g_0 … g_K of one unit, active teachers only.

    Attributes:
        grams: inner products on each set of parameters that the same rows reach [P, rows, rows].
        reached: the rows that reach each set [P, rows].
        anchors: capabilities of the cross-entropy's rows; () = one row for all samples.
        teachers: names of the K active teachers, the last rows.
    """

    grams: Matrices
    reached: NDArray[np.bool_]
    anchors: tuple[str, ...]
    teachers: tuple[str, ...]

    @property
    def whole(self) -> Matrices:
        """Inner products over all parameters, a row for each anchor [rows, rows]."""
        total: Matrices = self.grams.sum(axis=0)
        return total

    @property
    def pooled(self) -> Matrices:
        """Inner products over all parameters, with one row for the cross-entropy [1+K, 1+K]."""
        return pool(self.whole, len(self.teachers))


def pool(gram: Matrices, teachers: int) -> Matrices:
    """The Gram matrix with the rows before the last `teachers` added up: g_0 = Σ_c g_0^c."""
    add = np.zeros((1 + teachers, len(gram)))
    add[0, : len(gram) - teachers] = 1.0
    add[1:, len(gram) - teachers :] = np.eye(teachers)
    pooled: Matrices = add @ gram @ add.T
    return pooled


@dataclass(frozen=True)
class Combined:
    """Coefficients a [P, rows], and what is logged about them."""

    coefficients: Matrices
    logged: dict[str, float]


Combination = Callable[[Problem, Draw], Combined]


def combination_of(recipe: Recipe, groups: tuple[str, ...]) -> Combination:
    """What `combine` in a recipe asks for.

    Args:
        recipe: of the run.
        groups: capabilities whose cross-entropy has a row of its own.

    Raises:
        ValueError: it needs a package that is not installed, or names no weighting of it.
    """
    name, teachers = recipe.combine.combiner, tuple(recipe.capabilities)
    if name == "agp_grouped":
        return _grouped(tuple(dict.fromkeys((*teachers, *groups))))
    if recipe.combine.missing == "skip":
        return _skipping(recipe, teachers)
    return _whole(recipe, _combiner(name), teachers)


def _combiner(name: str) -> Combiner:
    return torchjd_combiner(name) if name.startswith(PREFIX) else COMBINERS[name]


def _order(
    recipe: Recipe, known: tuple[str, ...], active: tuple[str, ...], draw: Draw
) -> list[int]:
    """The unit's order over the active teachers, and over the anchor where that is ordered too."""
    name = recipe.combine.combiner
    if name == "pcgrad" or name.startswith(PREFIX):
        return restrict((None, *known), (None, *active), draw)
    return restrict(known, active, draw)


def restrict(known: Sequence[str | None], present: Sequence[str | None], draw: Draw) -> list[int]:
    """An order of what is present, drawn over all that is known: the absent move nothing."""
    rank = {name: i for i, name in enumerate(present)}
    return [rank[known[i]] for i in draw(len(known)) if known[i] in rank]


def _whole(recipe: Recipe, combiner: Combiner, known: tuple[str, ...]) -> Combination:
    """Flat vectors with zeros where a loss does not reach: the method proper."""
    settings = recipe.combine

    def combine(problem: Problem, draw: Draw) -> Combined:
        gram, teachers = problem.whole, problem.teachers
        order = _order(recipe, known, teachers, draw)
        a = combiner(gram, order, settings.ce_count).numpy()
        if settings.combiner in COMBINERS:
            logged = telemetry.telemetry(
                gram, teachers, order, combiner=settings.combiner, ce_count=settings.ce_count
            )
        else:
            dot = telemetry.ratio(a @ gram[0], gram[0, 0])
            logged = telemetry.of_gradients(gram, teachers, multiplier=float(a[0]), progress=dot)
        return Combined(np.tile(a, (len(problem.grams), 1)), logged)

    return combine


def _skipping(recipe: Recipe, known: tuple[str, ...]) -> Combination:
    """The release's vectors; a_0 is logged as its mean over parameters, weighted by g_0²."""
    settings = recipe.combine

    def combine(problem: Problem, draw: Draw) -> Combined:
        order = _order(recipe, known, problem.teachers, draw)
        a = skip_coefficients(
            problem.grams, problem.reached, settings.combiner, order, settings.ce_count
        )
        squares, total = problem.grams[:, 0, 0], problem.whole[0, 0]
        progress = telemetry.ratio(np.einsum("pi,pi->", a, problem.grams[:, 0]), total)
        count = telemetry.ratio(a[:, 0] @ squares, total)
        logged = telemetry.of_gradients(
            problem.whole, problem.teachers, multiplier=count, progress=progress
        )
        return Combined(a, logged)

    return combine


def _grouped(known: tuple[str, ...]) -> Combination:
    """An anchor per capability; `grad/ce_multiplier/NAME` for each, and their mean as a_0."""

    def combine(problem: Problem, draw: Draw) -> Combined:
        anchors, teachers = problem.anchors, problem.teachers
        if not anchors:  # plain cross-entropy has nobody to tell apart
            dot = telemetry.ratio(problem.whole[0, 0], problem.whole[0, 0])
            logged = telemetry.of_gradients(problem.whole, (), multiplier=1.0, progress=dot)
            return Combined(np.ones((len(problem.grams), 1)), logged)
        present = [name for name in known if name in {*anchors, *teachers}]
        number = {name: i for i, name in enumerate(present)}
        found = solve_grouped(
            problem.whole,
            [number[name] for name in anchors],
            [number[name] for name in teachers],
            restrict(known, present, draw),
        )
        a, each = found.coefficients, len(anchors)
        dot = telemetry.ratio(a @ problem.whole[:, :each].sum(axis=1), problem.pooled[0, 0])
        logged = telemetry.of_gradients(
            problem.pooled, teachers, multiplier=float(a[:each].mean()), progress=dot
        )
        logged |= {f"grad/ce_multiplier/{n}": float(v) for n, v in zip(anchors, a, strict=False)}
        logged |= telemetry.of_stage1(found.before, found.after, found.fired1, teachers)
        if teachers:
            logged |= telemetry.of_stage2(found.projected, found.M, found.fired2, present)
        return Combined(np.tile(a, (len(problem.grams), 1)), logged)

    return combine
