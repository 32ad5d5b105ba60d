"""Counted costs against what really lies in memory and what PyTorch counts as operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from drivekd.data.sample import Sample
from drivekd.deploy.bench import cost, random_weights
from drivekd.deploy.bench.cost import Load
from drivekd.deploy.bench.engine import local, tensors
from drivekd.deploy.bench.machine import Rates
from drivekd.models import published, tiny
from drivekd.models.encode import encode
from drivekd.models.vlm import Vlm

Shown = Callable[..., Sample]
FLOAT = 4


def load_of(vlm: Vlm, sample: Sample, new: int = 1) -> Load:
    encoded = encode(vlm, sample, add_answer=False)
    return Load(encoded.grids, len(encoded.input_ids), new)


@pytest.mark.parametrize("cameras", [1, 3])
def test_operations_as_counted_by_pytorch(vlm: Vlm, shown: Shown, cameras: int) -> None:
    sample = shown(cameras)
    load = load_of(vlm, sample)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        local(vlm)([sample], 1)
    config = vlm.model.config.get_text_config()
    masked = 2 * load.prompt**2 * config.hidden_size * config.num_hidden_layers  # it makes them all
    assert counter.get_total_flops() - masked == pytest.approx(
        cost.prefill_flops(vlm, load), rel=0.02
    )


def test_weights_and_cache_byte_for_byte(vlm: Vlm, shown: Shown) -> None:
    sample = shown(2)
    load = load_of(vlm, sample, new=3)
    counted = cost.memory(vlm, load, FLOAT)
    weights = {p.data_ptr(): p.nbytes for p in vlm.model.parameters()}
    assert counted.weights == sum(weights.values())
    with torch.no_grad():
        output = vlm.model(**tensors(vlm, [sample]), use_cache=True)
    held = sum(x.keys.nbytes + x.values.nbytes for x in output.past_key_values.layers)
    assert counted.cache * load.prompt == held * (load.prompt + load.new)
    assert counted.total == counted.weights + counted.cache + counted.activations
    twice = cost.memory(vlm, replace(load, batch=2), FLOAT)
    assert twice.weights == counted.weights
    assert (twice.cache, twice.activations) == (2 * counted.cache, 2 * counted.activations)


def test_a_step_of_decoding_reads_decoder_head_and_cache(shown: Shown) -> None:
    untied, tied = (tiny.tiny_vlm(tie_embeddings=tie, image_size=48) for tie in (False, True))
    load = load_of(untied, shown(1), new=4)
    read = [cost.decode_bytes(vlm, load, FLOAT) for vlm in (untied, tied)]
    assert read[0] == read[1]  # the head is read, tied or not; embeddings are looked up
    cache = (load.prompt + 2) * cost.cache_per_token(untied, FLOAT)
    layers = untied.model.get_submodule("model.language_model")
    embedded = untied.model.get_input_embeddings().weight
    inside = sum(p.numel() for p in layers.parameters()) - embedded.numel()
    assert read[0] == FLOAT * (inside + embedded.numel()) + cache


def test_the_floor_is_read_or_multiplied_whichever_is_longer(shown: Shown) -> None:
    vlm = tiny.tiny_vlm(image_size=48)
    load = load_of(vlm, shown(1), new=4)
    slow_memory = cost.floor(vlm, load, FLOAT, Rates(1.0, 1e12))
    assert slow_memory.decode_s == slow_memory.decode_bytes
    assert slow_memory.prefill_s == slow_memory.prefill_flops / 1e12
    fast_memory = cost.floor(vlm, load, FLOAT, Rates(1e18, 1.0))
    weights = cost.decode_bytes(vlm, replace(load, prompt=0, new=0), FLOAT) // FLOAT
    assert fast_memory.decode_s == 2 * weights


@pytest.mark.parametrize(
    ("name", "layers", "heads", "width"), [("3B-Instruct", 36, 2, 128), ("7B-Instruct", 28, 4, 128)]
)
def test_cache_of_a_published_model(name: str, layers: int, heads: int, width: int) -> None:
    source = f"Qwen/Qwen2.5-VL-{name}"
    vlm = published.skeleton(published.config_of(source), source)
    assert cost.cache_per_token(vlm, 2) == 2 * layers * heads * width * 2


def test_a_published_model_is_asked_without_its_weights(shown: Shown) -> None:
    vlm = random_weights.shell("InternVL3-1B-hf")
    load = load_of(vlm, shown(6), new=8)
    assert load.visual == 6 * 256
    assert all(p.is_meta for p in vlm.model.parameters())
    assert cost.memory(vlm, load, 2).weights == pytest.approx(2 * 0.938e9, rel=0.01)
    # 0.3 G parameters for 6 · 1025 patches and 0.36 G for the prompt, and attention
    linear = 2 * (0.304e9 * 6 * 1025 + 0.358e9 * load.prompt)
    assert linear < cost.prefill_flops(vlm, load) < 1.3 * linear
