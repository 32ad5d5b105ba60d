"""Weights of the losses: the formula, its memory, and what it refuses to amplify."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from drivekd.method.combine.weighting import (
    State,
    Weigh,
    Weights,
    fixed,
    grad_norm,
    gradient_norms,
)

RHO = {"perception": 5.4, "reasoning": 2.0, "planning": 10.0}
NAMES = tuple(RHO)


def scaled(gram: Tensor, lengths: Sequence[float]) -> Tensor:
    """G = D Ĝ D."""
    d = torch.tensor(lengths, dtype=torch.float64)
    return d[:, None] * gram * d


def diagonal(weights: Weights) -> list[float]:
    """D: w_ce, then λ."""
    return [weights.ce, *weights.teachers.values()]


def gram_with(ce: float, norms: Sequence[float], shares: Sequence[float]) -> Tensor:
    """Gram matrix of the unit's gradients when the mean gradients u_t have these norms."""
    directions = torch.nn.functional.normalize(torch.randn(1 + len(norms), 7).double(), dim=1)
    lengths = [ce, *(norm * share for norm, share in zip(norms, shares, strict=True))]
    return scaled(directions @ directions.T, lengths)


def run(weigh: Weigh, units: Sequence[tuple[float, Mapping[str, float]]]) -> list[Weights]:
    """Weights of a sequence of units (‖∇CE‖, ‖u_t‖ per active teacher), shares 1/3."""
    state: State = {}
    found = []
    for ce, norms in units:
        shares = [1 / 3] * len(norms)
        weights, state = weigh(state, gram_with(ce, [*norms.values()], shares), [*norms], shares)
        found.append(weights)
    return found


def test_norms_are_those_of_the_mean_gradient_over_carriers() -> None:
    """Two of four samples carry the teacher, with Π .8 and .1: u = (.8 a + .1 b)/.9, π̄ = .9/4."""
    a, b, ce = torch.randn(3, 11, dtype=torch.float64)
    rows = torch.stack([ce, (0.8 * a + 0.1 * b) / 4])
    got_ce, norms = gradient_norms(rows @ rows.T, ["planning"], [0.9 / 4])
    assert got_ce == pytest.approx(float(ce.norm()))
    assert norms["planning"] == pytest.approx(float(((0.8 * a + 0.1 * b) / 0.9).norm()))


def test_fixed_gives_the_numbers_of_the_active_teachers() -> None:
    weigh = fixed({"perception": 3.0, "reasoning": 0.0, "planning": 7.0}, w_ce=0.5)
    (weights,) = run(weigh, [(1.0, {"reasoning": 1.0, "planning": 1e-20})])
    assert diagonal(weights) == [0.5, 0.0, 7.0]
    assert weights.active == ("planning",)
    assert weights.weak == ("planning",)


def test_weighted_gradients_have_the_wanted_ratio() -> None:
    """‖g_t‖ = ρ_t π̄_t ‖g_0‖ in the first unit, whatever the raw sizes, w_ce and Π are."""
    shares = [0.5, 0.2, 0.3]
    raw = gram_with(3.0, [1e-7, 1e-3, 40.0], shares)
    weights, _ = grad_norm(RHO, w_ce=2.0)({}, raw, NAMES, shares)
    norms = scaled(raw, diagonal(weights)).diagonal().sqrt()
    for t, name in enumerate(NAMES):
        assert norms[1 + t] == pytest.approx(float(RHO[name] * shares[t] * norms[0]))
    assert weights.ce == 2.0
    assert weights.weak == ()


def test_running_means_are_bias_corrected_and_skip_inactive_units() -> None:
    ce = [1.0, 3.0, 2.0]
    units = [
        (ce[0], {"perception": 4.0, "planning": 2.0}),
        (ce[1], {"perception": 8.0}),
        (ce[2], {"perception": 2.0, "planning": 6.0}),
    ]
    found = run(grad_norm(RHO, decay=0.9), units)

    def mean(values: Sequence[float]) -> float:
        weights = [0.9 ** (len(values) - 1 - i) for i in range(len(values))]
        pairs = zip(weights, values, strict=True)
        return sum(w * v for w, v in pairs) / sum(weights)

    assert found[0].teachers["planning"] == pytest.approx(10.0 * 1.0 / 2.0)
    assert list(found[1].teachers) == ["perception"]
    assert found[1].teachers["perception"] == pytest.approx(5.4 * mean(ce[:2]) / mean([4.0, 8.0]))
    assert found[2].teachers["perception"] == pytest.approx(5.4 * mean(ce) / mean([4.0, 8.0, 2.0]))
    assert found[2].teachers["planning"] == pytest.approx(10.0 * mean(ce) / mean([2.0, 6.0]))


def test_a_lambda_grows_to_cap_times_its_first_value_and_comes_back() -> None:
    units = [(1.0, {"planning": norm}) for norm in (1.0, 1e-3, 1e-6, 1e-8, 1.0)]
    found = [w.teachers["planning"] for w in run(grad_norm(RHO, decay=0.0, cap=30.0), units)]
    assert found == pytest.approx([10.0, 300.0, 300.0, 300.0, 10.0])


@pytest.mark.parametrize("norm", [0.0, 1e-13, 1e-12])
def test_a_signal_that_weak_is_reported_and_not_amplified(norm: float) -> None:
    units = [(1.0, {"planning": value}) for value in (1.0, norm, 1.0)]
    first, weak, after = run(grad_norm(RHO), units)
    assert weak.weak == ("planning",)
    assert weak.teachers == {"planning": 0.0}
    assert weak.active == ()
    assert after.weak == ()
    assert after.teachers["planning"] == pytest.approx(first.teachers["planning"])


def test_a_teacher_weak_from_the_start_gets_its_first_value_later() -> None:
    first, later = run(grad_norm(RHO), [(1.0, {"planning": 0.0}), (1.0, {"planning": 2.0})])
    assert first.weak == ("planning",)
    assert later.teachers["planning"] == pytest.approx(5.0)


def test_without_a_cross_entropy_gradient_nothing_is_pinned_to_zero() -> None:
    first, later = run(grad_norm(RHO), [(0.0, {"planning": 1.0}), (1.0, {"planning": 1.0})])
    assert first.teachers == {"planning": 0.0}
    assert later.teachers["planning"] > 0


def test_one_first_unit_that_is_like_no_other_ties_no_lambda() -> None:
    """The reference is λ once the running mean is full, after 1/(1−decay) = 4 units."""
    units = [(1.0, {"planning": norm}) for norm in (1e6, *[1.0] * 30, 1e-9)]
    found = [w.teachers["planning"] for w in run(grad_norm(RHO, decay=0.75, cap=30.0), units)]
    assert found[-2] == pytest.approx(10.0, rel=0.2 + 1e6 * 0.75**30)
    assert found[-1] < 30.0 * 10.0


def test_a_cap_that_binds_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    units = [(1.0, {"planning": norm}) for norm in (1.0, 1e-3, 1e-6, 1e-8, 1.0, 1e-9)]
    run(grad_norm(RHO, decay=0.0, cap=30.0), units)
    (record,) = caplog.records
    assert "weighting.cap" in record.getMessage()
    assert "planning" in record.getMessage()


def test_state_goes_through_json_and_is_never_changed_in_place() -> None:
    """A run resumed from its saved state gives the same bits as an uninterrupted one."""
    weigh = grad_norm(RHO)
    units = [([1 + i % 3, 2.0, 3.0 - i / 5], [0.5, 0.2, 0.3]) for i in range(11)]
    grams = [gram_with(1 + i / 7, norms, shares) for i, (norms, shares) in enumerate(units)]
    whole: State = {}
    resumed: State = {}
    for raw, (_, shares) in zip(grams, units, strict=True):
        kept = json.dumps(whole)
        a, following = weigh(whole, raw, NAMES, shares)
        assert json.dumps(whole) == kept
        b, resumed = weigh(json.loads(json.dumps(resumed)), raw, NAMES, shares)
        assert a == b
        whole = following
    assert whole == resumed


def test_what_is_refused() -> None:
    raw = gram_with(1.0, [1.0], [0.5])
    with pytest.raises(ValueError, match=r"rho: .*braking.*perception"):
        grad_norm(RHO)({}, raw, ["braking"], [0.5])
    with pytest.raises(ValueError, match=r"weighting\.fixed: .*braking"):
        fixed({})({}, raw, ["braking"], [0.5])
    with pytest.raises(ValueError, match="row"):
        grad_norm(RHO)({}, raw, NAMES, [0.5])
    with pytest.raises(ValueError, match="carriers"):
        grad_norm(RHO)({}, raw, ["planning"], [0.0])
    with pytest.raises(ValueError, match="finite"):
        grad_norm(RHO)({}, raw * math.nan, ["planning"], [0.5])
