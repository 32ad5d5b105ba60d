"""A student whose trained weights are spread over the processes, by PyTorch's `fully_shard`.

Each process keeps one piece of every trained weight, with the piece's gradients, update and
optimizer state; those are most of the memory. Everything else in this package sees plain tensors:
the pieces. Weights are put together when a step first needs them and stay so until it ends, because
a loss may start from a map inside a layer, where nothing would gather that layer's weights again.

Functions take `Shards`, or None where every process has the whole student, and then do the plain
thing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from drivekd.distill.processes.parallel import Ranks
from drivekd.models import vlm as vlms

T = TypeVar("T")


class Whole(nn.Module):
    """Runs any computation in place of a forward pass: what `fully_shard` gathers weights for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], T]) -> T:
        """The result of the computation; losses in it can be differentiated one by one."""
        return compute()


@dataclass(frozen=True)
class Shards:
    """A student in pieces.

    Attributes:
        whole: runs computations with the student's weights.
        parts: everything that gathers weights of its own: `whole` and the decoder's layers.
        weights: the trained parameters, spread along their first axis.
        pieces: what this process has of each, in the same memory.
        ranks: the processes.
    """

    whole: nn.Module
    parts: tuple[FSDPModule, ...]
    weights: tuple[DTensor, ...]
    pieces: tuple[nn.Parameter, ...]
    ranks: Ranks


def shard(student: vlms.Vlm, names: Sequence[str], ranks: Ranks) -> Shards:
    """Spread the trained parameters; frozen ones stay whole in every process.

    Args:
        student: changed in place.
        names: of the trained parameters.
        ranks: the processes.
    """
    model = student.model
    mesh = init_device_mesh(student.device.type, (ranks.size,))
    frozen = {parameter for parameter in model.parameters() if not parameter.requires_grad}
    whole = Whole(model)
    for part in (*vlms.decoder_layers(student), whole):
        fully_shard(part, mesh=mesh, reshard_after_forward=False, ignored_params=frozen)
    parts = tuple(part for part in whole.modules() if isinstance(part, FSDPModule))
    for part in parts:
        part.set_reshard_after_backward(False, recurse=False)
        # The sum over processes; by default it would be their mean.
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    weights: Any = tuple(model.get_parameter(name) for name in names)
    pieces = tuple(nn.Parameter(weight.detach().to_local()) for weight in weights)
    return Shards(whole, parts, weights, pieces, ranks)


def through(shards: Shards, compute: Callable[[], T]) -> T:
    """Run a computation that uses the student's weights; its losses are among its results."""
    result: T = shards.whole(compute)
    return result


def gradients(shards: Shards, total: Tensor, *, last: bool) -> Sequence[Tensor | None]:
    """This process's piece of the gradient of one loss, summed over all processes.

    They must all call this for the same losses: `torch.autograd.grad` does not know pieces, so each
    loss is a backward pass.

    Args:
        shards: the student's.
        total: the loss.
        last: whether the graph may be freed.

    Returns:
        One per trained weight; None for those that the loss does not reach.
    """
    total.backward(retain_graph=not last)
    found = [None if each.grad is None else _piece(each.grad) for each in shards.weights]
    for each in shards.weights:
        each.grad = None
    return found


def turns(shards: Shards | None, ranks: Ranks, batches: Sequence[T]) -> list[tuple[T, bool]]:
    """The batches that this process runs, and whether each is its own.

    With a student in pieces all processes run equally many: gathering weights and summing gradients
    takes all of them. One without a batch of its own runs the first of the window, with losses × 0.
    """
    own = [(batch, True) for batch in ranks.share(batches)]
    most = -(-len(batches) // ranks.size)
    return [*own, (batches[0], False)] if shards is not None and len(own) < most else own


def gather(shards: Shards | None) -> None:
    """Put the weights together, for computations that not all processes run equally often."""
    for part in () if shards is None else shards.parts:
        part.unshard()


def let_go(shards: Shards | None) -> None:
    """Let go of the gathered weights; the next step gathers what the optimizer made of them."""
    for each in () if shards is None else shards.parts:
        each.reshard()


# -------------------------------------------------------------------------------- checkpoints


def state_dict(shards: Shards | None, student: vlms.Vlm) -> dict[str, Tensor] | None:
    """The weights of a student in pieces, whole again; None where it holds them itself.

    All processes must call this; only the first gets the weights.
    """
    if shards is None:
        return None
    found: dict[str, Tensor] = dict(student.model.state_dict())
    whole = {id(each): _for_file(shards, each.full_tensor()) for each in shards.weights}
    for name, parameter in student.model.named_parameters(remove_duplicate=False):
        found[name] = whole.get(id(parameter), found[name])
    return found


def optimizer_state(shards: Shards | None, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state as without pieces.

    All processes must call this; only the first gets the state.
    """

    def full(weight: DTensor, piece: Tensor) -> Tensor:
        assert shards is not None
        return _for_file(shards, put_together(weight, piece))

    return _converted(shards, optimizer, optimizer.state_dict(), full)


def _for_file(shards: Shards, tensor: Tensor) -> Tensor:
    """On the host of the process that writes; the others need no memory for it."""
    return tensor.detach().cpu() if shards.ranks.first else tensor.new_empty(0)


def pieces_of_state(
    shards: Shards | None, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> dict[str, Any]:
    """Of the state of a checkpoint what belongs to this process's pieces."""

    def cut(weight: DTensor, full: Tensor) -> Tensor:
        there = full.to(weight.device)
        return _piece(distribute_tensor(there, weight.device_mesh, weight.placements))

    return _converted(shards, optimizer, state, cut)


def put_together(weight: DTensor, piece: Tensor) -> Tensor:
    """What the processes hold in pieces like those of a weight; all of them must call this."""
    spread = DTensor.from_local(
        piece,
        weight.device_mesh,
        weight.placements,
        run_check=False,
        shape=weight.shape,
        stride=weight.stride(),
    )
    return spread.full_tensor()


def _converted(
    shards: Shards | None,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    convert: Callable[[DTensor, Tensor], Tensor],
) -> dict[str, Any]:
    """A state with the running means of every piece, or of every whole weight, converted."""
    if shards is None:
        return dict(state)
    weights = {id(p): w for p, w in zip(shards.pieces, shards.weights, strict=True)}
    entries = dict(state["state"])
    for number, parameter in enumerate(_parameters(optimizer)):
        if id(parameter) in weights and number in entries:
            weight = weights[id(parameter)]
            entries[number] = {
                name: convert(weight, value) if name in ("exp_avg", "exp_avg_sq") else value
                for name, value in entries[number].items()
            }
    return {**state, "state": entries}


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """In the order in which a state numbers them."""
    for group in optimizer.param_groups:
        yield from group["params"]


def _piece(tensor: Any) -> Tensor:
    local: Tensor = tensor.to_local()
    return local
