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

from drivekd.distill.order import stream
from drivekd.distill.processes import parallel
from drivekd.distill.processes.parallel import ALONE, Ranks
from drivekd.distill.teachers.teacher import Term


@dataclass(frozen=True)
class Bridges:
    """All bridges of a run.

    Attributes:
        layers: per capability with signal `hidden` and per student layer (from 0), its map.
        carried: Σ Π of this process's samples of the current step that have the term, per
            capability.
        sums: gradients of this process's sums of the current step, by the names of `parameters`.
    """

    layers: Mapping[str, Mapping[int, nn.Linear]]
    carried: dict[str, float] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)


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
    return {k: w for name in bridges.layers for k, w in _of(bridges, name).items()}


def _of(bridges: Bridges, name: str) -> dict[str, Tensor]:
    """Those of one capability."""
    layers = bridges.layers[name].items()
    return {f"{name}.layer{layer + 1}": bridge.weight for layer, bridge in layers}


def clear(bridges: Bridges) -> None:
    """Forget the last step."""
    bridges.carried.clear()
    bridges.sums.clear()


def collect(bridges: Bridges, name: str, total: Tensor, carried: float) -> None:
    """Add the gradient of one batch; the graph of the loss is kept.

    Args:
        bridges: those of the run.
        name: a capability that has bridges.
        total: Σ_b Π L_b of its term over the batch.
        carried: Σ_b Π over the samples that have the term.
    """
    weights = _of(bridges, name)
    found = torch.autograd.grad(total, list(weights.values()), retain_graph=True)
    for key, gradient in zip(weights, found, strict=True):
        bridges.sums[key] = bridges.sums[key] + gradient if key in bridges.sums else gradient
    bridges.carried[name] = bridges.carried.get(name, 0.0) + carried


def settle(bridges: Bridges, ranks: Ranks = ALONE) -> None:
    """Set the gradients of the mean loss over carriers, Σ Π ∇L / Σ Π; none without any.

    Both sums are over the samples of all processes. Not in `weight.grad` before this: other
    backward passes may leave theirs there.

    Raises:
        RuntimeError: a gradient is not finite.
    """
    carried = _summed(bridges, ranks)
    given: dict[str, Tensor] = {}
    for name in bridges.layers:
        for key, weight in _of(bridges, name).items():
            weight.grad = None  # without carriers the optimizer leaves it and its moments alone
            if carried[name] > 0:
                weight.grad = given[key] = bridges.sums[key] / carried[name]
    _check_finite(given)


def _check_finite(gradients: Mapping[str, Tensor]) -> None:
    """Look at all of them at once: the host waits for the device a single time."""
    found = [gradient.isfinite().all() for gradient in gradients.values()]
    finite = torch.stack(found).tolist() if found else []
    for key in (key for key, good in zip(gradients, finite, strict=True) if not good):
        name, _, layer = key.rpartition(".layer")
        raise RuntimeError(
            f"the gradient of the learned map of {name}, layer {layer}, is not a finite number "
            f"although its loss is; nothing was updated. Lower train.learning_rate or look at "
            f"these samples"
        )


def _summed(bridges: Bridges, ranks: Ranks) -> dict[str, float]:
    """Sum gradients and Σ Π over processes; returns Σ Π per capability."""
    carried = [bridges.carried.get(name, 0.0) for name in bridges.layers]
    if ranks.size > 1 and carried:
        total = torch.tensor(carried, dtype=torch.float64, device=ranks.device)
        sums = {k: bridges.sums.get(k, torch.zeros_like(w)) for k, w in parameters(bridges).items()}
        parallel.sum_(ranks, [total, *sums.values()])
        bridges.sums.update(sums)
        carried = total.tolist()
    return dict(zip(bridges.layers, carried, strict=True))
