"""The corruptions of single pictures.

`python tests/data/test_corruptions.py` writes the golden file anew from the corruptions as they are
now; do so only after a change that was meant, and say in CHANGELOG what changed.
"""

from __future__ import annotations

import colorsys
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from corruption_sheet import corruption_sheet
from PIL import Image
from scipy import ndimage

from drivekd.data.corrupt import video
from drivekd.data.corrupt.corruptions import CORRUPTIONS, SEVERITIES, View, corrupt, find

GOLDEN = Path(__file__).parent / "golden" / "corruptions.npz"
NAMES = [kind.name for kind in CORRUPTIONS]
BLACK = {"CameraCrash", "FrameLost", "NoImage"}
RANDOM = [
    "LowLight",
    "Fog",
    "Snow",
    "Rain",
    "WaterSplash",
    "LensObstacle",
    "MotionBlur",
    "BitError",
]
FIFTEEN = {*RANDOM, "Brightness", "CameraCrash", "FrameLost", "Saturate", "ZoomBlur"}
FIFTEEN |= {"ColorQuant", "H.265"}


def street(height: int, width: int) -> np.ndarray:
    """A picture with what natural ones have: sky, texture at every scale, edges, weak colours."""
    rng = np.random.default_rng(5)
    texture = sum(
        ndimage.zoom(rng.normal(size=(height // s + 2, width // s + 2)), s, order=1)[
            :height, :width
        ]
        * s**0.5
        for s in (1, 2, 4, 8)
    )
    picture = np.full((height, width, 3), 120.0) + 6 * np.asarray(texture)[..., None]
    picture[: height // 3] = np.linspace(150, 200, height // 3)[:, None, None] + (-20, 0, 25)
    for number in range(6):
        top, left = rng.integers(height // 4, height // 2), rng.integers(0, width * 7 // 8)
        part = picture[top : top + height // 4, left : left + width // 9]
        part[:] = part * 0.3 + rng.integers(20, 160) + rng.integers(-30, 30, 3)
        part[:: 4 + number] -= 40
    return np.clip(picture, 0, 255).astype(np.uint8)


def distance(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - two).mean())


def dissimilarity(one: np.ndarray, two: np.ndarray) -> float:
    """1 - SSIM of the grey pictures, in windows of 7×7 (Wang et al. 2004)."""
    a, b = one.mean(-1), two.mean(-1)
    mean_a, mean_b = ndimage.uniform_filter(a, 7), ndimage.uniform_filter(b, 7)
    var_a, var_b = (ndimage.uniform_filter(p * p, 7) - m * m for p, m in ((a, mean_a), (b, mean_b)))
    both = ndimage.uniform_filter(a * b, 7) - mean_a * mean_b
    light = (2 * mean_a * mean_b + 6.5) / (mean_a**2 + mean_b**2 + 6.5)
    return float(1 - (light * (2 * both + 58.5) / (var_a + var_b + 58.5)).mean())


def golden() -> dict[str, np.ndarray]:
    """Every corruption at DriveBench's severity, as it is today."""
    return {name: corrupt(street(45, 64), name, seed=11) for name in NAMES}


# ---- all of them ---------------------------------------------------------------------------------


def test_the_table_has_the_fifteen_and_no_image() -> None:
    assert sorted(NAMES) == sorted(FIFTEEN | {"NoImage"})
    assert all(len(kind.levels) == len(SEVERITIES) for kind in CORRUPTIONS)


def test_the_golden_pictures_are_what_they_were() -> None:
    assert GOLDEN.stat().st_size < 100_000
    with np.load(GOLDEN) as was:
        assert sorted(was) == sorted(NAMES)
        for name, now in golden().items():
            assert np.abs(was[name].astype(int) - now).max() <= 2, name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (37, 53), (97, 64)])
def test_a_new_picture_of_the_same_size(name: str, size: tuple[int, int]) -> None:
    picture = street(99, 99)[: size[0], : size[1]]
    before = picture.copy()
    for severity in (1, 5):
        corrupted = corrupt(picture, name, severity)
        assert (corrupted.shape, corrupted.dtype) == (picture.shape, np.uint8)
    assert (picture == before).all()
    assert not np.shares_memory(picture, corrupted)


@pytest.mark.parametrize("colour", [0, 128, 255])
@pytest.mark.parametrize("name", NAMES)
def test_a_picture_of_one_colour_is_no_trap(name: str, colour: int) -> None:
    corrupted = corrupt(np.full((48, 64, 3), colour, np.uint8), name, 5)  # warnings are errors
    assert (corrupted.shape, corrupted.dtype) == ((48, 64, 3), np.uint8)
    if name in ("MotionBlur", "ZoomBlur", "LensObstacle"):  # there is nothing to blur
        assert int(corrupted.max()) - int(corrupted.min()) <= 2


@pytest.mark.parametrize("name", RANDOM)
def test_equal_seeds_and_pictures_are_equal_others_are_not(name: str) -> None:
    picture, view = street(90, 160), View("a.png", "f", 0)
    first = corrupt(picture, name, 4, 3, view)
    assert (first == corrupt(picture, name, 4, 3, view)).all()
    assert (first != corrupt(picture, name, 4, 4, view)).any()
    assert (first != corrupt(picture, name, 4, 3, View("b.png", "f", 0))).any()


@pytest.mark.parametrize("width", [96, 480])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in BLACK])
def test_distance_from_the_clean_picture_grows_with_severity(name: str, width: int) -> None:
    picture = street(width * 9 // 16, width)
    # fog draws a picture to its own grey, which may be near: there the structure tells
    measure = dissimilarity if name == "Fog" else distance
    far = [measure(picture, corrupt(picture, name, severity)) for severity in SEVERITIES]
    assert far == sorted(set(far)), far
    assert far[0] > 0


@pytest.mark.real_data
def test_distance_grows_on_a_real_picture(real_data: Path) -> None:
    file = next((real_data / "drivelm/nuscenes/samples/CAM_FRONT").glob("*.jpg"))
    with Image.open(file) as image:
        assert image.size == (1600, 900)
        picture = np.asarray(image.convert("RGB").resize((400, 225)))
    for name in [name for name in NAMES if name not in BLACK]:
        measure = dissimilarity if name == "Fog" else distance
        far = [measure(picture, corrupt(picture, name, severity)) for severity in SEVERITIES]
        assert far == sorted(set(far)), (name, far)


def test_the_contact_sheet_shows_every_corruption() -> None:
    picture = street(60, 80)
    sheet = np.asarray(corruption_sheet(picture, 3))
    for name in NAMES:
        tile = corrupt(picture, name, 3)
        places = np.lib.stride_tricks.sliding_window_view(sheet[:, :, 0], tile.shape[:2])[
            30::90, 8::88
        ]
        assert (places == tile[:, :, 0]).all((-1, -2)).any(), name


# ---- names and severities ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("fog", "Fog"),
        ("WATERSPLASHCORRUPTION", "WaterSplash"),
        ("LensObstacleCorruption", "LensObstacle"),
        ("H256ABRCompression", "H.265"),
        ("h265", "H.265"),
        ("bit_error", "BitError"),
        ("noimage", "NoImage"),
    ],
)
def test_names_in_drivebenchs_spelling_and_any_case(said: str, meant: str) -> None:
    assert find(said).name == meant


def test_an_unknown_name_or_severity() -> None:
    with pytest.raises(ValueError, match=r"'Motionblurr'.*'MotionBlur'"):
        find("Motionblurr")
    with pytest.raises(ValueError, match=r"'xyzzy'.*Brightness, LowLight"):
        find("xyzzy")
    with pytest.raises(ValueError, match=r"severity 6 .*1 .* 5"):
        corrupt(street(20, 20), "Fog", 6)


def test_without_a_severity_it_is_drivebenchs() -> None:
    picture = street(40, 60)
    severities = {"Fog": 5, "Rain": 5, "Saturate": 5, "LensObstacle": 5, "Snow": 4, "MotionBlur": 4}
    for name, severity in severities.items():
        assert (corrupt(picture, name) == corrupt(picture, name, severity)).all()


# ---- which views ---------------------------------------------------------------------------------


def struck(name: str, severity: int, seed: int, frame: str) -> set[int]:
    picture = np.full((4, 4, 3), 200, np.uint8)
    views = [View(f"{frame}/{place}.png", frame, place) for place in range(6)]
    return {v.place for v in views if (corrupt(picture, name, severity, seed, v) != picture).any()}


def test_a_crashed_camera_is_black_in_every_frame_of_the_set() -> None:
    for seed in range(20):
        sets = [struck("CameraCrash", severity, seed, "a") for severity in SEVERITIES]
        assert sets[3] == struck("CameraCrash", 4, seed, "b")
        assert all(0 < len(hit) <= severity for hit, severity in zip(sets, SEVERITIES, strict=True))
        assert all(less <= more for less, more in pairwise(sets))
    assert len({frozenset(struck("CameraCrash", 4, seed, "a")) for seed in range(20)}) > 3


def test_frames_are_lost_one_by_one_with_probability_severity_sixths() -> None:
    frames = [f"f{number}" for number in range(150)]
    for severity in (1, 4):
        lost = [struck("FrameLost", severity, 0, frame) for frame in frames]
        for place in range(6):
            share = np.mean([place in hit for hit in lost])
            assert share == pytest.approx(severity / 6, abs=4 * np.sqrt(0.25 / len(frames)))
    assert all(struck("FrameLost", 1, 0, f) <= struck("FrameLost", 4, 0, f) for f in frames[:30])


def test_water_splashes_on_the_first_view_and_one_to_five_others() -> None:
    sets = [struck("WaterSplash", 4, 0, f"f{number}") for number in range(60)]
    assert all(0 in hit for hit in sets)
    assert {len(hit) for hit in sets} == {2, 3, 4, 5, 6}


@pytest.mark.parametrize("name", sorted(BLACK))
def test_a_lost_picture_is_black(name: str) -> None:
    assert not corrupt(street(20, 30), name, 4).any()


# ---- what each one does --------------------------------------------------------------------------


def by_colorsys(picture: np.ndarray, change: tuple[float, float], channel: int) -> np.ndarray:
    """Scale and shift one channel of HSV, pixel by pixel with the standard library."""
    out = np.empty(picture.shape)
    for place in np.ndindex(picture.shape[:2]):
        hsv = list(colorsys.rgb_to_hsv(*(picture[place] / 255).tolist()))
        hsv[channel] = min(max(hsv[channel] * change[0] + change[1], 0), 1)
        out[place] = colorsys.hsv_to_rgb(*hsv)
    return np.rint(out * 255)


def test_brightness_and_saturate_are_those_of_hsv() -> None:
    picture = np.random.default_rng(2).integers(0, 256, (17, 19, 3), dtype=np.uint8)
    picture[0, :3] = [[0, 0, 0], [90, 90, 90], [255, 255, 255]]
    for name, severity, change, channel in (
        ("Brightness", 3, (1, 0.3), 2),
        ("Saturate", 1, (0.3, 0), 1),
        ("Saturate", 5, (20, 0.2), 1),
    ):
        wanted = by_colorsys(picture, change, channel)
        assert (
            np.abs(corrupt(picture, name, severity) - wanted).max() <= 1
        )  # halves round both ways


def test_color_quant_keeps_the_highest_bits() -> None:
    picture = street(40, 60)
    assert (corrupt(picture, "ColorQuant", 3) == picture // 64 * 64).all()
    assert set(np.unique(corrupt(picture, "ColorQuant", 4))) == {0, 128}
    black_and_white = corrupt(picture, "ColorQuant", 5)
    assert set(np.unique(black_and_white)) == {0, 255}
    assert (np.ptp(black_and_white, -1) == 0).all()


def test_low_light_stretches_squares_and_darkens() -> None:
    ramp = np.repeat(np.linspace(60, 200, 200)[None, :, None], 300, 0).repeat(3, 2).astype(np.uint8)
    dark = corrupt(ramp, "LowLight", 2).mean((0, 2)) / 255
    wanted = ((ramp[0, :, 0] - 60) / 140) ** 2 * 0.4
    bright = wanted > 0.1  # where the noise is not clipped at black
    assert np.abs(dark - wanted)[bright].max() < 0.01


def test_noise_of_low_light_is_poisson_and_gaussian() -> None:
    picture = np.zeros((200, 200, 3), np.uint8)
    picture[:, 100:] = 255
    noise = corrupt(picture, "LowLight", 4)[:, 100:].std() / 255
    assert noise == pytest.approx(np.sqrt(0.2 / 30 + 0.038**2), rel=0.03)


@pytest.mark.parametrize("name", ["MotionBlur", "ZoomBlur", "LensObstacle"])
def test_blur_moves_no_light(name: str) -> None:
    plain = np.full((60, 80, 3), (30, 120, 220), np.uint8)
    assert np.abs(corrupt(plain, name, 5).astype(int) - plain).max() <= 1


@pytest.mark.parametrize(("width", "sigma"), [(1600, 11.0), (800, 5.5), (320, 2.2), (96, 2.2)])
def test_lengths_scale_with_the_width_down_to_320(width: int, sigma: float) -> None:
    """A kernel of 71 has σ = 11 px: an edge inside the ellipse becomes 255 / (σ √2π) steep."""
    picture = np.zeros((width // 5, width, 3), np.uint8)
    picture[:, width // 2 :] = 255
    blurred = corrupt(picture, "LensObstacle", 5)[..., 0].astype(float)
    rows = blurred[:, width // 2 - 1] != 0  # where the ellipse covers the edge
    steep = np.median(np.diff(blurred[rows], axis=1).max(1))
    assert 255 / (steep * np.sqrt(2 * np.pi)) == pytest.approx(sigma, rel=0.06)


def test_a_lens_obstacle_blurs_one_ellipse_and_nothing_else() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (180, 320, 3), dtype=np.uint8)
    changed = (corrupt(picture, "LensObstacle", 5) != picture).any(-1)
    pieces, number = ndimage.label(ndimage.binary_closing(changed, iterations=2))
    assert number == 1
    assert 0.03 < changed.mean() < 0.8
    rows, columns = np.nonzero(pieces)
    spread = np.linalg.eigvalsh(np.cov(rows, columns))
    assert changed.sum() == pytest.approx(4 * np.pi * np.sqrt(spread.prod()), rel=0.03)


def test_rain_lowers_the_contrast_and_covers_a_share_that_no_width_changes() -> None:
    covered = []
    for width in (320, 640, 1600):
        plain = np.full((120, width, 3), 60, np.uint8)
        wet = corrupt(plain, "Rain", 5)[..., 0]
        covered.append((wet > np.median(wet)).mean())
    assert covered == pytest.approx([1 - np.exp(-0.2)] * 3, abs=0.04)
    picture = street(180, 320)
    assert corrupt(picture, "Rain", 5).std() < 0.7 * picture.std()


def test_snow_whitens_and_fog_flattens() -> None:
    picture = street(180, 320)
    assert corrupt(picture, "Snow", 4).mean() > picture.mean() + 50
    detail = [
        np.abs(np.diff(p.astype(int), axis=1)).mean() for p in (picture, corrupt(picture, "Fog"))
    ]
    assert detail[1] < 0.5 * detail[0]


# ---- ffmpeg --------------------------------------------------------------------------------------


def test_bit_errors_spoil_a_share_of_the_slices() -> None:
    picture, rng = street(256, 320), np.random.default_rng
    whole = video.bit_errors(picture, 0.0, rng(0))
    assert distance(whole, picture) < 4
    for share in (0.25, 0.75):
        spoilt = np.abs(video.bit_errors(picture, share, rng(0)).astype(int) - whole).max((1, 2))
        rows = (spoilt.reshape(16, 16) > 40).any(1)  # a slice is a row of 16×16 macroblocks
        assert share / 2 <= rows.mean() <= share + 2 / 16  # deblocking reaches over borders


def test_a_decoder_that_conceals_errors_does_so_the_same_every_time() -> None:
    picture = street(128, 160)
    spoilt = [video.bit_errors(picture, 1.0, np.random.default_rng(1)) for _ in range(5)]
    assert all((spoilt[0] == again).all() for again in spoilt)


@pytest.mark.parametrize("name", ["H.265", "BitError"])
def test_without_imageio_ffmpeg_the_way_out_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ValueError, match=r"ffmpeg.*drivekd\[video\]"):
        corrupt(street(20, 20), name, 3)


def test_an_ffmpeg_that_fails_is_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\ncat > /dev/null\necho no such codec >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(video, "ffmpeg_path", lambda: str(broken))
    with pytest.raises(RuntimeError, match=r"ffmpeg.*no such codec"):
        corrupt(street(20, 20), "H.265", 3)
    broken.write_text("#!/bin/sh\ncat > /dev/null\n")
    with pytest.raises(RuntimeError, match=r"0 bytes.*12288"):
        corrupt(street(20, 20), "H.265", 3)


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **golden())
