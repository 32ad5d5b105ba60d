"""How strongly each teacher pulls: the weights w_ce and λ_t in front of the losses.

Raw attention losses are 1e-7 … 1e-3 beside a cross-entropy of about 1, so numbers that fit one
layer or model fit no other; what counts is gradient norms. Each mode is made once, before the
loop, as a function of the unit's Gram matrix of unweighted gradients; what it remembers is a plain
dictionary that goes into checkpoints as it is.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

logger = logging.getLogger(__name__)

FLOOR = 1e-12
"""A teacher whose mean gradient is below this share of ‖∇CE‖ is reported, not amplified."""

State = Mapping[str, Mapping[str, float]]
"""What a mode remembers between units; {} at the start of a run."""


@dataclass(frozen=True)
class Weights:
    """Weights of one unit.

    Attributes:
        ce: weight of the cross-entropy, w_ce.
        teachers: λ per teacher with carriers in the unit, in the order of the Gram matrix.
        weak: teachers whose gradient is too small to compute a weight from, or is zero. Under
            `grad_norm` their λ is 0: no teacher in this unit, and something to tell the user.
    """

    ce: float
    teachers: Mapping[str, float]
    weak: tuple[str, ...] = ()

    @property
    def active(self) -> tuple[str, ...]:
        """Teachers with λ ≠ 0: those that the projection sees."""
        return tuple(name for name, weight in self.teachers.items() if weight != 0)


Weigh = Callable[[State, Tensor, Sequence[str], Sequence[float]], tuple[Weights, State]]
"""f(state, gram, names, shares) → weights of this unit and the next state.

gram: inner products of ∇(1/N)Σ CE_b and, per teacher, ∇(1/N)Σ Π L_{t,b}, without w_ce and λ.
names: the K teachers with carriers in this unit, rows 1 … K.
shares: their π̄_t = (1/N) Σ Π[c_b,t] over the samples that have the term, > 0.
"""


def fixed(weights: Mapping[str, float], *, w_ce: float = 1.0) -> Weigh:
    """Plain numbers [release's form].

    Raises:
        ValueError: at the first unit with a teacher that has no number.
    """

    def weigh(
        state: State, gram: Tensor, names: Sequence[str], shares: Sequence[float]
    ) -> tuple[Weights, State]:
        _check_names("weighting.fixed", names, weights)
        ce, norms = gradient_norms(gram, names, shares)
        return Weights(w_ce, {name: weights[name] for name in names}, _weak(ce, norms)), state

    return weigh


def grad_norm(
    rho: Mapping[str, float], *, w_ce: float = 1.0, decay: float = 0.9, cap: float = 30.0
) -> Weigh:
    """λ_t = ρ_t · w_ce · EMA‖∇CE‖ / EMA‖u_t‖, so that ‖g_t‖ ≈ ρ_t π̄_t ‖g_0‖ [ours].

    u_t is the Π-weighted mean gradient of L_t over its carriers. Running means are bias-corrected;
    a teacher's is left alone in units where it has no carriers or is weak. λ_t never exceeds `cap`
    times its value at the teacher's unit number 1/(1−decay), when its running mean is full: a
    single first unit may be like no other. Reaching that limit is logged once a run.

    Args:
        rho: ρ per teacher, the wanted ratio of its gradient to the cross-entropy's.
        w_ce: weight of the cross-entropy.
        decay: share of the old value in a running mean, in [0, 1).
        cap: largest growth of a λ from there.

    Raises:
        ValueError: at the first unit with a teacher that has no ρ, or with a gradient that is not
            finite.
    """
    full = round(1 / (1 - decay))

    def weigh(
        state: State, gram: Tensor, names: Sequence[str], shares: Sequence[float]
    ) -> tuple[Weights, State]:
        _check_names("rho", names, rho)
        ce, norms = gradient_norms(gram, names, shares)
        weak = _weak(ce, norms)
        strong = {name: norm for name, norm in norms.items() if name not in weak}
        state = _average(state, {"ce": ce, **_teacher_keys(strong)}, decay)
        means = _corrected(state, decay)
        reference, capped = dict(state["reference"]), dict(state["capped"])
        weights = dict.fromkeys(names, 0.0)
        for name in strong:
            weight = rho[name] * w_ce * means["ce"] / means[f"teacher/{name}"]
            if weight > 0 and (name not in reference or state["units"][f"teacher/{name}"] <= full):
                reference[name] = weight
            weights[name] = min(weight, cap * reference.get(name, 0.0))
            if weights[name] < weight and name not in capped:
                capped[name] = 1.0
                logger.warning(
                    "weighting.cap: the weight of %s would be %.3g and stays at %g times %.3g; its "
                    "loss hardly moves the student any more", name, weight, cap, reference[name],
                )  # fmt: skip
        state = {**state, "reference": reference, "capped": capped}
        return Weights(w_ce, weights, weak), state

    return weigh


def _teacher_keys(norms: Mapping[str, float]) -> dict[str, float]:
    """Keys that no teacher's name can make equal to the cross-entropy's."""
    return {f"teacher/{name}": norm for name, norm in norms.items()}


def _average(state: State, values: Mapping[str, float], decay: float) -> State:
    """Bring the running means of these names up to date; others keep theirs."""
    mean, units = dict(state.get("mean", {})), dict(state.get("units", {}))
    for name, value in values.items():
        mean[name] = decay * mean.get(name, 0.0) + (1 - decay) * value
        units[name] = units.get(name, 0) + 1
    return {"reference": {}, "capped": {}, **state, "mean": mean, "units": units}


def _corrected(state: State, decay: float) -> dict[str, float]:
    """Running means without the pull of their start at zero."""
    return {
        name: mean / (1 - decay ** state["units"][name]) for name, mean in state["mean"].items()
    }


def gradient_norms(
    gram: Float[Tensor, "k k"], names: Sequence[str], shares: Sequence[float]
) -> tuple[float, dict[str, float]]:
    """‖∇CE‖, and ‖u_t‖ = √Ĝ_tt / π̄_t per teacher, from the unweighted Gram matrix [ours].

    Raises:
        ValueError: sizes do not match, a share is not positive, or a norm is not finite.
    """
    if not len(gram) - 1 == len(names) == len(shares):
        raise ValueError(
            f"weighting: Gram matrix of {len(gram)} rows, {len(names)} teachers, {len(shares)} "
            "shares; expected one row more than teachers"
        )
    squares = gram.detach().double().diagonal().tolist()
    if not all(math.isfinite(square) and square >= 0 for square in squares):
        raise ValueError(
            f"weighting: squared gradient norms {squares} of {['ce', *names]}, expected finite "
            "ones; stop before the update and look at this batch"
        )
    if not all(share > 0 for share in shares):
        raise ValueError(
            f"weighting: shares {dict(zip(names, shares, strict=True))}, expected positive ones; "
            "leave teachers without carriers out"
        )
    norms = [math.sqrt(square) for square in squares]
    return norms[0], {
        name: norm / share for name, norm, share in zip(names, norms[1:], shares, strict=True)
    }


def _weak(ce: float, norms: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(name for name, norm in norms.items() if norm <= FLOOR * ce)


def _check_names(what: str, names: Sequence[str], known: Mapping[str, float]) -> None:
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(
            f"{what}: no number for {', '.join(missing)}; there are {', '.join(known) or 'none'}"
        )
