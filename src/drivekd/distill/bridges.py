"""Bridges: the learned linear maps from the student's width to a teacher's, for `hidden` signals.

They belong to the loss, not to the student: the final model does not contain them. Each learns
from its own term alone, beside the student's update: its gradient is in no Gram matrix, is not
projected and not clipped. [ours]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from drivekd.distill import parallel
from drivekd.distill.order import stream
from drivekd.distill.parallel import ALONE, Ranks
from drivekd.distill.teacher import Term


@dataclass(frozen=True)
class Bridges:
    """All bridges of a run.

    Attributes:
        layers: per capability with signal `hidden` and per student layer (from 0), its map.
        carried: Σ Π of this process's samples of the current step that have the term, per
            capability.
    """

    layers: Mapping[str, Mapping[int, nn.Linear]]
    carried: dict[str, float] = field(default_factory=dict)


def build(
    terms: Iterable[Term],
    teacher_widths: Mapping[str, int],
    width: int,
    *,
    seed: int,
    device: torch.device,
) -> Bridges:
    """One map without bias per `hidden` term and student layer, at the start of a run.

    Weights are uniform in ±1/√width, as `nn.Linear` draws them, from the stream
    `(seed, "hidden/<capability>", layer)`: adding a capability moves no other's draw.

    Args:
        terms: of all capabilities.
        teacher_widths: width of each capability's teacher.
        width: of the student.
        seed: of the run.
        device: of the student.
    """
    layers: dict[str, dict[int, nn.Linear]] = {}
    for term in terms:
        if term.signal == "hidden":
            name, rows = term.capability, teacher_widths[term.capability]
            layers[name] = {n: _bridge(seed, name, n, (rows, width), device) for n in term.matches}
    return Bridges(layers)


def _bridge(
    seed: int, name: str, layer: int, shape: tuple[int, int], device: torch.device
) -> nn.Linear:
    bound = 1 / math.sqrt(shape[1])
    drawn = stream(seed, f"hidden/{name}", layer).uniform(-bound, bound, shape)
    with torch.device("meta"):
        bridge = nn.Linear(shape[1], shape[0], bias=False)
    bridge.weight = nn.Parameter(torch.tensor(drawn, dtype=torch.float32, device=device))
    return bridge


def parameters(bridges: Bridges) -> dict[str, Tensor]:
    """Name (capability and layer from 1) to weight [teacher's width, student's width]."""
    return {
        f"{name}.layer{layer + 1}": bridge.weight
        for name, layers in bridges.layers.items()
        for layer, bridge in layers.items()
    }


def clear(bridges: Bridges) -> None:
    """Forget the gradients of the last step."""
    bridges.carried.clear()
    for weight in parameters(bridges).values():
        weight.grad = torch.zeros_like(weight)


def collect(bridges: Bridges, name: str, total: Tensor, carried: float) -> None:
    """Add the gradient of one batch; the graph of the loss is kept.

    Args:
        bridges: those of the run.
        name: a capability that has bridges.
        total: Σ_b Π L_b of its term over the batch.
        carried: Σ_b Π over the samples that have the term.
    """
    weights = [bridge.weight for bridge in bridges.layers[name].values()]
    found = torch.autograd.grad(total, weights, retain_graph=True)
    for weight, gradient in zip(weights, found, strict=True):
        assert weight.grad is not None
        weight.grad.add_(gradient)
    bridges.carried[name] = bridges.carried.get(name, 0.0) + carried


def settle(bridges: Bridges, ranks: Ranks = ALONE) -> None:
    """Turn sums into gradients of the mean loss over carriers, Σ Π ∇L / Σ Π; none without any.

    Both sums are over the samples of all processes.

    Raises:
        RuntimeError: a gradient is not finite.
    """
    carriers = _summed(bridges, ranks)
    for name, layers in bridges.layers.items():
        carried = carriers[name]
        for layer, bridge in layers.items():
            gradient = bridge.weight.grad
            if gradient is None or carried == 0:
                bridge.weight.grad = None  # the optimizer leaves it and its moments alone
            elif not bool(gradient.div_(carried).isfinite().all()):
                raise RuntimeError(
                    f"the gradient of the learned map of {name}, layer {layer + 1}, is not a "
                    f"finite number although its loss is; nothing was updated. Lower "
                    f"train.learning_rate or look at these samples"
                )


def _summed(bridges: Bridges, ranks: Ranks) -> dict[str, float]:
    """Sum gradients and Σ Π over processes; returns Σ Π per capability."""
    carried = [bridges.carried.get(name, 0.0) for name in bridges.layers]
    if ranks.size == 1 or not carried:
        return dict(zip(bridges.layers, carried, strict=True))
    weights = parameters(bridges).values()
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    total = torch.tensor(carried, dtype=torch.float64, device=ranks.device)
    parallel.sum_(ranks, [total, *gradients])
    return dict(zip(bridges.layers, total.tolist(), strict=True))
