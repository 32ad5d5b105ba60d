"""Rules from curves to layers and a signal per capability.

docs/prestudy.md has the rules in words. All thresholds are ours; with them the rules make of the
curves that the paper publishes the choice that the paper makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from numpy.typing import NDArray

from drivekd.statistics import FEWEST
from drivekd.study.curves import Curve

#: a layer takes part if it pays images at least so much of what the layer that looks most does
LOOKS = 0.1
#: a capability is even over the layers if its consistency stays within so much of its highest
ALIKE = 0.05
HIGH = 0.9  # … and nowhere below this
CLEAR = 0.03  # so far a layer must stand out, or a peak above the valleys on both sides
#: … and so far below the highest layer it may lie: a peak in the noise below says nothing
NEAR = 0.15
#: attention that differs by more over paraphrases (mean 1 − cos) is left for steadier states;
#: the limit that the paper's summary names for a signal that may be unreliable
UNSTEADY = 0.3
SURE = 0.8  # in so many of the bootstrap draws the rules must choose the same layers
Signal = Literal["text_to_vision", "full", "hidden"]
Shape = Literal["even", "peak", "highest"]


@dataclass(frozen=True)
class Found:
    """What the rules make of one curve."""

    #: `even`: all layers up to the penultimate one; `peak`: a late local peak; `highest`
    shape: Shape
    layers: tuple[int, ...]  # counted from 1
    #: `even`: by how much the range stays below ALIKE; `peak`: its height above the higher of the
    #: valleys beside it; `highest`: above the mean of the other layers
    margin: float


@dataclass(frozen=True)
class Advice:
    """The choice for one capability."""

    capability: str  # its name
    signal: Signal  # text_to_vision, full or hidden
    #: of the teacher, counted from 1; those of the paper's choice where evidence is weak and the
    #: paper has one
    layers: tuple[int, ...]
    measured: Found | None  # what the rules chose; None without enough data
    sure: float  # share of bootstrap draws in which they chose the same
    weak: tuple[str, ...]  # why the evidence is weak, in words; empty where it is not
    reason: str  # why this choice, in words
    paper: str  # how it compares with the paper's, in words


def find(
    curve: Float[ndarray, " L"], takes_part: Bool[ndarray, " L"] | None = None
) -> Found | None:
    """Find the layers that one consistency curve speaks for [ours].

    1. even: over the layers up to the penultimate one that take part, at least half of them,
       highest − lowest ≤ ALIKE and lowest ≥ HIGH. [paper: reasoning, high everywhere]
    2. peak: neither the first nor the last layer, at least as high as both neighbours, no more than
       NEAR below the highest layer, and at least CLEAR above the higher one of two valleys: the
       lowest point on each side before the curve is higher again. The most prominent one. [paper:
       planning's, near the penultimate]
    3. highest: the layer with the highest consistency, the first of equals. [paper: perception]

    None where no layer takes part.
    """
    part = np.isfinite(curve) if takes_part is None else takes_part & np.isfinite(curve)
    if not part.any():
        return None
    inner = curve[:-1][part[:-1]]
    most = len(inner) > 1 and 2 * len(inner) >= len(curve) - 1
    if most and np.ptp(inner) <= ALIKE and inner.min() >= HIGH:
        return Found("even", tuple(range(1, len(curve))), ALIKE - float(np.ptp(inner)))
    seen = np.where(part, curve, -1.0)
    near = seen >= seen.max() - NEAR
    heights = [_prominence(seen, i) if near[i] else 0.0 for i in range(len(seen))]
    best = int(np.argmax(heights))
    if heights[best] >= CLEAR:
        return Found("peak", (best + 1,), heights[best])
    best = int(np.argmax(seen))
    others = np.delete(curve, best)[np.delete(part, best)]
    margin = float(curve[best] - others.mean()) if len(others) else 0.0
    return Found("highest", (best + 1,), margin)


def _prominence(curve: NDArray[np.float64], at: int) -> float:
    """Height of an inner local maximum above the higher of its two valleys, else 0."""
    here = curve[at]
    if not 0 < at < len(curve) - 1 or here < max(curve[at - 1], curve[at + 1]):
        return 0.0
    return float(here - max(_valley(curve[:at][::-1], here), _valley(curve[at + 1 :], here)))


def _valley(side: NDArray[np.float64], height: float) -> float:
    """Return the lowest point on the way outwards, as far as nothing is higher."""
    higher = np.nonzero(side > height)[0]
    return float(side[: higher[0] if len(higher) else None].min())


def looks_at_images(share: Float[ndarray, " L"]) -> Bool[ndarray, " L"]:
    """Layers that take part [ours].

    Profiles are scaled to length 1: one of a layer that hardly looks at images would count as much
    as any other.
    """
    looks: NDArray[np.bool_] = share >= LOOKS * share.max()
    return looks


def paper_choice(capability: str, depth: int) -> tuple[Signal, tuple[int, ...]] | None:
    """Return the paper's signal and layers for a capability at this depth; None for others."""
    inner = tuple(range(1, max(2, depth)))
    known: dict[str, tuple[Signal, tuple[int, ...]]] = {
        "perception": ("text_to_vision", (1,)),
        "reasoning": ("full", inner),
        "planning": ("text_to_vision", inner[-1:]),
    }
    return known.get(capability)


def advise(
    capability: str,
    attention: Curve | None,
    hidden: Curve | None,
    share: Curve | None,
    dispersions: tuple[float, float] | None,
    depth: int,
) -> Advice | None:
    """Choose layers and signal for one capability, with reason, margin and doubts [ours].

    The signal is attention, as in the paper, unless it differs by more than UNSTEADY over
    paraphrases and hidden states differ less. None where there is too little data and the paper has
    no choice either.

    Args:
        capability: its name.
        attention: consistency of its attention profiles in blocks 1 … L, with draws.
        hidden: the same of hidden states.
        share: of attention that goes to images.
        dispersions: over paraphrases, of attention and of hidden states, mean over the layers.
        depth: L.
    """
    states = dispersions is not None and dispersions[0] > max(UNSTEADY, dispersions[1])
    curve = hidden if states else attention
    part = None if states or share is None else looks_at_images(share.mean)
    found = find(curve.mean, part) if curve is not None else None
    usual = paper_choice(capability, depth)
    if curve is None or found is None:
        if usual is None:
            return None
        said = "too few samples to measure; this is the paper's choice"
        return Advice(capability, usual[0], usual[1], None, 0.0, ("not enough data",), said, "")
    sure = _agreement(curve, part, found)
    weak = _doubts(curve, found, sure)
    signal: Signal = "hidden" if states else "full" if found.shape == "even" else "text_to_vision"
    paper = _compared(curve, found, signal, usual, depth)
    reason = _reason(curve, found, "hidden states" if states else "attention", depth)
    if weak and usual is not None and (signal, found.layers) != usual:
        reason = f"evidence is weak, so the paper's choice stands; measured: {reason}"
        signal, layers = usual
    else:
        layers = found.layers
    if dispersions is None:
        weak = (*weak, "no paraphrases, so attention was not compared with hidden states")
    else:
        told = "over paraphrases attention differs by {:.3f}, hidden states by {:.3f}"
        reason = f"{reason}; {told.format(*dispersions)}"
    return Advice(capability, signal, layers, found, sure, weak, reason, paper)


def _agreement(curve: Curve, part: NDArray[np.bool_] | None, found: Found) -> float:
    """Share of bootstrap draws in which the rules choose the same layers; 0 of too few scenes."""
    if curve.scenes < FEWEST:
        return 0.0
    drawn = [find(each, part) for each in curve.draws[1:] if np.isfinite(each).any()]
    same = [each is not None and each.layers == found.layers for each in drawn]
    return float(np.mean(same)) if same else 0.0


def _doubts(curve: Curve, found: Found, sure: float) -> tuple[str, ...]:
    """Why the choice of layers may be chance."""
    doubts = []
    if curve.scenes < FEWEST:
        doubts.append(f"fewer than {FEWEST} scenes")
    elif sure < SURE:
        doubts.append(f"only {100 * sure:.0f} % of bootstrap draws choose the same layers")
    if found.shape == "highest" and found.margin < CLEAR:
        doubts.append(f"no layer stands out by {CLEAR}")
    return tuple(doubts)


def _reason(curve: Curve, found: Found, what: str, depth: int) -> str:
    at = curve.mean[found.layers[0] - 1]
    place = f"layer {found.layers[0]} of {depth}"
    if found.shape == "even":
        low = float(np.nanmin(curve.mean[:-1]))
        return (
            f"consistency of {what} is high over all layers up to the penultimate one (lowest "
            f"{low:.3f}, range {ALIKE - found.margin:.3f}, {found.margin:.3f} below the limit)"
        )
    if found.shape == "peak":
        return (
            f"consistency of {what} has a local peak of {at:.3f} at {place}, {found.margin:.3f} "
            "above its valleys"
        )
    return (
        f"consistency of {what} is highest at {place} ({at:.3f}), {found.margin:.3f} above the "
        "mean of the others"
    )


def _compared(
    curve: Curve,
    found: Found,
    signal: str,
    usual: tuple[str, tuple[int, ...]] | None,
    depth: int,
) -> str:
    if usual is None:
        return "the paper has no such capability"
    if (signal, found.layers) == usual:
        return "the paper chooses the same"
    theirs = float(np.nanmean(curve.mean[np.array(usual[1]) - 1]))
    own = float(np.nanmean(curve.mean[np.array(found.layers) - 1]))
    return (
        f"the paper: {usual[0]} of {named(usual[1], depth)}; consistency there {theirs:.3f}, "
        f"{abs(own - theirs):.3f} {'lower' if theirs < own else 'higher'}"
    )


def named(layers: Sequence[int], depth: int, student_depth: int | None = None) -> str:
    """A layer specification for a recipe, of the teacher itself or of a student of another depth.

    `first`, `penultimate`, `last` and `1..penultimate` are these on every model. Any other layer l
    of L: the student's layer round(l·L_s/L); where the student is not known, counted from the
    nearer end. [ours]
    """
    if len(layers) > 1:
        return "1..penultimate"
    layer = layers[0]
    ends = {1: "first", depth: "last", depth - 1: "penultimate"} | {1: "first"}
    if layer in ends:
        return ends[layer]
    if student_depth is not None:
        return str(min(student_depth, max(1, round(layer * student_depth / depth))))
    return str(layer) if 2 * layer <= depth else f"last-{depth - layer}"
