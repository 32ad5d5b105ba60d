"""Image files to pixel tensors, one tile per image, and how many visual tokens a file takes."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from drivekd.data.pictures import UNREADABLE, read_image, unreadable
from drivekd.models.vlm import Vlm

#: `real` the picture itself; `grey` a mid-grey one of the same size, `black` a black one, as
#: DriveBench shows it; `other` another scene's.
#: Zeroed features are no control: a norm layer blows them up to nonsense.
ImageMode = Literal["real", "grey", "black", "other"]
IMAGE_MODES: tuple[ImageMode, ...] = ("real", "grey", "black", "other")
#: modes that show one colour, of which only the size tells two pictures apart
PLAIN: dict[str, tuple[int, int, int]] = {"grey": (128, 128, 128), "black": (0, 0, 0)}

#: What an image processor makes of a picture: `pixel_values`, and `image_grid_thw` or not.
Processed = dict[str, Tensor]

#: Pictures that were asked for ahead of time, by `identity`; ahead.py fills it.
AHEAD: ContextVar[Mapping[Hashable, Future[Processed]]] = ContextVar("AHEAD", default={})  # noqa: B039

_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height [px] of a picture as it stands upright, from its header alone.

    Raises:
        ValueError: naming the file, if it is missing or no picture.
    """
    try:
        status = path.stat()
        return _size(path, status.st_mtime_ns, status.st_size)
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def token_grid(vlm: Vlm, path: Path) -> tuple[int, int]:
    """Rows and columns of the visual tokens that the model makes of a file.

    The file is opened only where the family adapts to the size of the picture.
    """
    if vlm.family.crossed:
        return 1, 1
    if vlm.family.one_size:
        config = vlm.model.config
        (height, width), patch = config.vision_config.image_size, config.vision_config.patch_size
        ratio = config.downsample_ratio
        return int(height // patch[0] * ratio), int(width // patch[1] * ratio)
    processor = vlm.image_processor
    limits = (processor.size["shortest_edge"], processor.size["longest_edge"])
    return _adaptive_grid(_Key(processor), limits, image_size(path))


def pixels(
    vlm: Vlm,
    paths: Sequence[Path],
    image_mode: ImageMode = "real",
    other: Mapping[Path, Path] | None = None,
) -> Processed:
    """Processor output for files: `pixel_values`, and `image_grid_thw` where the family has it.

    Args:
        vlm: whose image processor is used.
        paths: the files, in order; at least one.
        image_mode: see `ImageMode`.
        other: for `other`: each file to the file whose picture takes its place; it is stretched
            to the original's size where the number of visual tokens depends on it.

    Raises:
        ValueError: for an unreadable file, an unknown mode, or a file without a stand-in.
    """
    ahead = AHEAD.get() if image_mode == "real" else {}
    made = []
    for path in paths:
        future = ahead.get(identity(vlm, path)) if ahead else None
        made.append(future.result() if future else processed(vlm, path, image_mode, other))
    return {name: torch.cat([each[name] for each in made]).to(vlm.device) for name in made[0]}


def identity(vlm: Vlm, path: Path) -> Hashable:
    """A picture in the eyes of all models whose image processors do the same to it."""
    return json.dumps(vlm.image_processor.to_dict(), sort_keys=True, default=str), path


def processed(
    vlm: Vlm,
    path: Path,
    image_mode: ImageMode = "real",
    other: Mapping[Path, Path] | None = None,
) -> Processed:
    """One picture of `pixels`, on the host: the same numbers alone as with others.

    Raises:
        ValueError: as `pixels`.
    """
    shown = picture(vlm, path, image_mode, other)
    output = vlm.image_processor(images=[shown], return_tensors="pt")
    return {name: output[name] for name in ("pixel_values", "image_grid_thw") if name in output}


def picture(
    vlm: Vlm, path: Path, image_mode: ImageMode, other: Mapping[Path, Path] | None
) -> Image.Image:
    """What a model is shown of a file; arguments and errors as for `pixels`."""
    if image_mode == "real":
        return read_image(path)
    if image_mode in PLAIN:
        size = (32, 32) if vlm.family.one_size else image_size(path)
        return Image.new("RGB", size, PLAIN[image_mode])
    stand_in = read_image(stand_in_of(path, image_mode, other))
    return stand_in if vlm.family.one_size else stand_in.resize(image_size(path))


def stand_in_of(path: Path, image_mode: ImageMode, other: Mapping[Path, Path] | None) -> Path:
    """The file whose picture is shown in place of another's.

    Raises:
        ValueError: there is none, or the mode is none that takes another file.
    """
    if image_mode != "other":
        raise ValueError(
            f"image mode {image_mode!r} is unknown; expected one of {', '.join(IMAGE_MODES)}"
        )
    if other is None or path not in other:
        raise ValueError(
            f"image {path}: image mode 'other' needs a stand-in for every file and has none for "
            "this one; complete the mapping `other`"
        )
    return other[path]


class _Key:
    """An image processor as a cache key: same object, same key."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __hash__(self) -> int:
        return id(self.processor)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and other.processor is self.processor


@lru_cache(maxsize=4096)
def _adaptive_grid(key: _Key, limits: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Ask the processor itself, with a blank picture: its resize rule is not ours to copy."""
    del limits  # part of the key only: they change the answer
    width, height = size
    blank = np.zeros((height, width, 3), dtype=np.uint8)
    grid = key.processor(images=[blank], return_tensors="pt")["image_grid_thw"][0].tolist()
    merge = key.processor.merge_size
    return grid[1] // merge, grid[2] // merge


@lru_cache(maxsize=1 << 17)
def _size(path: Path, modified: int, length: int) -> tuple[int, int]:
    del modified, length  # part of the key only: a file written anew is read anew
    with Image.open(path) as image:
        sideways = image.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS
        width, height = image.size
    return (height, width) if sideways else (width, height)
