"""InternVL's two layouts of one model: transformers' own, and that of the code on the hub.

Some servers read only the second, `InternVLChatModel`. Both hold the same numbers: most tensors
have another name, and query, key and value of the vision tower are one tensor, stacked in this
order. One table gives both directions, so that the way back undoes the way there, to the bit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

#: transformers' name ↔ the other one; each part in braces stands for the same text on both sides.
NAMES: tuple[tuple[str, str], ...] = (
    *(
        (f"model.vision_tower.embeddings.{ours}", f"vision_model.embeddings.{theirs}")
        for ours, theirs in (
            ("cls_token", "class_embedding"),
            ("position_embeddings", "position_embedding"),
            ("patch_embeddings.projection.{leaf}", "patch_embedding.{leaf}"),
        )
    ),
    *(
        (f"model.vision_tower.encoder.layer.{{n}}.{a}", f"vision_model.encoder.layers.{{n}}.{b}")
        for a, b in (
            ("attention.projection_layer.{leaf}", "attn.proj.{leaf}"),
            ("attention.q_norm.{leaf}", "attn.q_norm.{leaf}"),
            ("attention.k_norm.{leaf}", "attn.k_norm.{leaf}"),
            ("layernorm_before.{leaf}", "norm1.{leaf}"),
            ("layernorm_after.{leaf}", "norm2.{leaf}"),
            ("mlp.fc{k}.{leaf}", "mlp.fc{k}.{leaf}"),
            ("lambda_{k}", "ls{k}"),
        )
    ),
    ("model.multi_modal_projector.layer_norm.{leaf}", "mlp1.0.{leaf}"),
    ("model.multi_modal_projector.linear_1.{leaf}", "mlp1.1.{leaf}"),
    ("model.multi_modal_projector.linear_2.{leaf}", "mlp1.3.{leaf}"),
    ("model.language_model.{rest}", "language_model.model.{rest}"),
    ("lm_head.weight", "language_model.lm_head.weight"),
)

_STACKED = re.compile(
    r"model\.vision_tower\.encoder\.layer\.(\d+)\.attention\.([qkv])_proj\.(weight|bias)"
)
_STACK = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.attn\.qkv\.(weight|bias)")
_ORDER = "qkv"
_PARTS = {"n": r"\d+", "k": "[12]", "leaf": "weight|bias", "rest": ".+"}


def to_chat(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights from transformers' names to those of `InternVLChatModel`.

    ValueError: a tensor has no place there.
    """
    renamed: dict[str, Tensor] = {}
    stacks: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        part = _STACKED.fullmatch(name)
        if part is None:
            renamed[_renamed(name, 0)] = value
        else:
            layer, letter, leaf = part.groups()
            stack = f"vision_model.encoder.layers.{layer}.attn.qkv.{leaf}"
            stacks.setdefault(stack, {})[letter] = value
    for name, parts in stacks.items():
        renamed[name] = torch.cat([parts[letter] for letter in _ORDER])
    return renamed


def from_chat(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights back to transformers' names; ValueError: a tensor is unknown."""
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        stack = _STACK.fullmatch(name)
        if stack is None:
            renamed[_renamed(name, 1)] = value
            continue
        layer, leaf = stack.groups()
        for letter, part in zip(_ORDER, value.chunk(3), strict=True):
            prefix = f"model.vision_tower.encoder.layer.{layer}.attention"
            renamed[f"{prefix}.{letter}_proj.{leaf}"] = part
    return renamed


def _renamed(name: str, side: int) -> str:
    """Translate a name of one side of the table (0: transformers') to the other side."""
    for row in NAMES:
        match = re.fullmatch(_pattern(row[side]), name)
        if match is not None:
            return row[1 - side].format(**match.groupdict())
    layout = ("transformers' InternVL", "InternVLChatModel")[side]
    raise ValueError(
        f"tensor {name!r} of {layout} has no place in the other layout; expected only the "
        "tensors of InternVL3 and 3.5: export with --format hf"
    )


def _pattern(template: str) -> str:
    return re.sub(r"\\\{(\w+)\\\}", lambda m: f"(?P<{m[1]}>{_PARTS[m[1]]})", re.escape(template))


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two sets of weights have the same names, types and bits."""
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype and torch.equal(value, other[name].to(value.device))
        for name, value in one.items()
    )


def refuse_unlike(config: Any, source: str) -> None:
    """Refuse what the code on the hub cannot compute, by a ValueError naming the first thing."""
    if config.model_type != "internvl":
        raise ValueError(
            f"model {source!r}: format internvl-chat is of InternVL only, this is "
            f"{config.model_type}; export with --format hf"
        )
    vision = config.vision_config
    text_type = config.text_config.model_type
    differing = {
        "its vision tower ends in a norm (use_mean_pooling is false)": not vision.use_mean_pooling,
        "its vision tower has a mask token": vision.use_mask_token,
        "its pictures are not square": len(set(vision.image_size)) > 1,
        f"its projector uses {config.projector_hidden_act}": config.projector_hidden_act != "gelu",
        "it does not read the vision tower's last layer": config.vision_feature_layer != -1,
        f"its decoder is {text_type}": text_type not in _DECODERS,
    }
    for what, differs in differing.items():
        if differs:
            raise ValueError(
                f"model {source!r} cannot be written as internvl-chat: {what}, which that layout "
                "has no place for; export with --format hf"
            )


_DECODERS = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_CODE = {
    "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
    "AutoModel": "modeling_internvl_chat.InternVLChatModel",
    "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
}


def chat_config(config: Any, dtype: str) -> dict[str, Any]:
    """Write `config.json` of `InternVLChatModel`: one tile per picture, as in training."""
    tied = bool(config.tie_word_embeddings)
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": _CODE,
        "downsample_ratio": config.downsample_ratio,
        "dynamic_image_size": False,
        "force_image_size": int(config.vision_config.image_size[0]),
        "llm_config": _text(config.text_config.to_dict(), tied, dtype),
        "max_dynamic_patch": 1,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "use_thumbnail": False,
        "vision_config": _vision(config.vision_config, dtype),
    }


def _text(text: dict[str, Any], tied: bool, dtype: str) -> dict[str, Any]:
    """Write the decoder's part; that code reads the positions' base where transformers 4 had it."""
    rope = dict(text.get("rope_parameters") or {})
    text |= {"architectures": [_DECODERS[text["model_type"]]], "torch_dtype": dtype}
    text |= {"tie_word_embeddings": tied, "rope_theta": rope.pop("rope_theta", 10_000.0)}
    kind = rope.get("rope_type", "default")
    text["rope_scaling"] = None if kind == "default" else {**rope, "type": kind}
    text.pop("dtype", None)
    return text


_ALIKE = (
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "layer_norm_eps",
    "norm_type",
    "num_attention_heads",
    "num_channels",
    "num_hidden_layers",
)


def _vision(vision: Any, dtype: str) -> dict[str, Any]:
    return {name: getattr(vision, name) for name in _ALIKE} | {
        "architectures": ["InternVisionModel"],
        "attention_dropout": vision.attention_dropout,
        "drop_path_rate": 0.0,
        "dropout": vision.hidden_dropout_prob,
        "image_size": int(vision.image_size[0]),
        "initializer_factor": vision.layer_scale_init_value,
        "model_type": "intern_vit_6b",
        "patch_size": int(vision.patch_size[0]),
        "qk_normalization": vision.use_qk_norm,
        "qkv_bias": vision.attention_bias,
        "torch_dtype": dtype,
        "use_flash_attn": False,
    }
