"""From sums to panels and to the console's tables."""

from __future__ import annotations

import numpy as np
import pytest

from drivekd.statistics import stretch
from drivekd.study.panels import panels
from drivekd.study.sums import Sums
from drivekd.study.tables import prestudy as table


def test_driving_and_general_answers_are_drawn_apart_however_many_scenes_there_are() -> None:
    sums, values = Sums(), np.random.default_rng(0).normal(size=12)
    for group in ("driving", "general"):  # equal numbers: drawn together they would never differ
        for scene, value in enumerate(values):
            sums[f"margin/{group}"].add(f"{group}{scene}", np.full(10, value), np.ones(10))
    found = panels(sums, 4, seed=1, draws=400)
    mean, low, high = found.differences["margin"]
    assert mean == pytest.approx(0)
    assert low is not None and high is not None
    error = stretch(12) * float(values.std()) / 12**0.5
    assert high - low == pytest.approx(2 * 1.96 * 2**0.5 * error, rel=0.15)


def test_names_are_shown_as_they_are() -> None:
    curve = {"mean": [0.5], "low": None, "high": None, "n": 2, "scenes": 1}
    names = ("planning_long", "plan[/x]")
    content = {
        "teacher": {"source": "/d[/x]/[run]/teacher"},
        "layers": 1,
        "curves": {f"intra/attention/{name}": curve for name in names},
        "advice": [],
        "lacks": {},
    }
    shown = table(content)
    assert "/d[/x]/[run]/teacher" in shown
    assert all(name in shown for name in names)
