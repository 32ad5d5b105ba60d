"""What may stand under `combine` in a recipe, and which of its keys exclude each other."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, model_validator

from drivekd.recipe.part import Count, Part

Combiner = Literal[
    "agp", "stage1_only", "pcgrad_caps", "pcgrad", "sum", "sum_ceK", "sum_ce3", "agp_grouped"
]
"""Combiners of our own; `torchjd:NAME` stands for any of TorchJD's."""

_COUNTING = ("agp", "stage1_only", "pcgrad_caps")
"""Combiners that count cross-entropy once per active teacher, unless told otherwise."""

_TORCHJD = re.compile(r"torchjd:[A-Za-z]\w*(\(.*\))?")


def _known(name: str) -> str:
    names = get_args(Combiner)
    if name not in names and not _TORCHJD.fullmatch(name):
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}? There are" if close else "expected one of"
        shown = ", ".join(repr(each) for each in names)
        raise ValueError(
            f"{name!r} is no combiner; {hint} {shown}, or torchjd:NAME such as torchjd:MGDA or "
            "torchjd:CAGrad(c=0.4)"
        )
    return name


class Combine(Part):
    """How one update is made of the gradients.

    Attributes:
        combiner: asymmetric gradient projection [paper], one of its ablations, or `torchjd:NAME`,
            TorchJD's weighting of that name.
        ce_count: cross-entropy counted once per active teacher [release] or once [ours].
        granularity: one projection per optimizer step [ours] or per micro-batch [release].
        missing: where a loss does not reach a parameter its gradient is zero [ours], or the
            projection skips this parameter [release's quirk, for parity].
        refresh: coefficients and λ are computed at every so many optimizer steps and kept for the
            steps between, which need one backward pass each [ours]; 1 = at each.
    """

    combiner: Annotated[str, AfterValidator(_known)] = "agp"
    ce_count: Literal["per_capability", "once"] = "per_capability"
    granularity: Literal["step", "micro_batch"] = "step"
    missing: Literal["zero", "skip"] = "zero"
    refresh: Count = 1

    @model_validator(mode="after")
    def _together(self) -> Combine:
        if self.refresh > 1 and self.granularity != "step":
            raise ValueError(
                f"refresh: {self.refresh} keeps coefficients over optimizer steps, granularity: "
                f"{self.granularity} has others for every micro-batch; set granularity: step or "
                "refresh: 1"
            )
        if self.refresh > 1 and self.missing == "skip":
            raise ValueError(
                f"missing: skip has other coefficients for every set of losses that reach a "
                f"parameter, refresh: {self.refresh} needs one per loss; set missing: zero or "
                "refresh: 1"
            )
        if self.ce_count == "once" and self.combiner not in _COUNTING:
            raise ValueError(
                f"ce_count: once has no meaning for {self.combiner}, which does not count "
                f"cross-entropy once per teacher; leave it out, or choose {', '.join(_COUNTING)}"
            )
        own = self.combiner.partition(":")[0]
        if self.missing == "skip" and own in ("agp_grouped", "torchjd"):
            raise ValueError(
                f"missing: skip reproduces the release, which has no {own}; set missing: zero or "
                "another combiner"
            )
        return self
