"""Panels of curves that the page shows of a training log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from drivekd.report.figures import Line, curves
from drivekd.report.results import ARMS, Row, capabilities_logged, series

Logs = Mapping[str, Sequence[Row]]

#: kind of a teacher's loss, as the log names it, to the panel's title
_LOSSES = {
    "attn": "Attention loss",
    "hidden": "Hidden-state loss",
    "kl": "Divergence of outputs",
}

#: colour and dash of an arm, the same in every panel
_ARM_STYLE = {
    "ce_only": ("c1", 0),
    "drivekd": ("c2", 0),
    "full_everywhere": ("c3", 1),
    "blind": ("c6", 2),
    "mismatched": ("c4", 3),
}
_SPARE = ("c4", "c5", "c6", "c1", "c3")
_COLOURS = ("c1", "c2", "c3", "c4", "c5", "c6")


def training_panels(logs: Logs) -> list[dict[str, Any]]:
    """Draw cross-entropy of every arm, and each capability's attention loss."""
    names = {arm.key: arm.name for arm in ARMS}
    order = [arm.key for arm in ARMS if arm.key in logs]
    order += [key for key in logs if key not in order]

    def lines(key: str) -> list[Line]:
        drawn = []
        for i, arm in enumerate(order):
            x, y = series(logs[arm], key)
            colour, dash = _ARM_STYLE.get(arm, (_SPARE[i % len(_SPARE)], i))
            if x:
                drawn.append(Line(names.get(arm, arm.replace("_", " ")), colour, dash, x, y))
        return drawn

    panels = [_panel("Cross-entropy", lines("loss/ce"), unit="nats per answer token", wide=True)]
    for kind, what in _LOSSES.items():
        for capability in capabilities_logged(logs, f"loss/{kind}/"):
            drawn = lines(f"loss/{kind}/{capability}")
            title = f"{what}: {capability}"
            panels.append(_panel(title, drawn, log=True, unit="log scale", wide=True))
    return [panel for panel in panels if panel]


def telemetry_panels(logs: Logs) -> list[tuple[str, list[dict[str, Any]]]]:
    """Draw per arm that combines gradients how they agree, and what the combination did."""
    known = [arm.key for arm in ARMS if arm.key in logs]
    order = sorted(known, key=lambda key: key != "drivekd") + [k for k in logs if k not in known]
    shown = [(arm, _telemetry(logs[arm])) for arm in order]
    return [(arm, panels) for arm, panels in shown if panels]


def _telemetry(rows: Sequence[Row]) -> list[dict[str, Any]]:
    teachers = capabilities_logged({"": rows}, "lambda/")
    if not teachers:
        return []
    pairs = list(combinations(teachers, 2))
    between = [
        (f"{a} · {b}", f"grad/cos/{first}_{second}")
        for a, b in pairs
        for first, second in ((a, b), (b, a))
    ]
    rates = [
        ("teacher against cross-entropy", "grad/conflict_rate"),
        ("pairs projected in stage 2", "grad/stage2_rate"),
        ("pairs in conflict afterwards", "grad/residual_conflict"),
    ]

    def by_teacher(key: str) -> list[Line]:
        return _lines(rows, [(teacher, f"{key}{teacher}") for teacher in teachers])

    cosine: dict[str, Any] = {"limits": (-1.05, 1.05), "reference": 0.0}
    length = "share of the teacher gradient's length"
    multiplier = _lines(rows, [("a₀", "grad/ce_multiplier")], 3)
    panels = [
        _panel("Cosine: teacher and cross-entropy", by_teacher("grad/cos/ce_"), **cosine),
        _panel("Cosine: two teachers", _lines(rows, between, 3), **cosine),
        _panel("Conflict rate", _lines(rows, rates, 3), limits=(-0.03, 1.03), unit="share"),
        _panel("Removed by stage 1", by_teacher("grad/stage1_removed/"), unit=length),
        _panel(
            "Moved by stage 2", by_teacher("grad/stage2_removed/"), unit="share of the length of m"
        ),
        _panel("Cross-entropy multiplier", multiplier),
        _panel("Teacher weight λ", by_teacher("lambda/"), log=True, unit="log scale"),
    ]
    return [panel for panel in panels if panel]


def _lines(rows: Sequence[Row], named: Iterable[tuple[str, str]], first: int = 0) -> list[Line]:
    """Make lines of the quantities that were logged; colours count from `first`."""
    lines: list[Line] = []
    for name, key in named:
        x, y = series(rows, key)
        if x:
            i = len(lines)
            lines.append(Line(name, _COLOURS[(first + i) % len(_COLOURS)], i, x, y))
    return lines


def _panel(
    title: str, lines: Sequence[Line], *, log: bool = False, **options: Any
) -> dict[str, Any]:
    """Draw a panel with the options of `curves`; empty where no line has a point to draw."""
    lines = [line for line in lines if not log or any(y > 0 for y in line.y)]
    if not lines:
        return {}
    ends = "; ".join(f"{line.name} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in lines)
    svg = curves(lines, log=log, **options)
    keys = [{"name": line.name, "colour": line.colour, "dash": line.dash % 4} for line in lines]
    last = max(int(line.x[-1]) for line in lines)
    return {"title": title, "svg": svg, "keys": keys, "label": f"{title} over {last} steps: {ends}"}
