"""A model is looked at before it is loaded: whether its files are there, whether it fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from drivekd.deploy.bench import cost, machine
from drivekd.deploy.bench.cost import Load
from drivekd.models import published
from drivekd.models import vlm as vlms
from drivekd.models.offload import refuse_absent
from drivekd.models.vlm import Vlm

#: most visual tokens of a picture, tokens of a camera's name and of a question, at most [ours]
_MOST_VISUAL, _LABEL, _TEXT = 256, 32, 200
#: without these a model cannot be fed
_NEEDED = ("config.json", "tokenizer_config.json", "preprocessor_config.json")


def open_model(
    source: str, device: str, dtype: torch.dtype, fits: Callable[[Vlm], None] | None = None
) -> Vlm:
    """Load a model for answering, if its files are whole and it fits.

    Args:
        source: folder, hub id or `world:NAME`.
        device: where it goes.
        dtype: of its weights.
        fits: raises for shapes that do not fit.

    Raises:
        ValueError: a file is missing, the model cannot be read, or it does not fit.
    """
    folder = Path(vlms.locate(source))
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if folder.is_dir() and missing:
        raise ValueError(
            f"model {source!r} has no {' and no '.join(missing)}; expected a whole model folder, "
            "with tokenizer and image processor: copy these files from the model it was made from"
        )
    refuse_absent(device)
    if fits is not None:
        fits(published.skeleton(vlms.config_of(source), source))
    return vlms.load(source, device=device, dtype=dtype)


def refuse_too_large(
    vlm: Vlm, *, cameras: int, batch: int, new_tokens: int, device: str, dtype: torch.dtype
) -> None:
    """Compare what answering takes (see `cost.memory`) with what is free.

    Args:
        vlm: shapes of the model.
        cameras: pictures of the largest request.
        batch: requests side by side.
        new_tokens: of an answer.
        device: where it would run.
        dtype: of its weights.

    Raises:
        ValueError: it is more.
    """
    config = vlm.model.config
    visual = int(config.image_seq_length) if vlm.family.one_size else _MOST_VISUAL
    load = Load([(visual, 1)] * cameras, cameras * (visual + _LABEL) + _TEXT, new_tokens, batch)
    need, free = cost.memory(vlm, load, dtype.itemsize), machine.free_memory(device)
    if need.total <= free:
        return
    parts = {"weights": need.weights, "cache": need.cache, "activations": need.activations}
    told = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts.items())
    raise ValueError(
        f"model {vlm.source!r} needs about {need.total / 1e9:.1f} GB in {str(dtype)[6:]} ({told}) "
        f"and {device} has {free / 1e9:.1f} GB free; choose a smaller model, bfloat16, a "
        "smaller batch or another device"
    )
