"""The `combine` section of a recipe."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, model_validator

from drivekd.recipe.part import Count, Part

Combiner = Literal["agp", "stage1_only", "pcgrad_caps", "pcgrad", "sum", "sum_ceK", "agp_grouped"]
"""Combiners of our own; `torchjd:NAME` is any of TorchJD's."""

_COUNTING = ("agp", "stage1_only", "pcgrad_caps")
"""Combiners that count cross-entropy once per active teacher."""

_TORCHJD = re.compile(r"torchjd:[A-Za-z]\w*(\(.*\))?")


def _known(name: str) -> str:
    names = get_args(Combiner)
    if name == "sum_ce3":
        raise ValueError("'sum_ce3' is another name of 'sum_ceK'; write 'sum_ceK'")
    if name not in names and not _TORCHJD.fullmatch(name):
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}? There are" if close else "expected one of"
        shown = ", ".join(map(repr, names))
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
        refresh: coefficients and λ are computed at every so many optimizer steps and kept for the
            steps between, which need one backward pass each [ours]; 1 = at each.
    """

    combiner: Annotated[str, AfterValidator(_known)] = "agp"
    ce_count: Literal["per_capability", "once"] = "per_capability"
    granularity: Literal["step", "micro_batch"] = "step"
    refresh: Count = 1

    @model_validator(mode="before")
    @classmethod
    def _removed(cls, values: Any) -> Any:
        if isinstance(values, dict) and "missing" in values:
            raise ValueError(
                "`combine.missing` is no key any more: where a loss does not reach a parameter its "
                "gradient is zero, as `missing: zero` was; leave it out. The release's skipping of "
                "such parameters is in benchmarks/release_projection.py"
            )
        return values

    @model_validator(mode="after")
    def _together(self) -> Combine:
        if self.refresh > 1 and self.granularity != "step":
            raise ValueError(
                f"refresh: {self.refresh} keeps coefficients over optimizer steps, granularity: "
                f"{self.granularity} has others for every micro-batch; set granularity: step or "
                "refresh: 1"
            )
        if self.ce_count == "once" and self.combiner not in _COUNTING:
            raise ValueError(
                f"ce_count: once has no meaning for {self.combiner}, which does not count "
                f"cross-entropy once per teacher; leave it out, or choose {', '.join(_COUNTING)}"
            )
        return self
