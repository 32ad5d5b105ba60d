"""Models of this process as engines: plain SDPA, or a static cache with a compiled decoding step.

An engine answers a batch of requests and says when the tokens came. Both of these are transformers'
own `generate`, timed by its streamer, so the figures are those of plain transformers.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from transformers import CompileConfig, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from drivekd.data.sample import Sample
from drivekd.deploy.bench.machine import synchronise
from drivekd.deploy.bench.timing import Timeline
from drivekd.models.encode import Encoded, encode
from drivekd.models.images import pixels
from drivekd.models.vlm import Vlm


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer, or those of a batch, which come together.

    Attributes:
        timeline: when.
        tokens: per request, where the engine tells ids; else empty.
    """

    timeline: Timeline
    tokens: tuple[tuple[int, ...], ...] = ()


#: (requests of one length, most new tokens) → replies
Engine = Callable[[Sequence[Sample], int], list[Reply]]


@dataclass
class Stamps(BaseStreamer):
    """Notes when `generate` hands over the prompt, and then each token."""

    device: torch.device
    times: list[float] = field(default_factory=list)

    def put(self, value: Tensor) -> None:  # noqa: ARG002  only when it comes counts
        """Called by `generate`."""
        synchronise(self.device)
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Called by `generate`."""


def local(vlm: Vlm, *, compiled: bool = False, to_the_end: bool = False) -> Engine:
    """An engine of a loaded model.

    Args:
        vlm: the model.
        compiled: static cache and `torch.compile` for the decoding step; each new length of prompt
            or batch is compiled when it first comes.
        to_the_end: stop at the end of an answer; else go on, so that all answers are equally long.

    Raises:
        ValueError: nothing can be compiled here.
    """
    if compiled:
        refuse_uncompilable(vlm.device)
    ends = vlm.model.generation_config.eos_token_id
    if ends is None:
        ends = vlm.tokenizer.eos_token_id

    def respond(samples: Sequence[Sample], new_tokens: int) -> list[Reply]:
        started = time.perf_counter()
        inputs = tensors(vlm, samples)
        synchronise(vlm.device)
        ready, stamps = time.perf_counter(), Stamps(vlm.device)
        settings = _settings(vlm, new_tokens, ends if to_the_end else None, compiled)
        made = _generate(vlm, inputs, stamps, settings)
        new = made[:, inputs["input_ids"].shape[1] :].tolist()
        timeline = Timeline(started, ready, tuple(stamps.times[1:]), len(new[0]))
        return [Reply(timeline, tuple(map(tuple, new)))]

    return respond


def tensors(vlm: Vlm, samples: Sequence[Sample]) -> dict[str, Tensor]:
    """What `generate` is given: the pictures are read and processed for every request.

    Raises:
        ValueError: prompts of unequal lengths, or a sample that cannot be encoded.
    """
    encoded = [encode(vlm, sample, add_answer=False) for sample in samples]
    if len({len(each.input_ids) for each in encoded}) != 1:
        raise ValueError("a batch is timed with prompts of one length; give equally long ones")
    ids = torch.stack([each.input_ids for each in encoded]).to(vlm.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **_seen(vlm, encoded)}
    if vlm.family.rope_axes == 3:  # without the token types visual tokens count as text, silently
        kinds = torch.stack([each.is_image for each in encoded])
        inputs["mm_token_type_ids"] = kinds.int().to(vlm.device)
    return inputs


def _seen(vlm: Vlm, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
    paths = [path for each in encoded for path in each.images]
    if not paths:
        return {}
    found = pixels(vlm, paths)
    return found | {"pixel_values": found["pixel_values"].to(vlm.model.dtype)}


def _settings(vlm: Vlm, new_tokens: int, ends: Any, compiled: bool) -> GenerationConfig:
    settings = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=vlm.tokenizer.pad_token_id or 0,
    )
    if compiled:
        on_gpu = vlm.device.type == "cuda"
        config = CompileConfig(fullgraph=False, mode="reduce-overhead" if on_gpu else "default")
        # transformers compiles by itself on GPUs only
        vars(config)["_compile_all_devices"] = True
        settings.cache_implementation, settings.compile_config = "static", config
    return settings


def _generate(
    vlm: Vlm, inputs: dict[str, Tensor], stamps: Stamps, settings: GenerationConfig
) -> Tensor:
    """Under these settings alone: what an argument leaves open, `generate` takes from the model.

    Raises:
        MemoryError: the device's is not enough.
        RuntimeError: the step was to be compiled, and that failed.
    """
    model: Any = vlm.model
    own = model.generation_config
    model.generation_config = settings
    try:
        made: Tensor = model.generate(**inputs, streamer=stamps)
    except torch.OutOfMemoryError:
        batch, length = inputs["input_ids"].shape
        raise MemoryError(
            f"batch {batch}, prompt of {length} tokens: the device's memory is not enough; choose "
            "fewer cameras, a smaller batch, fewer new tokens or bfloat16"
        ) from None
    except RuntimeError as error:
        if settings.compile_config is None:
            raise
        first = str(error).strip().partition("\n")[0]
        raise RuntimeError(
            f"engine compiled: torch.compile fails on this machine or model ({first}); choose the "
            "engine sdpa"
        ) from error
    finally:
        model.generation_config = own
    return made


def refuse_uncompilable(device: torch.device) -> None:
    """Say what `torch.compile` lacks.

    Raises:
        ValueError: no C++ compiler for a CPU, no Triton for a GPU.
    """
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise ValueError(
                "engine compiled: torch.compile needs Triton to compile for a GPU; install it, or "
                "choose the engine sdpa"
            )
    elif not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise ValueError(
            "engine compiled: torch.compile needs a C++ compiler for a CPU and finds none; install "
            "g++, or choose the engine sdpa"
        )
