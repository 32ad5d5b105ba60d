"""What answering costs, counted from shapes: bytes that must lie and be read, products to be made.

All of it is ours. Weights, cache and matrix products are counted exactly, what a layer holds while
it runs is an estimate. A time that follows from them and from a machine's rates is a floor:
decoding cannot be faster than its bytes are read, prefill not faster than its products are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from drivekd.deploy.bench.machine import Rates
from drivekd.models.published import parameters
from drivekd.models.vlm import Vlm, head_weight, language_model, vision_parts


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked.

    Attributes:
        grids: rows and columns of visual tokens of each picture of one request.
        prompt: its tokens, visual ones included.
        new: tokens of the answer.
        batch: requests side by side.
    """

    grids: Sequence[tuple[int, int]]
    prompt: int
    new: int
    batch: int = 1

    @property
    def visual(self) -> int:
        """Visual tokens of one request."""
        return sum(rows * columns for rows, columns in self.grids)


@dataclass(frozen=True, slots=True)
class Memory:
    """What must lie in memory [bytes].

    Attributes:
        weights: each number once.
        cache: keys and values of prompt and answer.
        activations: what the largest layer holds while it runs on the prompt, at most.
    """

    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations


@dataclass(frozen=True, slots=True)
class Floor:
    """The least that a machine takes.

    Attributes:
        prefill_s: to make the products of the prompt [s].
        decode_s: to read what one token needs, or to make its products if that is longer [s].
        prefill_flops: those products, two operations each.
        decode_bytes: weights of decoder and head, and the cache at the middle of the answer.
    """

    prefill_s: float
    decode_s: float
    prefill_flops: int
    decode_bytes: int


def memory(vlm: Vlm, load: Load, number: int) -> Memory:
    """Memory of a model that answers.

    Args:
        vlm: its shapes.
        load: what is asked.
        number: bytes of a number.
    """
    cache = load.batch * (load.prompt + load.new) * cache_per_token(vlm, number)
    return Memory(number * parameters(vlm), cache, activations(vlm, load, number))


def cache_per_token(vlm: Vlm, number: int) -> int:
    """Keys and values of one token in all layers [bytes]."""
    config = vlm.model.config.get_text_config()
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * _head(config) * number)


def activations(vlm: Vlm, load: Load, number: int) -> int:
    """What the widest layer holds for all its tokens [bytes], with the pictures before and after.

    A layer of width d whose MLP is i wide holds 6 d + 3 i numbers per token: residual stream, norm,
    queries, keys, values, what leaves attention; gate, up and their product. Pixels lie in float32
    and in the model's precision.
    """
    text, vision = vlm.model.config.get_text_config(), vlm.model.config.vision_config
    rows = [
        (load.batch * load.prompt, int(text.hidden_size), int(text.intermediate_size)),
        (load.batch * _patches(vlm, load), int(vision.hidden_size), int(vision.intermediate_size)),
    ]
    widest = max(n * (6 * wide + 3 * inner) for n, wide, inner in rows)
    embedded = 2 * load.batch * load.prompt * int(text.hidden_size)
    return number * (widest + embedded) + (4 + number) * load.batch * _pixels(vlm, load)


def floor(vlm: Vlm, load: Load, number: int, rates: Rates) -> Floor:
    """The floor of one request.

    Args:
        vlm: shapes of the model.
        load: what is asked.
        number: bytes of a number.
        rates: of the machine, in the model's precision.
    """
    products, read = prefill_flops(vlm, load), decode_bytes(vlm, load, number)
    step = load.batch * 2 * _decoded(vlm) / rates.flops_per_s
    return Floor(products / rates.flops_per_s, max(read / rates.bytes_per_s, step), products, read)


def decode_bytes(vlm: Vlm, load: Load, number: int) -> int:
    """What one step of decoding reads: weights once, the cache of every request [bytes]."""
    context = load.prompt + load.new // 2
    cache = load.batch * context * cache_per_token(vlm, number)
    return number * _decoded(vlm) + cache


def prefill_flops(vlm: Vlm, load: Load) -> int:
    """Operations of vision tower, decoder and head (last position only) on the prompt.

    A matrix of p numbers costs 2 p for each token. Attention of width a over n tokens costs 4 n² a,
    in the decoder half of that, for it is causal.
    """
    text = vlm.model.config.get_text_config()
    matrices = sum(each.weight.numel() for _, each in _linear(language_model(vlm)))
    width = text.num_attention_heads * _head(text)
    decoder = 2 * load.prompt * matrices
    decoder += 2 * load.prompt**2 * width * text.num_hidden_layers
    return int(load.batch * (decoder + 2 * head_weight(vlm).numel() + vision_flops(vlm, load)))


def vision_flops(vlm: Vlm, load: Load) -> int:
    """Operations of the vision tower and its projector on the pictures of one request."""
    patches, total = _patches(vlm, load), 0
    for part, name in zip(vision_parts(vlm), vlm.family.vision, strict=True):
        for path, each in _linear(part):
            joined = "merger" in path or "projector" in name
            total += 2 * each.weight.numel() * (load.visual if joined else patches)
    vision = vlm.model.config.vision_config
    depth = int(getattr(vision, "num_hidden_layers", None) or vision.depth)
    whole = getattr(vision, "fullatt_block_indexes", None)  # the others see a window each
    full = depth if whole is None else len(whole)
    for count in _per_picture(vlm, load):
        total += 4 * count**2 * int(vision.hidden_size) * full
        if whole is not None:
            window = min(count, (int(vision.window_size) // int(vision.patch_size)) ** 2)
            total += 4 * count * window * int(vision.hidden_size) * (depth - full)
    return total


def _decoded(vlm: Vlm) -> int:
    """Numbers that one step of decoding multiplies by: all of decoder and head but embeddings."""
    embeddings: Any = vlm.model.get_input_embeddings()
    inside = sum(p.numel() for p in language_model(vlm).parameters())
    return int(inside - embeddings.weight.numel() + head_weight(vlm).numel())


def _linear(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Everything in a module that multiplies each token by a matrix, with its name."""
    for name, each in module.named_modules():
        if isinstance(each, nn.Linear | nn.Conv2d | nn.Conv3d):
            yield name, each


def _per_picture(vlm: Vlm, load: Load) -> list[int]:
    """Patches of each picture; one more where the tower has a class token."""
    own = 1 if vlm.family.one_size else 0
    return [4 * rows * columns + own for rows, columns in load.grids]


def _patches(vlm: Vlm, load: Load) -> int:
    return sum(_per_picture(vlm, load))


def _pixels(vlm: Vlm, load: Load) -> int:
    """Numbers of the pictures of one request as the model gets them."""
    vision = vlm.model.config.vision_config
    size = vision.patch_size
    side = int(size[0] if isinstance(size, list | tuple) else size)
    frames = int(getattr(vision, "temporal_patch_size", 1))
    return 3 * frames * side**2 * 4 * load.visual


def _head(config: Any) -> int:
    """Width of one head."""
    own = getattr(config, "head_dim", None)
    return int(own or config.hidden_size // config.num_attention_heads)
