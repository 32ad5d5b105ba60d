"""Any weighting of TorchJD as a combiner, where that package is installed.

TorchJD (Jacobian descent, MIT licence) computes weights from a Gram matrix: MGDA, CAGrad, UPGrad
and others. Its weights take the place of the coefficients a, on a scale of their own: those of
MGDA add up to 1, those of a sum to 1+K. It is an optional extra and imported on use only.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from drivekd.method.combine.projection import (
    CeCount,
    GramLike,
    Order,
    Solution,
    Solver,
    checked,
    permutation,
)

PREFIX = "torchjd:"


def torchjd_solver(name: str) -> Solver:
    """Make the combiner `torchjd:NAME` or `torchjd:NAME(key=value, …)` [ours: a rival].

    The matrix holds the cross-entropy first. `order` is a permutation of its rows; weightings that
    draw at random (PCGrad) draw from a stream seeded by it, and leave every other stream alone.
    `ce_count` has no meaning here.

    Raises:
        ValueError: TorchJD or what it needs for NAME is not installed, there is no such weighting,
            it keeps a state between units, or its arguments are wrong.
    """
    weighting = _weighting(name)

    def weigh(gram: GramLike, order: Order, ce_count: CeCount = "per_capability") -> Solution:
        G = checked(gram)
        drawn = permutation(order, len(G))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_rank(drawn))  # not that of a GPU
            weights = _finite(name, weighting(torch.from_numpy(G)).detach().double())
        return Solution(weights.numpy(), gram)

    return weigh


def _rank(order: list[int]) -> int:
    """A number of its own for every permutation."""
    rank = 0
    for place, item in enumerate(order):
        rank = rank * (len(order) - place) + sum(other < item for other in order[place + 1 :])
    return rank


def _finite(name: str, weights: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    if not bool(weights.isfinite().all()):
        raise ValueError(
            f"combiner {name}: weights {weights.tolist()}, expected finite ones; it cannot combine "
            "these gradients (a zero or duplicate one?), choose another combiner"
        )
    return weights


def _weighting(name: str) -> Any:
    """An instance of the weighting."""
    if find_spec("torchjd") is None:
        raise ValueError(
            f"combine.combiner: {name} needs the package torchjd, which is not installed; install "
            "the extra: pip install 'drivekd[torchjd]'"
        )
    bare, arguments = _parsed(name)
    offered = _offered()
    if bare not in offered:
        close = difflib.get_close_matches(bare, offered, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}? There are" if close else "there are"
        raise ValueError(
            f"combine.combiner: {name}: TorchJD has no weighting {bare} of a Gram matrix without a "
            f"state of its own; {hint} {', '.join(offered)}"
        )
    kind = offered[bare]
    try:
        inspect.signature(kind).bind(**arguments)
        return kind(**arguments)
    except (TypeError, ValueError, ImportError) as error:
        raise ValueError(
            f"combine.combiner: {name}: {' '.join(str(error).split())}; expected "
            f"{bare}{_parameters(kind)}"
        ) from None


def _parameters(kind: type) -> str:
    names = [
        each.name if each.default is each.empty else f"{each.name}={each.default}"
        for each in inspect.signature(kind).parameters.values()
    ]
    return f"({', '.join(names)})"


def _offered() -> dict[str, Any]:
    """Name to class: weightings by Gram matrix that remember nothing between two calls."""
    module = import_module("torchjd.aggregation")
    stateful: type = import_module("torchjd").Stateful
    return {
        name: getattr(module, f"{name}Weighting")
        for name in sorted(module.__all__)
        if hasattr(module, f"{name}Weighting")
        and issubclass(getattr(module, name), module.GramianWeightedAggregator)
        and not issubclass(getattr(module, f"{name}Weighting"), stateful)
    }


def _parsed(name: str) -> tuple[str, dict[str, Any]]:
    """NAME and the keyword arguments behind it, which are plain literals."""
    bare, _, inside = name.removeprefix(PREFIX).partition("(")
    try:
        call = ast.parse(f"f({inside}" if inside else "f()", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError
        return bare, {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError):
        raise ValueError(
            f"combine.combiner: {name}: expected torchjd:NAME or torchjd:NAME(key=number, …), such "
            "as torchjd:CAGrad(c=0.4)"
        ) from None
