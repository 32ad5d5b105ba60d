"""DriveBench's fifteen corruptions of camera pictures, and NoImage; docs/data.md has the table.

The settings are those of the benchmark's public toolkit, which takes brightness, fog, snow, motion
and zoom blur from Hendrycks & Dietterich 2019 [public benchmark]; the code is ours, and what had to
be decided is marked [ours]. Lengths in the levels are pixels of a picture 1600 wide.

The draws of a picture follow from (seed, corruption, what the draw is about) alone, not from the
severity: a higher severity adds lines, discs, cameras to those of the lower one.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from drivekd.data.corrupt import effects
from drivekd.data.corrupt.effects import Floats, Random
from drivekd.data.sample import CAMERAS

SEVERITIES = (1, 2, 3, 4, 5)

Effect = Callable[[Floats, Any, Random], Floats]


@dataclass(frozen=True, slots=True, order=True)
class View:
    """The identity of a picture; the random draws depend on nothing else of it.

    Attributes:
        picture: its name within the data, e.g. its path below the data's folder.
        frame: the key frame that it shows; the picture's name where none is known.
        place: 0 for the front camera, … 5: the camera's number in `CAMERAS`, or the picture's
            among those of its question where the camera is unknown.
    """

    picture: str
    frame: str
    place: int


@dataclass(frozen=True, slots=True)
class Corruption:
    """One row of the table.

    Attributes:
        name: the name in our table.
        effect: `(picture in [0, 1], level, random stream of the picture)` → the same corrupted.
        levels: its setting at severities 1 to 5.
        benchmark: the severity that DriveBench uses; 4 where that is not public.
        spelling: how DriveBench's toolkit writes the name, where otherwise.
        scope: what the draw of the struck views is about.
        struck: `(its stream, level)` → places of the views that are hit; None: every view.
    """

    name: str
    effect: Effect
    levels: tuple[Any, Any, Any, Any, Any]
    benchmark: int = 4
    spelling: str = ""
    scope: Literal["picture", "frame", "data set"] = "picture"
    struck: Callable[[Random, Any], set[int]] | None = None


def corrupt(
    picture: UInt8[np.ndarray, "h w 3"],
    name: str,
    severity: int | None = None,
    seed: int = 0,
    view: View | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Return a corrupted copy of an RGB picture, an equal one where its camera is not struck.

    Names as for `find`; without a severity DriveBench's is taken. Equal seeds give equal pictures.
    A picture without a view has no name and is always struck.
    """
    kind = find(name)
    level = kind.levels[severity_of(kind, severity) - 1]
    if view is not None and kind.struck is not None:
        about = view.frame if kind.scope == "frame" else ""
        if view.place not in kind.struck(_stream(seed, kind.name, kind.scope, about), level):
            return picture.copy()
    rng = _stream(seed, kind.name, "picture", view.picture if view else "")
    return effects.to_bytes(kind.effect(picture.astype(np.float32) / 255, level, rng))


def find(name: str) -> Corruption:
    """Return the corruption of a name in our spelling or DriveBench's; else a ValueError hints."""
    spellings = {_plain(s): c for c in CORRUPTIONS for s in (c.name, c.spelling) if s}
    if (kind := spellings.get(_plain(name))) is not None:
        return kind
    close = difflib.get_close_matches(_plain(name), spellings, n=1)
    hint = f"did you mean {spellings[close[0]].name!r}? " if close else ""
    known = ", ".join(c.name for c in CORRUPTIONS)
    raise ValueError(f"corruption {name!r} is unknown: {hint}choose one of {known}, or all")


def severity_of(kind: Corruption, severity: int | None) -> int:
    if severity is None:
        return kind.benchmark
    if severity not in SEVERITIES:
        raise ValueError(f"severity {severity} is unknown: expected 1 (mild) to 5 (severe)")
    return severity


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _stream(seed: int, *names: str) -> Random:
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:16], "little")])


def _crashed(rng: Random, draws: int) -> set[int]:
    """Draw that many of the six cameras, one camera perhaps twice."""
    return set(rng.integers(len(CAMERAS), size=5)[:draws].tolist())


def _lost(rng: Random, probability: float) -> set[int]:
    """Draw each camera by itself."""
    return set(np.flatnonzero(rng.random(len(CAMERAS)) < probability).tolist())


def _splashed(rng: Random, _: Any) -> set[int]:
    """Draw the first view and one to five others."""
    others = rng.permutation(np.arange(1, len(CAMERAS)))
    return {0, *others[: rng.integers(1, len(CAMERAS))].tolist()}


CORRUPTIONS: tuple[Corruption, ...] = (
    Corruption("Brightness", effects.brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    Corruption(
        "LowLight",
        effects.low_light,
        # the toolkit takes the severity as an index from 0 and fails at 5: that one is [ours]
        ((0.5, 250, 0.012), (0.4, 120, 0.018), (0.3, 50, 0.026), (0.2, 30, 0.038), (0.1, 20, 0.05)),
    ),
    Corruption(
        "Fog", effects.fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)), benchmark=5
    ),
    Corruption(
        "Snow",
        effects.snow,
        (
            (0.1, 3, 0.5, 10, 4, 0.8),
            (0.2, 2, 0.5, 12, 4, 0.7),
            (0.55, 4, 0.9, 12, 8, 0.7),
            (0.55, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    Corruption(
        "Rain",
        effects.rain,
        ((770, 10, 0.8), (770, 30, 0.8), (770, 60, 0.7), (500, 60, 0.6), (400, 80, 0.5)),
        benchmark=5,
    ),
    Corruption(
        "WaterSplash",
        effects.water_splash,
        (
            (10, (5, 15), 7),
            (20, (10, 20), 15),
            (30, (15, 25), 21),
            (40, (20, 30), 31),
            (50, (25, 35), 51),
        ),
        spelling="WaterSplashCorruption",
        scope="frame",
        struck=_splashed,
    ),
    Corruption(
        "LensObstacle",
        effects.lens_obstacle,
        ((11, 0.1, 0.3), (21, 0.2, 0.25), (31, 0.3, 0.2), (51, 0.4, 0.15), (71, 0.5, 0.1)),
        benchmark=5,
        spelling="LensObstacleCorruption",
    ),
    Corruption("CameraCrash", effects.black, (1, 2, 3, 4, 5), scope="data set", struck=_crashed),
    Corruption(
        "FrameLost", effects.black, (1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6), scope="frame", struck=_lost
    ),
    Corruption(
        "Saturate", effects.saturate, ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)), benchmark=5
    ),
    Corruption("MotionBlur", effects.motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    Corruption(
        "ZoomBlur",
        effects.zoom_blur,
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.33, 0.03)),
    ),
    Corruption("ColorQuant", effects.color_quant, (4, 3, 2, 1, 0)),
    Corruption("BitError", effects.bit_error, (0.1, 0.25, 0.4, 0.6, 0.85)),
    Corruption("H.265", effects.h265, (27, 33, 39, 45, 51), spelling="H256ABRCompression"),
    Corruption("NoImage", effects.black, (None, None, None, None, None)),
)
