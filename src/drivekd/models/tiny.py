"""Tiny models of each family, built in memory from configuration: for tests and for the world.

They are instances of the real classes, so they save, load and generate in plain transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as RawTokenizer
from transformers import PreTrainedTokenizerFast as Tokenizer

from drivekd.models.vlm import FAMILIES, Family, Vlm

hf: Any = transformers  # its constructors are annotated in part only

#: one of each family, and InternVL with the decoder of InternVL3.5
KINDS: dict[str, Family] = FAMILIES | {"internvl3_5": FAMILIES["internvl"]}

#: mean and spread of ImageNet's colours, which InternVL normalises by
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: one token per (camera, cell of a 4x4 grid): 6 cameras x 16 cells
REGION_TOKENS = tuple(f"<r{k}>" for k in range(96))

_VISION_HEADS = 4
PAD = "<|endoftext|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"

_NAMED_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
}

# Words with at most one leading mark, single digits, runs of marks, line breaks, other space:
# the cut that Qwen2 tokenizers make, so re-reading the file with their class changes nothing.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build_tokenizer(
    texts: Iterable[str] = (), vocab_size: int = 1024, *, family: str = "internvl"
) -> Tokenizer:
    """Train a byte-level BPE tokenizer with chat, image and region tokens and a chat template.

    It writes any text: bytes are the alphabet, and the only tokens without texts to learn merges
    from. Each digit is a token. Region tokens `<r0>` … `<r95>` are ordinary text when decoded;
    markers are special. The template writes a family's image markers for structured content.
    `vocab_size` bounds all tokens, special ones included; it needs room for the bytes.
    """
    special = (PAD, TURN_START, TURN_END, *_NAMED_TOKENS.values())
    room = vocab_size - len(special) - len(REGION_TOKENS)
    if room < 256:
        least = 256 + len(special) + len(REGION_TOKENS)
        raise ValueError(f"vocab_size is {vocab_size}, expected at least {least}")
    raw = RawTokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=room,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    raw.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    raw.add_tokens([AddedToken(t, normalized=False) for t in REGION_TOKENS])
    tokenizer: Tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=TURN_END,
        pad_token=PAD,
        extra_special_tokens=dict(_NAMED_TOKENS),
        chat_template=_chat_template(family),
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    return tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Measures of a tiny model; an image takes (image_size / patch_size / 2)² tokens."""

    text_hidden: int = 64
    text_layers: int = 2
    text_intermediate: int | None = None  # of the gated MLP; None: 3 times text_hidden
    heads: int = 4
    kv_heads: int = 2
    vision_hidden: int = 64  # of the tower, whose MLP is 4 times as wide
    vision_layers: int = 2
    image_size: int = 96  # side of the square image [px]
    patch_size: int = 12  # [px]
    tie_embeddings: bool = False
    initializer_range: float = 0.02  # standard deviation of random weights


def tiny_vlm(
    family: str = "internvl", *, tokenizer: Tokenizer | None = None, seed: int = 0, **sizes: Any
) -> Vlm:
    """Build a small random model of one of `KINDS`, with a byte-level tokenizer if none is given.

    The InternVL tower is set up to be trainable from scratch: layer scale 1 (stock 0.1), the final
    norm kept (stock configuration drops it) and random position embeddings (stock zeros) [ours].
    `sizes` are fields of `Sizes`; the global random state stays as it was.

    Raises:
        ValueError: the family or a size is unknown, or sizes do not divide.
    """
    if family not in KINDS:
        raise ValueError(f"family {family!r} is unknown; expected one of {', '.join(KINDS)}")
    size = _sizes(sizes)
    tokenizer = build_tokenizer(family=family) if tokenizer is None else tokenizer
    configs: dict[str, Callable[[Sizes, Tokenizer], Any]] = {
        "internvl": partial(_internvl_config, decoder=hf.Qwen2Config),
        "internvl3_5": partial(_internvl_config, decoder=hf.Qwen3Config),
        "qwen2_5_vl": _qwen2_5_config,
        "qwen3_vl": _qwen3_config,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        auto = hf.AutoModelForImageTextToText
        model = auto.from_config(configs[family](size, tokenizer), attn_implementation="sdpa")
        for name, parameter in model.named_parameters():
            if name.endswith("vision_tower.embeddings.position_embeddings"):
                torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config = hf.GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    processor = _image_processor(KINDS[family], size)
    return Vlm(model.eval(), tokenizer, processor, KINDS[family], f"tiny:{family}")


def _sizes(given: dict[str, Any]) -> Sizes:
    known = [f.name for f in fields(Sizes)]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"size {unknown[0]!r} is unknown; expected one of {', '.join(known)}")
    size = Sizes(**given)
    for name, part, why in (
        ("image_size", 2 * size.patch_size, "four patches are joined to one visual token"),
        ("text_hidden", 2 * size.heads, "heads share it and rotary positions turn pairs"),
        ("vision_hidden", 4 * _VISION_HEADS, "heads share it, with pairs on two axes"),
        ("heads", size.kv_heads, "key heads are shared by equally many query heads"),
    ):
        if (number := getattr(size, name)) % part:
            raise ValueError(f"{name} is {number}, expected a multiple of {part}: {why}")
    return size


def _text_config(size: Sizes, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": size.text_hidden,
        "intermediate_size": size.text_intermediate or 3 * size.text_hidden,
        "num_hidden_layers": size.text_layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "initializer_range": size.initializer_range,
        "tie_word_embeddings": size.tie_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _internvl_config(size: Sizes, tokenizer: Tokenizer, decoder: Any) -> Any:
    text = _text_config(size, tokenizer)
    if decoder is hf.Qwen3Config:  # Qwen2 derives it from the width
        text["head_dim"] = size.text_hidden // size.heads
    return hf.InternVLConfig(
        text_config=decoder(**text),
        vision_config=hf.InternVLVisionConfig(
            hidden_size=size.vision_hidden,
            intermediate_size=4 * size.vision_hidden,
            num_hidden_layers=size.vision_layers,
            num_attention_heads=_VISION_HEADS,
            image_size=(size.image_size, size.image_size),
            patch_size=(size.patch_size, size.patch_size),
            initializer_range=size.initializer_range,
            layer_scale_init_value=1.0,
            use_mean_pooling=False,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids(FAMILIES["internvl"].image_token),
        image_seq_length=(size.image_size // size.patch_size // 2) ** 2,
        tie_word_embeddings=size.tie_embeddings,
    )


def _qwen2_5_config(size: Sizes, tokenizer: Tokenizer) -> Any:
    parts = _qwen_parts(size, tokenizer, spatial=3 / 8)
    parts["vision_config"] |= {
        "window_size": 4 * size.patch_size,
        "fullatt_block_indexes": [size.vision_layers - 1],
    }
    return hf.Qwen2_5_VLConfig(**parts)


def _qwen3_config(size: Sizes, tokenizer: Tokenizer) -> Any:
    parts = _qwen_parts(size, tokenizer, spatial=5 / 16)
    parts["text_config"]["head_dim"] = size.text_hidden // size.heads
    parts["vision_config"] |= {
        "num_position_embeddings": (size.image_size // size.patch_size) ** 2,
        "deepstack_visual_indexes": list(range(min(size.vision_layers, size.text_layers))),
    }
    return hf.Qwen3VLConfig(**parts)


def _qwen_parts(size: Sizes, tokenizer: Tokenizer, *, spatial: float) -> dict[str, Any]:
    """Configure what the Qwen families share; `spatial`: share of frequencies for height, width."""
    text = _text_config(size, tokenizer)
    half = size.text_hidden // size.heads // 2
    axis = int(half * spatial)
    text["rope_parameters"]["mrope_section"] = [half - 2 * axis, axis, axis]
    vision = {
        "depth": size.vision_layers,
        "hidden_size": size.vision_hidden,
        "intermediate_size": 4 * size.vision_hidden,
        "num_heads": _VISION_HEADS,
        "patch_size": size.patch_size,
        "out_hidden_size": size.text_hidden,
        "initializer_range": size.initializer_range,
    }
    ids = {
        f"{name}_id": tokenizer.convert_tokens_to_ids(_NAMED_TOKENS[name])
        for name in ("image_token", "video_token", "vision_start_token", "vision_end_token")
    }
    ids["tie_word_embeddings"] = size.tie_embeddings
    return {"text_config": text, "vision_config": vision, **ids}


def _image_processor(family: Family, size: Sizes) -> Any:
    """Make the Pillow processor with one tile of `image_size` (Qwen: about as many pixels)."""
    cls = getattr(hf, family.image_processor)
    side = size.image_size
    if family.one_size:
        return cls(
            size={"height": side, "width": side},
            crop_to_patches=False,
            image_mean=list(IMAGENET_MEAN),
            image_std=list(IMAGENET_STD),
        )
    return cls(
        size={"shortest_edge": side * side, "longest_edge": side * side},
        patch_size=size.patch_size,
        merge_size=2,
        temporal_patch_size=2,
    )


def _chat_template(family: str) -> str:
    """Write turns between markers; string content as it is, other content with image markers."""
    row = KINDS[family]
    # AutoProcessor users: InternVL's processor adds the frame around <IMG_CONTEXT> itself.
    framed = row.image_start + row.image_token + row.image_end
    image = row.image_token + "\\n" if row.one_size else framed
    return (
        "{% for message in messages %}"
        "{{ '" + TURN_START + "' + message['role'] + '\\n' }}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}{{ '" + image + "' }}"
        "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}"
        "{{ '" + TURN_END + "\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '" + TURN_START + "assistant\\n' }}{% endif %}"
    )
