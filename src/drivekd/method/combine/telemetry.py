"""What the gradients of a unit looked like and what was made of them, named for the log.

Everything is read from the `Solution`; nothing is solved here. What is undefined, such as a cosine
with a zero gradient, is left out: a quantity that did not occur is a missing key.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from drivekd.method.combine.projection import Matrix, Solution, Stage1, Stage2, checked


def telemetry(
    solution: Solution,
    teachers: Sequence[str],
    anchors: Sequence[str] = ("ce",),
    rows: Sequence[str] | None = None,
) -> dict[str, float]:
    """Describe a unit for the log [ours].

    `grad/norm/NAME`; `grad/cos/A_B` for every pair with two non-zero norms, `ce` first;
    `grad/ce_multiplier` = a_0 (with an anchor per capability their mean, and
    `grad/ce_multiplier/NAME`); `grad/update_dot_ce` = ⟨U,g_0⟩/‖g_0‖²; with teachers
    `grad/conflict_rate` = share of them with ⟨g_t,g_0⟩ < 0.

    With stage 1: `grad/stage1_rate` = share of teachers where it fired, `grad/stage1_removed/NAME`
    = 1 − ‖f_t‖/‖g_t‖. With stage 2 and two rows: `grad/stage2_rate` = share of ordered pairs where
    it fired, `grad/stage2_removed/NAME` = ‖m̃_i − m_i‖/‖m_i‖, `grad/residual_conflict` = share of
    i ≠ j with ⟨m̃_i,m_j⟩ < 0 all the same.

    Args:
        solution: of weighted gradients, the anchors' rows first.
        teachers: names of the K active teachers.
        anchors: names of the cross-entropy's rows.
        rows: names of the rows of stage 2; by default the teachers.
    """
    G, a, A = checked(solution.gram), solution.coefficients, len(anchors)
    if len(G) != A + len(teachers):
        raise ValueError(f"telemetry: Gram matrix of {len(G)} rows for teachers {list(teachers)}")
    pooled = pool(G, len(teachers))
    names, lengths = ("ce", *teachers), np.sqrt(np.diag(pooled).clip(0.0))
    squares = np.diag(pool(np.asarray(solution.gram, dtype=np.float64), len(teachers))).tolist()
    values = {f"grad/norm/{name}": each**0.5 for name, each in zip(names, squares, strict=True)}
    values |= {
        f"grad/cos/{names[i]}_{names[j]}": float(pooled[i, j] / (lengths[i] * lengths[j]))
        for i, j in itertools.combinations(range(len(pooled)), 2)
        if lengths[i] > 0 and lengths[j] > 0
    }
    values["grad/ce_multiplier"] = float(a[:A].mean())
    if tuple(anchors) != ("ce",):
        values |= {f"grad/ce_multiplier/{n}": float(v) for n, v in zip(anchors, a, strict=False)}
    if pooled[0, 0] > 0:
        values["grad/update_dot_ce"] = float(a @ G[:, :A].sum(axis=1) / pooled[0, 0])
    if teachers:
        values["grad/conflict_rate"] = float((pooled[1:, 0] < 0).mean())
    if solution.stage1 is not None:
        values |= _of_stage1(solution.stage1, teachers)
    if solution.stage2 is not None:
        values |= _of_stage2(solution.stage2, teachers if rows is None else rows)
    return values


def pool(gram: Matrix, teachers: int) -> Matrix:
    """The Gram matrix with the rows before the last `teachers` added up: g_0 = Σ_c g_0^c."""
    anchors = len(gram) - teachers
    if anchors == 1:
        return gram
    add = np.zeros((1 + teachers, len(gram)))
    add[0, :anchors] = 1.0
    add[1:, anchors:] = np.eye(teachers)
    pooled: Matrix = add @ gram @ add.T
    return pooled


def _of_stage1(stage: Stage1, teachers: Sequence[str]) -> dict[str, float]:
    if not teachers:
        return {}
    return {"grad/stage1_rate": float(stage.fired.mean())} | {
        f"grad/stage1_removed/{name}": 1.0 - float(np.sqrt(stage.after[t] / stage.before[t]))
        for t, name in enumerate(teachers)
        if stage.before[t] > 0
    }


def _of_stage2(stage: Stage2, names: Sequence[str]) -> dict[str, float]:
    """Where stage 2 acted, how far it moved each m_i, and which conflicts it left."""
    r, M = len(names), stage.M
    if r < 2:
        return {}
    dots = stage.projected @ M
    moved = stage.projected - np.eye(r)
    lengths = np.sqrt(np.einsum("ij,ij->i", dots, stage.projected).clip(0.0))
    # A dot that projection made zero is zero up to rounding only.
    left = dots < -1e-12 * np.outer(lengths, np.sqrt(np.diag(M).clip(0.0)))
    np.fill_diagonal(left, False)
    change = np.sqrt(np.einsum("ij,jk,ik->i", moved, M, moved).clip(0.0))
    return {
        "grad/stage2_rate": float(stage.fired.sum()) / (r * (r - 1)),
        "grad/residual_conflict": float(left.sum()) / (r * (r - 1)),
    } | {
        f"grad/stage2_removed/{name}": float(change[t] / np.sqrt(M[t, t]))
        for t, name in enumerate(names)
        if M[t, t] > 0
    }
