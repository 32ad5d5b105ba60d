"""Stability of a teacher's attention over wordings of a question, and what that is worth.

A next check of the paper's summary asks for it: where a rewording lowers the cosine of attention
maps by more than 0.3, the signal may be unreliable. All else is ours; docs/prestudy.md has the
rules in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from drivekd.data.sample import Sample
from drivekd.distill.order import scene_of, stream
from drivekd.statistics import FEWEST as FEWEST_SCENES
from drivekd.statistics import band
from drivekd.study.curves import Curve, unit
from drivekd.study.forward import Array, Seen
from drivekd.study.measuring import Asked
from drivekd.study.panels import DRAWS, FEWEST
from drivekd.study.sums import Sums, mean_curve

DROP = 0.3  # a cosine that falls by more is a drop [summary of the paper]
WORDINGS = 3  # of a question, the one as it stands included: fewer are not compared
WORST = 6  # cases that are kept for the picture
#: shares of questions with a drop: up to the first all is well, above the second it is not
RARE, OFTEN = 0.05, 0.25
#: of the change that another question makes, a rewording must spare so much, or so little
MUCH, LITTLE = 0.5, 0.1
MOVES = 0.1  # maps whose cosine falls by less over wordings are nearly the same whatever is asked
Rows = Literal["question", "all"]
Word = Literal["use", "use with care", "do not use"]
ROWS: tuple[Rows, ...] = ("question", "all")
WORDS: tuple[Word, ...] = ("use", "use with care", "do not use")


@dataclass(frozen=True)
class Case:
    """A question whose maps differ much over its wordings, in one layer."""

    sample: Sample  # the question as it stands
    layer: int  # counted from 1
    cosine: float  # of the two maps that are farthest apart
    apart: tuple[int, int]  # numbers of their wordings; 0 is the question as it stands
    numbers: tuple[int, ...]  # those, and a third one
    wordings: tuple[str, ...]  # the words of these three
    maps: NDArray[np.float32]  # their profiles on the visual tokens [3, V]
    grids: tuple[tuple[int, int], ...]  # rows and columns of visual tokens of each image


@dataclass
class Steadiness:
    """Takes in questions as they are read; keeps sums per scene and the worst cases only."""

    drop: float = DROP  # how far the cosine of two wordings may fall below 1
    sums: Sums = field(default_factory=Sums)  # `cosine/ROWS/CAPABILITY` and so on, see `curves`
    #: by capability and layer, the lowest cosine first
    worst: dict[tuple[str, int], list[Case]] = field(default_factory=dict)

    def add(self, asked: Sequence[Asked]) -> None:
        """Take in questions about the same pictures."""
        seen = [each for each in asked if each.seen[0].asking is not None]
        for rows in ROWS if seen else ():
            units = [unit(np.stack([_profile(s, rows) for s in each.seen])) for each in seen]
            # The mean over pairs of wordings of two questions is the product of their means.
            middle = np.stack([vectors.mean(axis=0) for vectors in units])
            between = np.einsum("ilv,jlv->ijl", middle, middle)
            for i, each in enumerate(seen):
                words = each.sample.question
                others = [j for j, other in enumerate(seen) if other.sample.question != words]
                if each.sample.capability is not None and len(units[i]) >= WORDINGS:
                    self._add(rows, each, units[i], between[i, others])

    def _add(self, rows: Rows, asked: Asked, units: Array, others: Array) -> None:
        """Add one question: unit profiles [k, L, V], cosines to other questions [others, L]."""
        scene, group = scene_of(asked.sample), f"{rows}/{asked.sample.capability}"
        pairs = list(combinations(range(len(units)), 2))
        cosines = np.stack([(units[i] * units[j]).sum(axis=1) for i, j in pairs])
        mean, least = cosines.mean(axis=0), cosines.min(axis=0)
        self.sums[f"cosine/{group}"].add(scene, mean)
        self.sums[f"beyond/{group}"].add(scene, np.asarray(least < 1 - self.drop, np.float64))
        if len(others):
            self.sums[f"near/{group}"].add(scene, mean)
            self.sums[f"other/{group}"].add(scene, others.mean(axis=0))
        for layer, pair in enumerate(cosines.argmin(axis=0) if rows == "question" else ()):
            self._keep(asked, layer, pairs[pair], float(least[layer]))

    def _keep(self, asked: Asked, layer: int, pair: tuple[int, int], cosine: float) -> None:
        kept = self.worst.setdefault((asked.sample.capability or "", layer + 1), [])
        if len(kept) == WORST and cosine >= kept[-1].cosine:
            return
        third = next(i for i in range(len(asked.seen)) if i not in pair)
        numbers = tuple(sorted((*pair, third)))
        maps = np.stack([_profile(asked.seen[i], "question")[layer] for i in numbers])
        words = tuple(asked.wordings[i] for i in numbers)
        maps = maps.astype(np.float32)
        kept.append(Case(asked.sample, layer + 1, cosine, pair, numbers, words, maps, asked.grids))
        kept.sort(key=lambda each: each.cosine)
        del kept[WORST:]


def _profile(seen: Seen, rows: Rows) -> Array:
    found = seen.asking if rows == "question" else seen.own_attention
    assert found is not None, "questions without pictures were left out"
    return found


def curves(sums: Sums, seed: int, draws: int = DRAWS) -> dict[str, Curve]:
    """Make curves over layers, with bootstrap draws over scenes, by `NAME/ROWS/CAPABILITY`.

    `cosine`: mean over pairs of wordings. `beyond`: share of questions of which two wordings are
    farther apart than the drop. `other`: mean cosine to other questions about the same pictures
    (all wordings of both), what chance would give; `near`: `cosine` of those questions that have
    such others. `spared`: (near − other) / (1 − other), how much a rewording spares of the change
    that another question makes: 1 where wordings do not matter, 0 where they matter as much as what
    is asked.
    """
    random = partial(stream, seed, "bootstrap")
    found = {
        name: mean_curve(total, draws, random)
        for name, total in sorted(sums.of.items())
        if total.n >= FEWEST
    }
    for name in [name for name in found if name.startswith("near/")]:
        near, other = found[name], found[name.replace("near", "other", 1)]
        spared = _spared(near.draws, other.draws)
        found[name.replace("near", "spared", 1)] = Curve(spared, near.n, near.scenes)
    return found


def _spared(near: Array, other: Array) -> Array:
    """Not a number where the maps are the same whatever is asked."""
    room = 1 - other
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(room > 1e-6, (near - other) / room, np.nan)


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % band; without one where there are fewer than five scenes."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Verdict:
    """The verdict of the rules on a teacher in one capability."""

    capability: str  # its name
    verdict: Word  # use, use with care, or do not use
    layers: tuple[int, ...]  # that were judged, counted from 1
    n: int  # questions
    scenes: int  # in which they lie
    cosine: Figure  # over wordings, mean over these layers
    beyond: Figure  # share of questions beyond the drop
    other: Figure | None  # cosine to other questions about the same pictures, where there are some
    spared: Figure | None  # see `curves`
    reasons: tuple[str, ...]  # in words


def judge(
    found: Mapping[str, Curve], capability: str, layers: Sequence[int], drop: float = DROP
) -> Verdict | None:
    """The verdict on question rows, in the layers that would be distilled [ours].

    1. Fewer than five scenes: use with care.
    2. Do not use: more than a quarter of the questions have a drop (OFTEN); or the maps differ by
       more than MOVES over wordings, nearly as much as over questions (spared below LITTLE).
    3. Use: at most RARE have a drop, and a rewording spares at least half of the change that
       another question makes (spared of MUCH or more).
    4. Otherwise: use with care.

    Numbers count with the end of their band that speaks against the verdict. None without enough
    data.
    """
    group = f"question/{capability}"
    if f"cosine/{group}" not in found:
        return None
    at = [layer - 1 for layer in layers]

    def pooled(name: str) -> Array | None:
        curve = found.get(f"{name}/{group}")
        return None if curve is None else curve.draws[:, at].mean(axis=1)

    cosine, beyond, near, other = map(pooled, ("cosine", "beyond", "near", "other"))
    assert cosine is not None, "it was there"
    assert beyond is not None, "it has the same questions"
    spared = None if near is None or other is None else _spared(near, other)
    spared = None if spared is None or not np.isfinite(spared[0]) else spared
    scenes = found[f"cosine/{group}"].scenes
    steady, drops = _figure(cosine, scenes), _figure(beyond, scenes)
    by_chance = None if other is None else _figure(other, scenes)
    ahead = None if spared is None else _figure(spared, scenes)
    word, reasons = _word(steady, drops, ahead, drop)
    n, figures = found[f"cosine/{group}"].n, (steady, drops, by_chance, ahead)
    return Verdict(capability, word, tuple(layers), n, scenes, *figures, reasons)


def _figure(draws: Array, scenes: int) -> Figure:
    ends = band(draws, scenes)
    return Figure(float(draws[0]), *((None, None) if ends is None else map(float, ends)))


def _word(
    cosine: Figure, beyond: Figure, spared: Figure | None, drop: float
) -> tuple[Word, tuple[str, ...]]:
    """The rules of `judge`; reasons say what stands in the way of a better verdict."""
    if cosine.high is None or beyond.low is None or beyond.high is None:
        return "use with care", (f"fewer than {FEWEST_SCENES} scenes",)
    shared = f"{100 * beyond.mean:.1f} % of questions lose more than {drop:g} of cosine"
    bad = []
    if beyond.low > OFTEN:
        bad.append(f"{shared}, more than {100 * OFTEN:.0f} %")
    if spared and spared.high is not None and spared.high < LITTLE and cosine.high < 1 - MOVES:
        bad.append(
            f"a rewording changes where it looks (cosine {cosine.mean:.3f}) nearly as much as "
            "another question does"
        )
    if bad:
        return "do not use", tuple(bad)
    doubts, told = [], ""
    if beyond.high > RARE:
        doubts.append(f"{shared}; up to {100 * RARE:.0f} % for certain would be steady")
    if spared is None or spared.low is None:
        doubts.append("nothing to compare with: its maps of other questions are the same, or none")
    else:
        part = 100 * spared.mean
        told = f"a rewording spares {part:.0f} % of the change that another question makes"
        if spared.low < MUCH:
            doubts.append(f"{told}; {100 * MUCH:.0f} % for certain would be steady")
    return ("use with care", tuple(doubts)) if doubts else ("use", (f"{shared}; {told}",))
