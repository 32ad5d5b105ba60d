"""How strongly each teacher pulls: the weights w_ce and λ_t in front of the losses.

Raw attention losses are 1e-7 … 1e-3 beside a cross-entropy of about 1, so numbers that fit one
layer or model fit no other; what counts is gradient norms. Each mode is made once, before the
loop, as a function of the unit's Gram matrix of unweighted gradients; what it remembers is a plain
dictionary that goes into checkpoints as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

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
    times its first value.

    Args:
        rho: ρ per teacher, the wanted ratio of its gradient to the cross-entropy's.
        w_ce: weight of the cross-entropy.
        decay: share of the old value in a running mean, in [0, 1).
        cap: largest growth of a λ.

    Raises:
        ValueError: at the first unit with a teacher that has no ρ, or with a gradient that is not
            finite.
    """

    def weigh(
        state: State, gram: Tensor, names: Sequence[str], shares: Sequence[float]
    ) -> tuple[Weights, State]:
        _check_names("rho", names, rho)
        ce, norms = gradient_norms(gram, names, shares)
        weak = _weak(ce, norms)
        strong = {name: norm for name, norm in norms.items() if name not in weak}
        state = _average(state, {"ce": ce, **_teacher_keys(strong)}, decay)
        means = _corrected(state, decay)
        first = dict(state["first"])
        weights = dict.fromkeys(names, 0.0)
        for name in strong:
            weight = rho[name] * w_ce * means["ce"] / means[f"teacher/{name}"]
            if weight > 0:
                weights[name] = min(weight, cap * first.setdefault(name, weight))
        return Weights(w_ce, weights, weak), {**state, "first": first}

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
    return {"first": {}, **state, "mean": mean, "units": units}


def _corrected(state: State, decay: float) -> dict[str, float]:
    """Running means without the pull of their start at zero."""
    return {
        name: mean / (1 - decay ** state["units"][name]) for name, mean in state["mean"].items()
    }


def online(
    static: Mapping[str, float],
    *,
    w_ce: float = 1.0,
    learning_rate: float = 0.025,
    every: int = 1,
    least_ce: float = 0.6,
) -> Weigh:
    """Weights that pull every loss's gradient norm towards its static share [release, repaired].

    With G_n = w_n ‖∇L_n‖ (Π left out) and p_n the shares of the static weights: every `every`
    units one Adam step on Σ_n |G_n − stopgrad(p_n Σ G)| over the parameters x_n of
    w_n = softplus(x_n), with norms averaged over the units in which the loss occurred; then w_ce
    is clamped to ≥ `least_ce` and the others are rescaled so that Σ w stays Σ static. A loss that
    did not occur since the last step takes no part in it [ours]. The objective is divided by Σ G,
    so that the step does not depend on the size of the losses [ours]. w_ce leaves at least a
    thousandth of Σ static to the others [ours].

    Args:
        static: starting weight per teacher; 0 stays 0.
        w_ce: starting weight of the cross-entropy.
        learning_rate: of the Adam step.
        every: units between steps.
        least_ce: the clamp.

    Raises:
        ValueError: the static weights leave no room above `least_ce`, or a teacher has none.
    """
    total = w_ce + sum(static.values())
    if total <= least_ce:
        raise ValueError(
            f"weighting online: the static weights add up to {total:g}, expected more than the "
            f"least weight of cross-entropy, {least_ce:g}; raise w_ce or a teacher's weight"
        )
    start = {"ce": w_ce, **_teacher_keys({n: w for n, w in static.items() if w > 0})}

    def weigh(
        state: State, gram: Tensor, names: Sequence[str], shares: Sequence[float]
    ) -> tuple[Weights, State]:
        _check_names("weighting.fixed (the static weights)", names, static)
        ce, norms = gradient_norms(gram, names, shares)
        state = _collect(state or _online_start(start), {"ce": ce, **_teacher_keys(norms)})
        if max(state["count"].values()) >= every:
            state = _online_step(state, start, learning_rate)
            state = {**state, "raw": _normalised(state["raw"], total, least_ce)}
        now = {name: softplus(raw) for name, raw in state["raw"].items()}
        found = {name: now.get(f"teacher/{name}", 0.0) for name in names}
        return Weights(now["ce"], found, _weak(ce, norms)), state

    return weigh


def _online_start(start: Mapping[str, float]) -> State:
    zeros = dict.fromkeys(start, 0.0)
    raw = {name: inverse_softplus(weight) for name, weight in start.items()}
    return {"raw": raw, **dict.fromkeys(("sum", "count", "m", "v", "t"), zeros)}


def _collect(state: State, norms: Mapping[str, float]) -> State:
    """Add the norms of one unit to the sums since the last step."""
    sums, counts = dict(state["sum"]), dict(state["count"])
    for name in norms.keys() & sums.keys():
        sums[name] += norms[name]
        counts[name] += 1
    return {**state, "sum": sums, "count": counts}


def _online_step(state: State, static: Mapping[str, float], learning_rate: float) -> State:
    """One Adam step of every loss that occurred, and empty sums for the next one."""
    mean = {name: state["sum"][name] / n for name, n in state["count"].items() if n > 0}
    now = {name: softplus(state["raw"][name]) for name in mean}
    total = sum(now[name] * mean[name] for name in mean)
    share = sum(static[name] for name in mean)
    raw, m, v, t = (dict(state[key]) for key in ("raw", "m", "v", "t"))
    for name, norm in mean.items() if total > 0 else ():
        above = now[name] * norm / total - static[name] / share
        slope = math.copysign(1.0, above) * norm / total if above != 0 else 0.0
        slope *= -math.expm1(-now[name])  # dw/dx = sigmoid(x) = 1 − e^(−w)
        t[name] += 1
        m[name] = 0.9 * m[name] + 0.1 * slope
        v[name] = 0.999 * v[name] + 0.001 * slope**2
        size = math.sqrt(v[name] / (1 - 0.999 ** t[name]))
        if size > 0:
            raw[name] -= learning_rate * m[name] / (1 - 0.9 ** t[name]) / size
    zeros = dict.fromkeys(state["sum"], 0.0)
    return {"raw": raw, "m": m, "v": v, "t": t, "sum": zeros, "count": zeros}


def _normalised(raw: Mapping[str, float], total: float, least_ce: float) -> dict[str, float]:
    """Parameters of the weights after clamping the cross-entropy's and rescaling the others."""
    weights = {name: softplus(x) for name, x in raw.items()}
    others = sum(weights.values()) - weights["ce"]
    if others == 0:
        return {name: inverse_softplus(total) for name in raw}
    ce = min(max(weights["ce"], least_ce), max(0.999 * total, least_ce))
    factor = (total - ce) / others
    new = {name: ce if name == "ce" else weight * factor for name, weight in weights.items()}
    return {name: inverse_softplus(weight) for name, weight in new.items()}


def softplus(x: float) -> float:
    """log(1 + eˣ), for any x."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def inverse_softplus(y: float) -> float:
    """Solve softplus(x) = y > 0: x = y + log(1 − e^(−y)), where log(eʸ − 1) would overflow."""
    if not y > 0:
        raise ValueError(f"inverse softplus: expected a positive number, got {y}")
    return y + math.log(-math.expm1(-y))


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
