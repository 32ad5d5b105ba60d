"""One picture through a video codec and back: compressed hard, or damaged on the way.

ffmpeg is the binary that imageio-ffmpeg brings (the optional extra `video`); one thread, so that
equal pictures come back equal.
"""

from __future__ import annotations

import math
import re
import subprocess

import numpy as np
from jaxtyping import UInt8

#: smallest side that both encoders take [px]
_SMALLEST = 64
#: independent pieces of a picture on the way; an error spoils no more than its own
_SLICES = 16
_IDR_SLICE = 5  # NAL unit type, ITU-T H.264 table 7-1
_HEADER = 8  # bytes of a slice that hold its header; the decoder drops slices without one


def h265(picture: UInt8[np.ndarray, "h w 3"], rate_factor: int) -> UInt8[np.ndarray, "h w 3"]:
    """Send a picture through H.265 at a constant rate factor; 6 more halve the rate, about.

    [ours] The benchmark divides the bit rate of a camera's video by 2, 4, 8, 16, 32. A single
    picture has no rate to divide; the factors are those of Yi et al. 2021 for the same codec.
    """
    alone = "log-level=none:pools=none:frame-threads=1"
    padded = _padded(picture)
    coded = _encoded(padded, "libx265", "hevc", "-crf", str(rate_factor), "-x265-params", alone)
    return _cropped(_decoded(coded, "hevc", padded), picture)


def bit_errors(
    picture: UInt8[np.ndarray, "h w 3"], share: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Send a picture as H.264 in slices, one byte of a share of them wrong on arrival.

    [ours] The benchmark changes one byte in 10,000 to 100,000 of a video, where an error lives on
    until the next key frame. H.264, because ffmpeg conceals what is lost of it, and slices, so that
    a share of the picture is hit whatever its size.
    """
    padded = _padded(picture)
    blocks = math.ceil(padded.shape[0] / 16) * math.ceil(padded.shape[1] / 16)
    pieces = f"slice-max-mbs={math.ceil(blocks / _SLICES)}"
    coded = bytearray(_encoded(padded, "libx264", "h264", "-crf", "18", "-x264-params", pieces))
    slices = _slices(coded)
    order, places = rng.permutation(len(slices)), rng.random(len(slices))
    flips = rng.integers(1, 256, len(slices))
    for number in order[: math.ceil(share * len(slices))].tolist():
        start, end = slices[number]
        # in the first half, so that enough of the slice comes after it
        place = start + _HEADER + int(places[number] * ((end - start) / 2 - _HEADER))
        coded[min(max(place, start + 1), end - 1)] ^= int(flips[number])
    return _cropped(_decoded(bytes(coded), "h264", padded), picture)


def _slices(stream: bytes | bytearray) -> list[tuple[int, int]]:
    """Return begin and end of the slices of a key frame, without their start codes."""
    begins = [code.end() for code in re.finditer(b"\x00\x00\x01", stream)]
    ends = [begin - 3 for begin in begins[1:]] + [len(stream)]
    pieces = zip(begins, ends, strict=True)
    return [(begin, end) for begin, end in pieces if stream[begin] & 0x1F == _IDR_SLICE]


def _padded(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Pad to even sides of at least 64 px with the nearest pixel: codecs take no others."""
    more = [(0, max(side + side % 2, _SMALLEST) - side) for side in picture.shape[:2]]
    return np.pad(picture, [*more, (0, 0)], mode="edge")


def _cropped(
    padded: UInt8[np.ndarray, "H W 3"], picture: UInt8[np.ndarray, "h w 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    return padded[: picture.shape[0], : picture.shape[1]]


def _encoded(picture: UInt8[np.ndarray, "h w 3"], codec: str, form: str, *more: str) -> bytes:
    size = f"{picture.shape[1]}x{picture.shape[0]}"
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-i", "-")
    return _ffmpeg(
        picture.tobytes(), *raw, "-threads", "1", "-c:v", codec, *more, "-pix_fmt", "yuv420p",
        "-f", form, "-",
    )  # fmt: skip


def _decoded(
    coded: bytes, form: str, like: UInt8[np.ndarray, "h w 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    raw = ("-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    out = _ffmpeg(coded, "-threads", "1", "-flags", "output_corrupt", "-f", form, "-i", "-", *raw)
    if len(out) != like.size:
        raise RuntimeError(f"ffmpeg decoded {len(out)} bytes of {form}, expected {like.size}")
    return np.frombuffer(out, np.uint8).reshape(like.shape)


def _ffmpeg(data: bytes, *arguments: str) -> bytes:
    exact = ("-v", "fatal", "-nostdin", "-sws_flags", "bicubic+accurate_rnd+bitexact")
    done = subprocess.run(  # noqa: S603  our own arguments, no shell
        [ffmpeg_path(), *exact, *arguments], input=data, capture_output=True, check=False
    )
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        raise RuntimeError(f"ffmpeg failed: {reason}")
    return done.stdout


def ffmpeg_path() -> str:
    """Return the path of ffmpeg; a ValueError where there is none for this system."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return str(get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"H.265 and BitError need ffmpeg ({error}): install the extra, "
            "`pip install 'drivekd[video]'`, or name an ffmpeg in IMAGEIO_FFMPEG_EXE"
        ) from None
