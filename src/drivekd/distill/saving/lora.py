"""Low-rank adapters in a student's language model, by peft, and the plain model they amount to.

An adapter adds (lora_alpha / r) B A x to what its linear layer makes of x. Only A and B are
trained; the layer's own weight stays as it was, to the bit.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from drivekd.distill.order import stream
from drivekd.models import vlm as vlms
from drivekd.recipe import Lora

FOLDER = "adapter"
"""Of a checkpoint, what peft's own loader reads: A and B of every adapter."""

_INSIDE = "model.language_model."
_NAME = "default"  # peft's, for the only adapter of a model
_WRAPPED = "base_model.model."  # what peft's files put before a module's name


def attach(student: vlms.Vlm, settings: Lora, seed: int) -> None:
    """Put adapters beside the target layers; at first they add zero.

    B is zero; A is uniform in ±1/√inputs, as peft draws it, from the stream
    `(seed, "lora/<name>")` of its own.

    Args:
        student: changed in place.
        settings: rank, scale, dropout and target layers.
        seed: of the run.

    Raises:
        ValueError: a target is the name of no linear layer of the language model, or the student
            carries adapters already.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if next(_adapted(student), None) is not None:
        raise ValueError(
            f"student {student.source} carries the adapters of a run that was cut off; load it anew"
        )
    _check_targets(student, settings)
    names = "|".join(map(re.escape, settings.target_modules))
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=rf"{re.escape(_INSIDE)}(.*\.)?({names})",
        bias="none",
        base_model_name_or_path=student.source,
    )
    inject_adapter_in_model(config, student.model)
    for name, weight in parameters(student).items():
        if ".lora_A." in name:
            bound = 1 / math.sqrt(weight.shape[1])
            drawn = stream(seed, f"lora/{name}").uniform(-bound, bound, tuple(weight.shape))
            with torch.no_grad():
                weight.copy_(torch.from_numpy(drawn))


def _check_targets(student: vlms.Vlm, settings: Lora) -> None:
    modules = vlms.language_model(student).named_modules()
    known = {name.rpartition(".")[2] for name, each in modules if isinstance(each, nn.Linear)}
    for target in settings.target_modules:
        if target not in known:
            close = difflib.get_close_matches(target, known, n=1)
            hint = f"did you mean {close[0]}? There" if close else "there"
            raise ValueError(
                f"train.lora.target_modules: {target!r} is no linear layer of the language model "
                f"of {student.source}; {hint} are {', '.join(sorted(known))}"
            )


def parameters(student: vlms.Vlm) -> dict[str, nn.Parameter]:
    """The adapters' weights, by the names they have in the model."""
    return {name: p for name, p in student.model.named_parameters() if _is_adapter(name)}


def _is_adapter(name: str) -> bool:
    return name.endswith((f".lora_A.{_NAME}.weight", f".lora_B.{_NAME}.weight"))


def _adapted(student: vlms.Vlm) -> Iterator[tuple[str, Any]]:
    """Layers with an adapter, by name."""
    from peft.tuners.lora import LoraLayer

    for name, module in student.model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


# ---------------------------------------------------------------------------- the plain model


@torch.no_grad()
def merged(student: vlms.Vlm) -> dict[str, Tensor]:
    """The plain model's weights by name, W + (lora_alpha / r) B A; the student stays as it is."""
    layers = dict(_adapted(student))
    found: dict[str, Tensor] = {}
    for name, value in student.model.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        owner = layer.removesuffix(".base_layer")
        if owner in layers and leaf == "weight":
            value = (value + layers[owner].get_delta_weight(_NAME)).cpu()  # no second model there
        if not _is_adapter(name):
            found[f"{owner}.{leaf}"] = value
    return found


@torch.no_grad()
def fold(student: vlms.Vlm) -> None:
    """Make the student the plain model of `merged`, in place."""
    for name, layer in list(_adapted(student)):
        layer.base_layer.weight.add_(layer.get_delta_weight(_NAME))
        student.model.set_submodule(name, layer.base_layer)
    model: Any = student.model
    del model.peft_config  # peft left it there


# --------------------------------------------------------------------------------- checkpoints


def write(student: vlms.Vlm, folder: Path) -> None:
    """Write the adapters as peft does: `adapter_model.safetensors` and `adapter_config.json`."""
    folder.mkdir()
    weights = {_in_file(name): p.detach() for name, p in parameters(student).items()}
    save_file(weights, folder / "adapter_model.safetensors")
    model: Any = student.model
    model.peft_config[_NAME].save_pretrained(str(folder))


def read(student: vlms.Vlm, folder: Path) -> None:
    """Copy the adapters of a checkpoint into the student's.

    Raises:
        ValueError: the files are not there or damaged, or of other layers or ranks.
    """
    path = folder / "adapter_model.safetensors"
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}), but the run trains adapters; resume an earlier "
            "checkpoint"
        ) from error
    weights = parameters(student)
    if {_in_file(n): p.shape for n, p in weights.items()} != {n: v.shape for n, v in saved.items()}:
        raise ValueError(
            f"{path} holds adapters of other layers or ranks than the run has; resume with the "
            "recipe of that run"
        )
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(saved[_in_file(name)])


def _in_file(name: str) -> str:
    return _WRAPPED + name.replace(f".{_NAME}.", ".")
