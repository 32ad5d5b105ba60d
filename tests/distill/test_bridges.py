"""The learned maps of hidden signals: how they start, what they learn from, how they are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from drivekd.distill.saving import checkpoint
from drivekd.distill.teachers import bridges
from drivekd.distill.teachers.bridges import Bridges
from drivekd.distill.teachers.teacher import Term


def term(name: str, signal: str = "hidden", layers: tuple[int, ...] = (0, 2)) -> Term:
    matches = {layer: [layer] for layer in layers}
    return Term(name, signal, matches, "mse", False, 1.0)  # type: ignore[arg-type]


def made(*terms: Term, seed: int = 7) -> Bridges:
    widths = dict.fromkeys((each.capability for each in terms), 11)
    return bridges.build(terms, widths, 5, seed=seed, device=torch.device("cpu"))


def test_only_hidden_terms_have_them_one_per_layer() -> None:
    found = bridges.parameters(made(term("a"), term("b", "full"), term("c", layers=(1,))))
    assert {name: tuple(weight.shape) for name, weight in found.items()} == {
        "a.layer1": (11, 5),
        "a.layer3": (11, 5),
        "c.layer2": (11, 5),
    }
    assert all(weight.dtype == torch.float32 for weight in found.values())


def test_their_start_follows_from_seed_name_and_layer_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = bridges.parameters(made(term("a")))
    assert torch.equal(torch.get_rng_state(), state)
    again = bridges.parameters(made(term("b"), term("a")))
    other = bridges.parameters(made(term("a"), seed=8))
    for name, weight in first.items():
        assert torch.equal(weight, again[name])
        assert not torch.equal(weight, other[name])
        assert float(weight.detach().abs().max()) <= 5**-0.5
    assert not torch.equal(first["a.layer1"], first["a.layer3"])
    assert not torch.equal(first["a.layer1"], again["b.layer1"])


def test_a_gradient_is_the_sum_over_batches_by_the_share_they_carry() -> None:
    found = made(term("a", layers=(0,)), term("idle", layers=(0,)))
    weight = found.layers["a"][0].weight
    bridges.clear(found)
    for factor, share in ((2.0, 0.5), (3.0, 1.5)):
        bridges.collect(found, "a", factor * weight.sum(), share)
    bridges.settle(found)
    torch.testing.assert_close(weight.grad, torch.full((11, 5), 5.0 / 2.0))
    assert found.layers["idle"][0].weight.grad is None  # its moments are left alone
    bridges.clear(found)
    bridges.settle(found)
    assert weight.grad is None


def test_a_gradient_that_is_no_number_is_named() -> None:
    found = made(term("a"))
    bridges.clear(found)
    weight = found.layers["a"][2].weight
    bridges.collect(found, "a", (found.layers["a"][0].weight.sum() + weight.sum()) * 1e30, 1e-30)
    with pytest.raises(RuntimeError, match=r"a, layer 1, .*finite"):
        bridges.settle(found)


def test_what_a_checkpoint_lacks_or_has_otherwise_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    found = bridges.parameters(made(term("a")))
    checkpoint.read_bridges(tmp_path, {})
    with pytest.raises(ValueError, match=r"bridges\.safetensors"):
        checkpoint.read_bridges(tmp_path, found)
    (tmp_path / checkpoint.BRIDGES).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"bridges\.safetensors"):
        checkpoint.read_bridges(tmp_path, found)
    save_file({"a.layer1": torch.ones(11, 5)}, tmp_path / checkpoint.BRIDGES)
    with pytest.raises(ValueError, match=r"'a.layer3': \(11, 5\)"):
        checkpoint.read_bridges(tmp_path, found)
    save_file({name: torch.ones(11, 5) for name in found}, tmp_path / checkpoint.BRIDGES)
    checkpoint.read_bridges(tmp_path, found)
    assert all(bool((weight == 1).all()) for weight in found.values())
