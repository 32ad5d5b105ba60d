"""TorchJD's weightings as combiners, and what is said where that package cannot help."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from drivekd.method.combine import torchjd
from drivekd.method.combine.projection import COMBINERS
from drivekd.method.combine.torchjd import torchjd_solver
from matrices import ORDINARY, conflicting, gram_of


@pytest.fixture(autouse=True)
def _installed(require_all: bool) -> None:
    if not require_all:
        pytest.importorskip("torchjd", reason="needs the extra torchjd")


@pytest.mark.parametrize("case", ORDINARY)
def test_our_pcgrad_is_theirs(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one order for all rows, which theirs draws anew for each."""
    from torchjd.aggregation import PCGradWeighting

    G = gram_of(ORDINARY[case])
    for order in itertools.islice(itertools.permutations(range(len(G))), 6):
        monkeypatch.setattr(torch, "randperm", lambda n, order=order: torch.tensor(order))
        theirs = PCGradWeighting()(torch.from_numpy(G))
        np.testing.assert_allclose(COMBINERS["pcgrad"](G, order), theirs, rtol=1e-9)


@pytest.mark.parametrize("name", ["MGDA", "AlignedMTL", "IMTLG", "PCGrad", "Krum(n_byzantine=1)"])
def test_coefficients_come_from_the_weighting(name: str) -> None:
    G = gram_of(conflicting(0, 3))
    before = torch.random.get_rng_state()
    solve = torchjd_solver(f"torchjd:{name}")
    a = solve(G, [2, 0, 1, 3], "per_capability").coefficients
    assert a.dtype == np.float64
    assert a.shape == (4,)
    assert np.array_equal(
        a, solve(G * 4.0**9, [2, 0, 1, 3], "once").coefficients
    )  # scale changes nothing
    assert torch.equal(torch.random.get_rng_state(), before)


def test_mgda_finds_the_shortest_vector_of_the_hull() -> None:
    g = conflicting(0, 3)
    a = torchjd_solver("torchjd:MGDA(epsilon=1e-9, max_iters=20000)")(
        gram_of(g), range(4), "once"
    ).coefficients
    update = a @ g
    assert float(a.sum()) == pytest.approx(1.0)
    assert (g @ update >= update @ update * (1 - 1e-3)).all()


def test_random_weightings_follow_the_order_alone() -> None:
    G, solve = gram_of(conflicting(1, 3)), torchjd_solver("torchjd:PCGrad")
    orders = list(itertools.permutations(range(4)))
    assert sorted({torchjd._rank(list(order)) for order in orders}) == list(range(24))
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append([tuple(solve(G, order, "once").coefficients.tolist()) for order in orders])
    assert found[0] == found[1]
    assert len(set(found[0])) > 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("MDGA", "did you mean MGDA"),
        ("Zebra", "there are AlignedMTL, CAGrad"),
        ("GradVac", "state of its own"),
        ("Krum", "n_byzantine"),
        ("MGDA(epsilom=1)", "epsilon=0.001"),
        ("MGDA(epsilon=-1)", "epsilon must be positive"),
        ("MGDA(0.1)", "expected torchjd:NAME or torchjd:NAME(key=number"),
        ("MGDA(epsilon=open('x'))", "expected torchjd:NAME"),
        ("MGDA(epsilon=1", "expected torchjd:NAME"),
    ],
)
def test_what_is_refused_in_one_line(name: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        torchjd_solver(f"torchjd:{name}")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_absent_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchjd, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"drivekd\[torchjd\]") as caught:
        torchjd_solver("torchjd:UPGrad")
    assert "\n" not in str(caught.value)


def test_what_a_weighting_needs_besides_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchjd._mixins.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"combine.combiner: torchjd:UPGrad: .*qpsolvers"):
        torchjd_solver("torchjd:UPGrad")


def test_weights_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        torchjd._finite("torchjd:X", torch.tensor([1.0, torch.nan]))
