"""The four panels from sums: curves with bands, what lacks data, and the advice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivekd.data.sample import CAPABILITIES
from drivekd.distill.order import stream
from drivekd.statistics import band
from drivekd.study.curves import Curve
from drivekd.study.recommend import Advice, advise
from drivekd.study.sums import Sums, mean_curve, pair_curve

DRAWS = 1000  # bootstrap draws of scenes
FEWEST = 2  # samples that a curve needs


@dataclass(frozen=True)
class Panels:
    """The curves, gaps and advice of a study."""

    #: by name: `adjacent`, `vision_text`, `share`, `intra/attention/CAPABILITY`,
    #: `intra/hidden/CAPABILITY`, `dispersion/attention/all` (and per capability),
    #: `dispersion/hidden/…`, `margin/driving`, `margin/general`
    curves: Mapping[str, Curve]
    lacks: Mapping[str, tuple[str, ...]]  # panel (a to d) to what it has too little data for
    #: mean and 95 % band of hidden − attention dispersion, and of the general − driving margin;
    #: those that were measured
    differences: Mapping[str, tuple[float, float | None, float | None]]
    advice: tuple[Advice, ...]  # per capability


def panels(sums: Sums, depth: int, seed: int, draws: int = DRAWS) -> Panels:
    """Make all curves of a study from its sums.

    `depth` counts the teacher's layers; every curve of the same scenes gets the same draws.
    """
    curves = {
        name: (pair_curve if name.startswith("intra/") else mean_curve)(
            total, draws, partial(stream, seed, _draws_of(name))
        )
        for name, total in sorted(sums.of.items())
        if total.n >= FEWEST
    }
    capabilities = _capabilities(sums)
    differences = {
        name: _difference(curves[larger], curves[smaller])
        for name, larger, smaller in (
            ("dispersion", "dispersion/hidden/all", "dispersion/attention/all"),
            ("margin", "margin/general", "margin/driving"),
        )
        if larger in curves and smaller in curves
    }
    kinds = [curves.get(f"dispersion/{kind}/all") for kind in ("attention", "hidden")]
    spread = [float(np.nanmean(curve.mean)) for curve in kinds if curve is not None]
    dispersions = (spread[0], spread[1]) if len(spread) == 2 else None
    advice = [
        advise(
            each,
            curves.get(f"intra/attention/{each}"),
            curves.get(f"intra/hidden/{each}"),
            curves.get("share"),
            dispersions,
            depth,
        )
        for each in capabilities
    ]
    found = tuple(each for each in advice if each is not None)
    return Panels(curves, _lacks(sums, capabilities), differences, found)


def _draws_of(name: str) -> str:
    """Name the random stream of a curve: general questions are about scenes of their own."""
    return "bootstrap of general" if name == "margin/general" else "bootstrap"


def _capabilities(sums: Sums) -> list[str]:
    """List the three known ones, then what else the data has."""
    return list(dict.fromkeys([*CAPABILITIES, *sorted(sums.named("intra/hidden/"))]))


def _difference(larger: Curve, smaller: Curve) -> tuple[float, float | None, float | None]:
    """Mean over places of one curve minus that of another, with its band.

    Only places count that both have. Curves of the same scenes have the same draws, which so are
    paired; where some scenes are in one of them only, draws are not, and the band is wider.
    """
    places = np.isfinite(larger.mean) & np.isfinite(smaller.mean)
    gap = (larger.draws[:, places] - smaller.draws[:, places]).mean(axis=1)
    ends = band(gap, min(larger.scenes, smaller.scenes))
    return float(gap[0]), *((None, None) if ends is None else map(float, ends))


def _lacks(sums: Sums, capabilities: list[str]) -> dict[str, tuple[str, ...]]:
    """Say what each panel has too little data for."""

    def few(what: str, name: str) -> list[str]:
        have = sums.count(name)
        return [f"{what}: need {FEWEST}, have {have}"] if have < FEWEST else []

    a = few("samples", "adjacent") + few("samples with images", "vision_text")
    b = [
        said
        for each in capabilities
        for said in few(f"{each} samples", f"intra/hidden/{each}")
        or few(f"{each} samples with images", f"intra/attention/{each}")
    ]
    c = few("samples with paraphrases", "dispersion/hidden/all")
    c = c or few("samples with images and paraphrases", "dispersion/attention/all")
    d = [
        said
        for group in ("driving", "general")
        for said in few(f"{group} answers", f"margin/{group}") or _one_token(group, sums)
    ]
    found = {"a": a, "b": b, "c": c, "d": d}
    return {panel: tuple(said) for panel, said in found.items() if said}


def _one_token(group: str, sums: Sums) -> list[str]:
    """An answer of one token falls into the first bin and says nothing of positions."""
    answers = sums.of[f"margin/{group}"].counts.values()
    longer = sum(float(counts[1:].sum()) for counts in answers)
    if longer:
        return []
    return [f"{group} answers of two tokens or more: need {FEWEST}, have 0"]


def as_json(found: Panels) -> dict[str, Any]:
    """Return curves, what is lacking and differences as plain numbers."""
    return {
        "curves": {name: curve_json(curve) for name, curve in found.curves.items()},
        "lacks": {panel: list(said) for panel, said in found.lacks.items()},
        "differences": {name: list(each) for name, each in found.differences.items()},
    }


def curve_json(curve: Curve) -> dict[str, Any]:
    """Return a curve as plain numbers; a place without data is null."""
    ends = curve.band or (None, None)
    low, high = (None if end is None else _numbers(end) for end in ends)
    return {
        "mean": _numbers(curve.mean),
        "low": low,
        "high": high,
        "n": curve.n,
        "scenes": curve.scenes,
    }


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    return [round(float(v), 6) if np.isfinite(v) else None for v in values]
