"""Which layers take part, and which teacher layers each student layer is compared with.

Text and recipes count layers from 1 (`first`, `penultimate`, `2..penultimate-1`), code from 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

Grouping = Literal["window", "proportional"]

_BOUND = re.compile(r"(first|penultimate|last|\d+)\s*(?:([+-])\s*(\d+))?")
_FORMS = (
    "a number from 1, first, penultimate, last, all, a range such as 1..penultimate or "
    "2..penultimate-1, or several of these with commas"
)


def resolve(spec: int | str, num_layers: int) -> list[int]:
    """Turn a layer specification into the 0-based indices of one model's layers.

    The same specification, resolved on student and teacher, names corresponding layers:
    `1..penultimate` is 0 … 22 of 24 layers and 0 … 46 of 48. [paper: layers 1, penultimate and
    1 … penultimate; ours: the notation]

    Args:
        spec: a number counted from 1, `first`, `penultimate`, `last`, `all`, a range `a..b` that
            includes both ends, with offsets (`penultimate-1`) where needed, or a comma list.
        num_layers: number of decoder layers L of the model; `penultimate` is layer L-1.

    Returns:
        Indices in increasing order, each once.

    Raises:
        ValueError: the specification is not of this form, names a layer that the model does not
            have, or is a range that runs backwards.
    """
    text = str(spec).strip().lower()
    chosen: set[int] = set()
    for part in text.split(","):
        first, last = _ends(part.strip(), text, num_layers)
        chosen.update(range(first - 1, last))
    return sorted(chosen)


def _ends(part: str, spec: str, num_layers: int) -> tuple[int, int]:
    """The first and last layer of one part of a specification, counted from 1."""
    if part == "all":
        part = "first..last"
    bounds = [_bound(bound.strip(), spec, num_layers) for bound in part.split("..")]
    if len(bounds) > 2:
        raise ValueError(f"layers {spec!r}: expected {_FORMS}; {part!r} has more than one '..'")
    if bounds[0] > bounds[-1]:
        raise ValueError(
            f"layers {spec!r}: {part!r} runs backwards ({bounds[0]} to {bounds[-1]}) on a model "
            f"of {num_layers} layers; swap its ends or choose another range for this model"
        )
    return bounds[0], bounds[-1]


def _bound(bound: str, spec: str, num_layers: int) -> int:
    """One end of a range, counted from 1 and checked against the depth of the model."""
    match = _BOUND.fullmatch(bound)
    if match is None:
        raise ValueError(f"layers {spec!r}: cannot read {bound!r}; expected {_FORMS}")
    name, sign, offset = match.groups()
    named = {"first": 1, "penultimate": num_layers - 1, "last": num_layers}
    layer = named[name] if name in named else int(name)
    layer += int(offset or 0) * (-1 if sign == "-" else 1)
    if not 1 <= layer <= num_layers:
        raise ValueError(
            f"layers {spec!r}: {bound!r} is layer {layer}, but the model has layers 1 to "
            f"{num_layers}; choose one of these"
        )
    return layer


def group_layers(
    student_layers: list[int], teacher_layers: list[int], grouping: Grouping = "window"
) -> dict[int, list[int]]:
    """Match each student layer with the teacher layers whose maps are averaged for it.

    With student layers s_1 … s_k and teacher layers t_1 … t_m (positions from 1):

    `window` [paper: grouped matching; release: the window]: g = max(1, m-k+1) and s_i is matched
    to positions min(i, m-g+1) … min(i, m-g+1)+g-1. For k > m all surplus layers copy the last one.

    `proportional` [ours]: s_i is matched to positions j … max(j, ⌈i·m/k⌉) with
    j = ⌊(i-1)·m/k⌋+1. Covers 1 … m and works both ways.

    Args:
        student_layers: 0-based indices, in order.
        teacher_layers: 0-based indices, in order.
        grouping: the rule.

    Returns:
        Student layer to its teacher layers; the target is their uniform mean.

    Raises:
        ValueError: a list is empty, names a layer twice, or the rule is unknown.
    """
    _check_layers("student_layers", student_layers)
    _check_layers("teacher_layers", teacher_layers)
    k, m = len(student_layers), len(teacher_layers)
    if grouping == "window":
        spans = [_window(i, k, m) for i in range(1, k + 1)]
    elif grouping == "proportional":
        spans = [_proportional(i, k, m) for i in range(1, k + 1)]
    else:
        raise ValueError(f"grouping: expected 'window' or 'proportional', got {grouping!r}")
    return {
        layer: teacher_layers[first - 1 : last]
        for layer, (first, last) in zip(student_layers, spans, strict=True)
    }


def _window(i: int, k: int, m: int) -> tuple[int, int]:
    g = max(1, m - k + 1)
    first = min(i, m - g + 1)
    return first, first + g - 1


def _proportional(i: int, k: int, m: int) -> tuple[int, int]:
    first = (i - 1) * m // k + 1
    return first, max(first, -(-i * m // k))


def _check_layers(name: str, layers: Sequence[int]) -> None:
    if not layers:
        raise ValueError(f"{name}: expected at least one layer, got none; name one in the recipe")
    if len(set(layers)) != len(layers) or min(layers) < 0:
        raise ValueError(f"{name}: expected distinct indices from 0, got {list(layers)}")
