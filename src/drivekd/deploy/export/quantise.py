"""Weights of the decoder in 8 or 4 bits, by bitsandbytes; everything that sees stays as it is.

Both formats round weights alone, each row or block by its own largest value, so no calibration data
is needed. Left as they are: vision tower, projector, language-model head, embeddings and norms.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from drivekd.models.quiet import hush_quantised, quiet
from drivekd.models.vlm import Vlm

#: 8 bits with outliers apart, or 4 bits on the quantiles of a normal distribution.
Scheme = Literal["int8", "nf4"]
SCHEMES: tuple[Scheme, ...] = ("int8", "nf4")


def refuse_unready(scheme: str) -> None:
    """Refuse an unknown scheme, or one whose library is not installed, by a ValueError."""
    if scheme not in SCHEMES:
        raise ValueError(f"quantise {scheme!r} is unknown; expected one of {', '.join(SCHEMES)}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            f"quantise {scheme}: bitsandbytes is not installed; pip install 'drivekd[quantise]'"
        )


def kept(vlm: Vlm) -> tuple[str, ...]:
    return (*vlm.family.vision, "lm_head")


def quantised(
    vlm: Vlm, folder: Path, scheme: Scheme, dtype: torch.dtype, device: str = "cpu"
) -> Vlm:
    """Read a model from a folder of plain weights with its decoder's linear layers rounded.

    `dtype` is that of everything else, and of the sums.
    """
    from transformers import BitsAndBytesConfig

    left: dict[str, Any] = {"llm_int8_skip_modules": list(kept(vlm))}
    if scheme == "int8":
        how = BitsAndBytesConfig(load_in_8bit=True, **left)
    else:
        how = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, **left
        )
    hush_quantised()
    with quiet():
        model = AutoModelForImageTextToText.from_pretrained(
            folder,
            quantization_config=how,
            dtype=dtype,
            device_map=device,
            attn_implementation="sdpa",
            trust_remote_code=False,
        )
    return replace(vlm, model=model.eval())


def rounded_layers(vlm: Vlm) -> list[str]:
    named = vlm.model.named_parameters()
    return [n.removesuffix(".weight") for n, p in named if p.dtype in (torch.int8, torch.uint8)]


def untouched(vlm: Vlm, rounded: Vlm, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return those of a plain model's weights that quantising must not have changed.

    RuntimeError: a layer that is to be kept was rounded.
    """
    names = {f"{name}.weight" for name in rounded_layers(rounded)}
    spoilt = sorted(n for n in names if n.startswith(tuple(f"{part}." for part in kept(vlm))))
    if spoilt:
        raise RuntimeError(f"quantising rounded {spoilt[0]}, which is to stay as it is")
    return {name: value for name, value in weights.items() if name not in names}
