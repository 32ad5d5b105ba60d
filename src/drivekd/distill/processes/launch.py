"""What `accelerate launch` asks of a run by its environment, as keys of the recipe.

The launcher sets the same variables whether its user asked for something or not, so that `no` and
`false` mean as little as a variable that is not there. [ours]
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import torch

from drivekd.recipe import Recipe, parse

logger = logging.getLogger(__name__)

_YES = frozenset({"1", "true", "yes", "on", "y", "t"})
_WAY = "in accelerate's configuration set distributed_type: MULTI_GPU, or FSDP with fsdp_version: 2"

#: Switches that ask for what is not built, and the way out.
_REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed", _WAY),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", _WAY),
    "FSDP_OFFLOAD_PARAMS": ("fsdp_offload_params", "set it to false"),
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": (
        "fsdp_activation_checkpointing_offload",
        "set it to false",
    ),
}

#: Axes of accelerate's parallelism_config besides the plain spreading of weights and data.
_AXES = ("TP", "CP", "SP", "DP_REPLICATE")


def honoured(recipe: Recipe, environment: Mapping[str, str] = os.environ) -> Recipe:
    """The recipe with what `accelerate launch` asks for where the recipe itself says nothing.

    `mixed_precision: bf16` sets `train.bf16`, FSDP of version 2 `train.fsdp`, its
    `fsdp_activation_checkpointing` `train.gradient_checkpointing`, and
    ACCELERATE_GRADIENT_ACCUMULATION_STEPS `train.gradient_accumulation_steps`. A key that stands in
    the recipe wins, as an argument wins over the environment in accelerate itself; a line says so.

    Args:
        recipe: of the run.
        environment: of this process.

    Raises:
        ValueError: the launcher asks for something that is not built, or that the recipe excludes.
    """
    _refuse(environment)
    given, asked = recipe.train.model_fields_set, _asked(environment)
    for key, (value, name) in asked.items():
        own = getattr(recipe.train, key)
        if key in given and own != value and environment.get("RANK", "0") == "0":
            logger.warning(
                "train.%s: %s stands in the recipe and wins; accelerate launch asks for %s by %s",
                key, str(own).lower(), str(value).lower(), name,
            )  # fmt: skip
    taken = {key: value for key, (value, _) in asked.items() if key not in given}
    if not taken:
        return recipe
    whole = recipe.model_dump(mode="json")
    return parse(whole | {"train": whole["train"] | taken}, "what accelerate launch asks for")


def _asked(environment: Mapping[str, str]) -> dict[str, tuple[bool | int, str]]:
    """Keys under `train` with the value asked for and by what it was."""
    found: dict[str, tuple[bool | int, str]] = {}
    if environment.get("ACCELERATE_MIXED_PRECISION") == "bf16":
        found["bf16"] = (True, "mixed_precision: bf16")
    if _on(environment, "ACCELERATE_USE_FSDP"):
        found["fsdp"] = (True, "distributed_type: FSDP")
        if _on(environment, "FSDP_ACTIVATION_CHECKPOINTING"):
            found["gradient_checkpointing"] = (True, "fsdp_activation_checkpointing: true")
    steps = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "")
    if steps.isdecimal() and int(steps) > 0:
        found["gradient_accumulation_steps"] = (
            int(steps),
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS={steps}",
        )
    return found


def _refuse(environment: Mapping[str, str]) -> None:
    """Stop where the launcher asks for something that would otherwise silently not happen."""
    for name, (what, way) in _REFUSED.items():
        if _on(environment, name):
            _stop(f"{what} ({name}), which is not built", way)
    version = environment.get("FSDP_VERSION", "1")
    if _on(environment, "ACCELERATE_USE_FSDP") and version != "2":
        _stop(f"FSDP of version {version}, expected version 2", "set fsdp_version: 2")
    if _on(environment, "ACCELERATE_USE_PARALLELISM_CONFIG"):
        for axis in _AXES:
            size = environment.get(f"PARALLELISM_CONFIG_{axis}_SIZE", "1")
            if size != "1":
                name = f"parallelism_config_{axis.lower()}_size"
                _stop(f"{name}: {size}, which is not built", "set it to 1")
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "bf16"):
        why = "a gradient scaler does not see hand-made gradients"
        _stop(f"mixed_precision: {precision}, expected no or bf16 ({why})", "set bf16 or no")
    compiler = environment.get("ACCELERATE_DYNAMO_BACKEND", "NO")
    if compiler.upper() != "NO":
        _stop(f"dynamo_backend: {compiler}, but models are not compiled", "set dynamo_backend: no")
    if _on(environment, "ACCELERATE_USE_CPU"):
        _refuse_cpu(environment)


def _refuse_cpu(environment: Mapping[str, str]) -> None:
    if torch.cuda.is_available():
        _stop("the CPU, but this PyTorch sees a GPU", "hide it: CUDA_VISIBLE_DEVICES=''")
    if "MASTER_PORT" in environment and "WORLD_SIZE" not in environment:
        _stop(
            "several processes by --cpu, of which it starts only one",
            "replace --cpu by --multi_gpu, which joins CPUs where there is no GPU, or unset "
            "MASTER_PORT if one was meant",
        )


def _stop(what: str, way: str) -> None:
    raise ValueError(f"accelerate launch asks for {what}; {way}")


def _on(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in _YES
