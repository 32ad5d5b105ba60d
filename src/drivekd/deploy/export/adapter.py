"""Low-rank adapters in peft's own files, added to the weights of the model they were trained on."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from drivekd.models.vlm import Vlm

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def merge(vlm: Vlm, folder: Path) -> Vlm:
    """Put W + (lora_alpha / r) B A in place of W; the model that was given is used up.

    The sum is made in the model's own type: load it in float32. `folder` holds peft's
    `adapter_config.json` and `adapter_model.safetensors`.

    ValueError: as `tensors`, or the adapter is of another model.
    """
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict

    names = tensors(folder)
    with _fitting(folder, vlm.source):
        wrapped: Any = PeftModel.from_pretrained(vlm.model, str(folder))
        if get_peft_model_state_dict(wrapped).keys() != names:
            raise ValueError("the layers in its file are not those of the model")
        merged = wrapped.merge_and_unload(safe_merge=True)
    if hasattr(merged, "peft_config"):
        del merged.peft_config  # peft leaves it there, and transformers would save the adapter
    return replace(vlm, model=merged.eval())


def tensors(folder: Path) -> set[str]:
    """Return the names of the tensors in an adapter's file.

    ValueError: no such files, damaged ones, or another kind of adapter than LoRA.
    """
    for name in (SETTINGS, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(
                f"adapter {folder}: no {name} there; expected a folder that peft wrote, such as "
                "checkpoint-<step>/adapter of a run"
            )
    try:
        kind = json.loads((folder / SETTINGS).read_text(encoding="utf-8")).get("peft_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"adapter {folder / SETTINGS} is damaged: {error}") from error
    if kind != "LORA":
        raise ValueError(
            f"adapter {folder} is of kind {kind!r}, expected 'LORA': the others do not add up to "
            "plain weights; load it with peft"
        )
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            return set(file.keys())
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"adapter {folder / WEIGHTS} is damaged or cut off ({error}); copy it again"
        ) from error


@contextmanager
def _fitting(folder: Path, source: str) -> Iterator[None]:
    """Say of an adapter that it does not belong to the model."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # what they would tell of is compared below
            yield
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        said = " ".join(str(error).split())[:300]
        raise ValueError(
            f"adapter {folder} does not fit model {source!r}: {said}; name the model that it was "
            "trained on"
        ) from error
