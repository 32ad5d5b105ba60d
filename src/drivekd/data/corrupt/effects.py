"""Effects of corruptions: functions of a picture, a level and a random stream.

Pictures are RGB in [0, 1]. Lengths in the levels are pixels of a picture 1600 wide. The settings
are in `corruptions.py`, and so is where they come from.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from drivekd.data.corrupt import video

Floats = NDArray[np.floating[Any]]
Random = np.random.Generator

#: width that lengths are stated for, and the smallest that they are scaled to [px] [ours]: at 96 px
#: a blur in proportion would be none
_WIDTH, _SMALLEST = 1600, 320
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # luma, ITU-R BT.601
_TINY = 1e-6


def to_bytes(x: Floats) -> NDArray[np.uint8]:
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def _scale(x: Floats) -> float:
    """Return the factor from a length in a picture 1600 wide to one in this picture."""
    width: int = x.shape[1]
    return max(width, _SMALLEST) / _WIDTH


def brightness(x: Floats, more: float, _: Random) -> Floats:
    """Add to the V of HSV, clipped at 1."""
    value: Floats = x.max(-1, keepdims=True)
    lifted: Floats = np.minimum(value + more, 1)
    return np.where(value > 0, x * (lifted / np.maximum(value, _TINY)), lifted)


def low_light(x: Floats, level: tuple[float, float, float], rng: Random) -> Floats:
    """Stretch to [0, 1], gamma 2, darken to `top`; then Poisson and Gaussian noise."""
    top, photons, sigma = level
    stretched: Floats = (x - x.min()) / max(float(np.ptp(x)), _TINY)
    counts = rng.poisson(stretched**2 * top * photons)
    return np.clip(counts / photons, 0, 1) + sigma * rng.standard_normal(x.shape)


def saturate(x: Floats, level: tuple[float, float], _: Random) -> Floats:
    """Scale the S of HSV and add to it; what has no hue becomes red, hue 0, as in HSV."""
    gain, add = level
    value: Floats = x.max(-1, keepdims=True)
    least: Floats = x.min(-1, keepdims=True)
    before = (value - least) / np.maximum(value, _TINY)
    after = np.clip(before * gain + add, 0, 1)
    coloured = value - (value - x) * (after / np.maximum(before, _TINY))
    red = value * (1 - after * np.array([0, 1, 1], np.float32))
    return np.where(before > 0, coloured, red)


def color_quant(x: Floats, bits: int, _: Random) -> Floats:
    """Keep the highest bits of every channel; black and white where none is left [ours]."""
    if bits == 0:
        return np.repeat((x @ _GREY >= 0.5)[..., None], 3, -1).astype(np.float32)
    return (to_bytes(x) & np.uint8(256 - (1 << (8 - bits)))).astype(np.float32) / 255


def fog(x: Floats, level: tuple[float, float], rng: Random) -> Floats:
    """Add a plasma fractal, then scale back to the brightest value that there was."""
    strength, decay = level
    brightest = float(x.max())
    fogged = x + strength * _plasma(rng, x.shape[0], x.shape[1], decay)[..., None]
    return fogged * (brightest / (brightest + strength))


def _plasma(rng: Random, height: int, width: int, decay: float) -> Floats:
    """Midpoint displacement in [0, 1]: noise that is `decay²` weaker at every halving of scale."""
    field: Floats = np.zeros((2, 2))
    amplitude = 1.0
    for _ in range(max(height, width, 2).bit_length()):
        for _axis in range(2):  # halfway between neighbours, along one axis and then the other
            doubled = np.empty((2 * len(field) - 1, field.shape[1]))
            doubled[::2], doubled[1::2] = field, (field[:-1] + field[1:]) / 2
            field = doubled.T
        field = field + amplitude * rng.uniform(-1, 1, field.shape)
        amplitude /= decay**2
    shown: Floats = (field - field.min()) / np.ptp(field)
    return shown[:height, :width].astype(np.float32)


def snow(x: Floats, level: tuple[float, ...], rng: Random) -> Floats:
    """Flakes of thresholded noise, blown in one direction, over a picture paled to grey.

    [ours] Flakes are made as for a picture 1600 wide and then reduced: they are hardly larger than
    a pixel there, and a threshold does not commute with a change of size.
    """
    mean, zoom, threshold, radius, sigma, kept = level
    height, width = (round(side / _scale(x)) for side in x.shape[:2])
    grains = rng.normal(mean, 0.3, (math.ceil(height / zoom), math.ceil(width / zoom)))
    noise = _resized(grains.astype(np.float32), height, width)
    flakes = np.where(noise < threshold, 0, np.clip(noise, 0, 1))
    blown = _resized(_smeared(flakes, radius, sigma, rng.uniform(-135, -45)), *x.shape[:2])
    pale = np.maximum(x, (x @ _GREY * 1.5 + 0.5)[..., None])
    mixed = kept * x + (1 - kept) * pale
    return mixed + (blown + blown[::-1, ::-1])[..., None]


def rain(x: Floats, level: tuple[float, float, float], rng: Random) -> Floats:
    """Lines of rain, blurred 3×3 where they run, then less contrast.

    [ours] One line per `area` pixels at 1600 px; in narrower pictures lines are shorter and as many
    more, so that they cover the same share. The benchmark draws a slant and then does not use it.
    """
    area, length, contrast = level
    height, width, _ = x.shape
    scale = _scale(x)
    slant = rng.uniform(-10, 10) * scale
    starts = rng.random((round(height * width / (area * scale)), 2))
    sheet = Image.new("L", (width, height))
    draw = ImageDraw.Draw(sheet)
    for left, top in (starts * (width, height)).tolist():
        tip = top - length * scale / 2
        draw.line((left, tip, left + slant, tip + length * scale), fill=220)
    drops = (np.asarray(sheet, np.float32) / 255)[..., None]
    lit = x + drops * (1 - x) * (1 - x.mean())
    wet: Floats = ndimage.uniform_filter(lit, (3, 3, 0), mode="mirror") * drops + x * (1 - drops)
    mean: Floats = wet.mean((0, 1))
    return mean + (wet - mean) * contrast


def water_splash(x: Floats, level: tuple[int, tuple[int, int], int], rng: Random) -> Floats:
    """Discs of white at alpha 0.2, then a Gaussian blur of everything."""
    drops, (smallest, largest), kernel = level
    height, width, _ = x.shape
    scale = _scale(x)
    covers = np.zeros((height, width, 1), np.float32)
    for size, across, down in rng.random((drops, 3)).tolist():
        radius = max(1.0, (smallest + size * (largest - smallest)) * scale)
        radius = min(radius, width / 2, height / 2)
        left, top = across * (width - 2 * radius), down * (height - 2 * radius)
        side = math.ceil(2 * radius) + 1
        part = covers[int(top) : int(top) + side, int(left) : int(left) + side]
        part += _ellipse(part, (left % 1 + radius, top % 1 + radius), (radius, radius), 0)
    return _blurred(1 - (1 - x) * 0.8**covers, kernel)


def lens_obstacle(x: Floats, level: tuple[int, float, float], rng: Random) -> Floats:
    """Blur an ellipse near the middle; half-axes are shares of width and height."""
    kernel, largest, spread = level
    size = np.array(x.shape[1::-1])
    centre = np.clip(size / 2 + rng.standard_normal(2) * spread * size, 0, size)
    axes = (0.1 + rng.random(2) * (largest - 0.1)) * size
    inside = _ellipse(x, tuple(centre), tuple(axes), rng.uniform(0, 360))
    return np.where(inside, _blurred(x, kernel), x)


def _ellipse(
    x: Floats, centre: tuple[float, ...], axes: tuple[float, ...], degrees: float
) -> NDArray[np.bool_]:
    """Mark the pixels [h, w, 1] inside an ellipse."""
    down, across = np.ogrid[: x.shape[0], : x.shape[1]]
    across, down = across + 0.5 - centre[0], down + 0.5 - centre[1]
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    along, beside = across * cosine + down * sine, down * cosine - across * sine
    inside: NDArray[np.bool_] = (along / axes[0]) ** 2 + (beside / axes[1]) ** 2 <= 1
    return inside[..., None]


def black(x: Floats, _: Any, __: Random) -> Floats:
    return np.zeros_like(x)


def motion_blur(x: Floats, level: tuple[float, float], rng: Random) -> Floats:
    radius, sigma = (length * _scale(x) for length in level)
    return _smeared(x, radius, sigma, rng.uniform(-45, 45))


def zoom_blur(x: Floats, level: tuple[float, float], _: Random) -> Floats:
    """Average the picture and its copies zoomed by 1, 1 + step, … below `stop`."""
    image = Image.fromarray(to_bytes(x))
    total = x.copy()
    zooms = np.arange(1, *level).tolist()
    for zoom in zooms:
        margin = np.array(image.size) / 2 * (1 - 1 / zoom)
        box = (*margin, *(image.size - margin))
        zoomed = image.resize(image.size, Image.Resampling.BILINEAR, box=box)
        total += np.asarray(zoomed, np.float32) / 255
    return total / (1 + len(zooms))


def _blurred(x: Floats, kernel: int) -> Floats:
    """Blur with the Gaussian σ that OpenCV takes for a kernel of that size."""
    sigma = _scale(x) * (0.3 * ((kernel - 1) * 0.5 - 1) + 0.8)
    blurred: Floats = ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="mirror", truncate=3.0)
    return blurred


def _smeared(x: Floats, radius: float, sigma: float, degrees: float) -> Floats:
    """Add copies shifted in one direction by 0 to 2·radius pixels, weighted by half a Gaussian.

    A pixel outside is the nearest one inside.
    """
    steps = np.arange(max(1, math.ceil(2 * radius)) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).astype(np.float32)
    angle = math.radians(degrees)
    right = np.rint(steps * math.cos(angle)).astype(int)
    down = np.rint(steps * math.sin(angle)).astype(int)
    margin = len(steps)
    padded = np.pad(x, [(margin, margin)] * 2 + [(0, 0)] * (x.ndim - 2), mode="edge")
    smeared = np.zeros_like(x)
    for weight, i, j in zip(
        weights, (margin - down).tolist(), (margin - right).tolist(), strict=True
    ):
        smeared += weight * padded[i : i + x.shape[0], j : j + x.shape[1]]
    return smeared


def _resized(channel: Floats, height: int, width: int) -> Floats:
    return np.asarray(Image.fromarray(channel).resize((width, height), Image.Resampling.BILINEAR))


def h265(x: Floats, rate_factor: int, _: Random) -> Floats:
    return video.h265(to_bytes(x), rate_factor).astype(np.float32) / 255


def bit_error(x: Floats, share: float, rng: Random) -> Floats:
    return video.bit_errors(to_bytes(x), share, rng).astype(np.float32) / 255
