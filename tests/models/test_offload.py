"""Visits to a device: whose weights are where, and that nothing is left of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from drivekd.models import offload
from drivekd.models.offload import rest, visiting

CPU = torch.device("cpu")


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What is carried anywhere, copied even where both ends are one device."""
    copies: list[Tensor] = []

    def copy(tensor: Tensor, device: torch.device) -> Tensor:
        copies.append(tensor.detach().clone().to(device))
        return copies[-1]

    monkeypatch.setattr(offload, "carried", copy)
    return copies


def model() -> nn.Sequential:
    """Two layers with one weight, and a module that replaces its buffer while it runs."""
    made = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    made[2].weight = made[0].weight
    return made.eval().requires_grad_(False)


def places(module: nn.Module) -> list[int]:
    return [parameter.data_ptr() for parameter in module.parameters()]


def test_weights_are_copied_one_way(carried: list[Tensor]) -> None:
    own = model()
    before, kept, states = places(own), [p.clone() for p in own.parameters()], own.state_dict()
    parameters = list(own.parameters())
    versions = [parameter._version for parameter in parameters]
    with visiting(own, CPU):
        assert not set(places(own)) & set(before)
        assert own[0].weight is own[2].weight
        assert len(carried) == len(before) + 3  # its three buffers
        own(torch.ones(2, 3))
    assert places(own) == before
    assert all(one is two for one, two in zip(own.parameters(), parameters, strict=True))
    assert all(torch.equal(p, k) for p, k in zip(own.parameters(), kept, strict=True))
    assert versions == [parameter._version for parameter in parameters]
    assert own.state_dict().keys() == states.keys()
    assert len(carried) == len(before) + 6


def test_a_buffer_that_changes_on_a_visit_stays_changed(carried: list[Tensor]) -> None:
    own = model()
    with visiting(own, CPU):
        own[1].running_mean.add_(1.0)
        own[1].register_buffer("running_var", torch.full((3,), 4.0))
    assert own[1].running_mean.tolist() == [1.0] * 3
    assert own[1].running_var.tolist() == [4.0] * 3


def test_a_failed_visit_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    own = model()
    before = places(own)
    with pytest.raises(ValueError, match="no"), visiting(own, CPU):
        raise ValueError("no")
    assert places(own) == before

    def full(tensor: Tensor, device: torch.device) -> Tensor:
        if tensor.ndim > 1:
            raise MemoryError
        return tensor.clone()

    monkeypatch.setattr(offload, "carried", full)
    with pytest.raises(MemoryError), visiting(own[1:], CPU):
        pass
    assert places(own) == before


def test_without_a_device_nothing_moves(carried: list[Tensor]) -> None:
    own = model()
    before = places(own)
    with visiting(own, None):
        assert places(own) == before
    assert not carried


def test_on_a_gpu_weights_come_and_go(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("needs DRIVEKD_TEST_DEVICE=cuda")
    own = nn.Linear(1024, 1024).to(device).requires_grad_(False)
    expected = own(torch.ones(1, 1024, device=device))
    rest(own)
    assert own.weight.device == CPU
    assert own.weight.is_pinned()
    left = torch.cuda.memory_allocated()
    for _ in range(2):
        with visiting(own, device):
            assert own.weight.device.type == "cuda"
            assert torch.cuda.memory_allocated() >= left + 4 * 1024 * 1024
            assert torch.equal(own(torch.ones(1, 1024, device=device)), expected)
        assert torch.cuda.memory_allocated() == left
    assert own.weight.is_pinned()
