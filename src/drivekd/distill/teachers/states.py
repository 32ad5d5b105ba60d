"""Output states of chosen decoder layers, recorded while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_TAP = "_drivekd_states"


@contextmanager
def capture(layers: nn.ModuleList, wanted: Collection[int]) -> Iterator[dict[int, Tensor]]:
    """Record what leaves chosen layers during one forward pass.

    Each is [B, n, d] as the next layer (or the final norm) receives it, with its graph where
    gradients are enabled. With activation checkpointing the backward pass must run inside the
    block too, because the layers run again then; the states of the first run are kept.

    Args:
        layers: the decoder layers of a model.
        wanted: 0-based layers.

    Yields:
        Layer to states, filled while the model runs.

    Raises:
        ValueError: a layer does not exist, is being captured already, ran twice, or has no states
            at the end of a block that ended normally.
    """
    states: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer in sorted(wanted):
            module = _untapped(layers, layer)
            setattr(module, _TAP, True)
            stack.callback(module.__dict__.pop, _TAP)
            stack.callback(module.register_forward_hook(_recorder(layer, states)).remove)
        yield states
    missing = sorted(set(wanted) - set(states))
    if missing:
        raise ValueError(
            f"state capture: no states of layers {[layer + 1 for layer in missing]} (of "
            f"{len(layers)}); expected one forward pass through them inside the block"
        )


def _recorder(layer: int, states: dict[int, Tensor]) -> Callable[..., None]:
    """A hook that keeps the output of the first run of a layer."""

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        # Recomputed during backward: there is no public query, see torch.utils.checkpoint.
        if torch._C._current_graph_task_id() != -1:
            return
        if layer in states:
            raise ValueError(
                f"state capture: layer {layer + 1} ran twice in one `capture` block, which records "
                "one forward pass; open one block per pass"
            )
        states[layer] = output[0] if isinstance(output, tuple) else output

    return record


def _untapped(layers: nn.ModuleList, layer: int) -> nn.Module:
    if not 0 <= layer < len(layers):
        raise ValueError(f"layer {layer + 1} of a model with layers 1 to {len(layers)}")
    module = layers[layer]
    if _TAP in module.__dict__:
        raise ValueError(
            f"state capture: layer {layer + 1} is being captured already; blocks for the same "
            "layer cannot be nested"
        )
    return module
