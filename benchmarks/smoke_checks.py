"""The claims of the real-data proof: each a function of what the runs left, true or false."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from drivekd.data.sample import CAPABILITIES


@dataclass(frozen=True)
class Check:
    """One claim, whether it holds, and the figures that decide it."""

    claim: str
    holds: bool
    figures: Mapping[str, float]


def check_pictures(real: Mapping[str, Any], grey: Mapping[str, Any]) -> list[Check]:
    names = ("before", "after", "after_same_question", "held_out")
    figures = {name: real[name] for name in names}
    against = {f"grey_{name}": grey[name] for name in names} | {"after": real["after"]}
    halved = real["after"] <= 0.5 * real["before"]
    return [
        Check("cross-entropy of the training scene falls by at least half", halved, figures),
        Check(
            "it ends below the same run on grey pictures", real["after"] < grey["after"], against
        ),
    ]


def check_overfit(pairs: Sequence[tuple[str, str]]) -> Check:
    exact = fmean(answer == reply for answer, reply in pairs)
    claim = f"at least 80 % exact answers on {len(pairs)} samples learnt by heart"
    return Check(claim, exact >= 0.8, {"exact": exact})


def check_attention(record: Sequence[Mapping[str, float]]) -> list[Check]:
    """First against last tenth of the logged steps, for every capability."""
    checks = []
    for name in CAPABILITIES:
        values = [line[name] for line in record if name in line]
        tenth = max(1, len(values) // 10)
        first, last = fmean(values[:tenth]), fmean(values[-tenth:])
        claim = f"the attention loss of {name} falls"
        checks.append(Check(claim, last < first, {"first_tenth": first, "last_tenth": last}))
    return checks


def check_reload(ours: Sequence[Sequence[int]], plain: Sequence[Sequence[int]]) -> Check:
    equal = sum(list(a) == list(b) for a, b in zip(ours, plain, strict=True))
    tokens = sum(map(len, ours))
    claim = "plain transformers reloads the model and generates the same tokens"
    return Check(claim, equal == len(ours), {"equal": equal, "of": len(ours), "tokens": tokens})
