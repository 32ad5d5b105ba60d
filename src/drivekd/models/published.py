"""Published full-size models as rows of data, and models that have shapes but no numbers.

Enough of each configuration to build the model on torch's meta device without a download: what a
run will cost can be said, and the method's layer windows checked, before any weights are there.
Training always reads the configuration that comes with the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers import PreTrainedTokenizerFast as Tokenizer

from drivekd.models.vlm import Vlm, family_of


@dataclass(frozen=True, slots=True)
class Published:
    """A model on the hub: the parts of its configuration, and parameters [10⁹] as published.

    `tied`: input embeddings and language-model head are one tensor.
    """

    model_type: str
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    tied: bool
    ids: Mapping[str, Any]
    billions: float


# Sources: config.json of the named repositories on huggingface.co, as indexed there in 2025 and
# 2026. Seen in full or in part: Qwen2.5-VL-3B, -7B and -72B-Instruct, Qwen3-VL-4B, -8B and -32B,
# InternVL3-1B-hf (rope, vocabulary), InternVL3-8B and -78B (sizes), a Qwen3-0.6B InternVL3.5.
# The other sizes are those of the Qwen2.5 and Qwen3 language models that the cards name.
# `billions` are the cards' figures where they were at hand, else the usual ones of these models:
# that tests/models/test_published.py finds them is a check of consistency, not against the files.

#: hidden size, layers, query heads, key-value heads, MLP width of Qwen2.5's language models
_QWEN2_5 = {
    "0.5B": (896, 24, 14, 2, 4864),
    "1.5B": (1536, 28, 12, 2, 8960),
    "3B": (2048, 36, 16, 2, 11008),
    "7B": (3584, 28, 28, 4, 18944),
    "14B": (5120, 48, 40, 8, 13824),
    "32B": (5120, 64, 40, 8, 27648),
    "72B": (8192, 80, 64, 8, 29568),
}
#: the same of Qwen3's, whose heads are 128 wide
_QWEN3 = {
    "0.6B": (1024, 28, 16, 8, 3072),
    "1.7B": (2048, 28, 16, 8, 6144),
    "4B": (2560, 36, 32, 8, 9728),
    "8B": (4096, 36, 32, 8, 12288),
    "14B": (5120, 40, 40, 8, 17408),
    "32B": (5120, 64, 64, 8, 25600),
}
#: hidden size, layers, heads, MLP width of InternVL's vision towers
_INTERNVIT = {"300M": (1024, 24, 16, 4096), "6B": (3200, 45, 25, 12800)}


def _decoder(sizes: tuple[int, ...], vocab_size: int, **more: Any) -> dict[str, Any]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    named = dict(zip((*names, "intermediate_size"), sizes, strict=True))
    return {**named, "vocab_size": vocab_size, "rms_norm_eps": 1e-6, **more}


def _internvit(size: str) -> dict[str, Any]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    large = size == "6B"  # which normalises queries and keys, and has no biases there
    return {
        **dict(zip(names, _INTERNVIT[size], strict=True)),
        "image_size": [448, 448],
        "patch_size": [14, 14],
        "attention_bias": not large,
        "use_qk_norm": large,
        "norm_type": "rms_norm" if large else "layer_norm",
    }


def _internvl3(size: str, tower: str, billions: float) -> Published:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}
    text = _decoder(_QWEN2_5[size], 151674, model_type="qwen2", rope_parameters=rope)
    ids = {"image_token_id": 151667, "image_seq_length": 256}
    return Published("internvl", text, _internvit(tower), False, ids, billions)


def _internvl3_5(size: str, tower: str, billions: float) -> Published:
    rope = {"rope_type": "default", "rope_theta": 1e6}
    text = _decoder(_QWEN3[size], 151936, model_type="qwen3", head_dim=128, rope_parameters=rope)
    ids = {"image_token_id": 151671, "image_seq_length": 256}
    return Published("internvl", text, _internvit(tower), False, ids, billions)


def _qwen2_5_vl(
    size: str, billions: float, *, tied: bool = False, vocab_size: int = 152064
) -> Published:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text = _decoder(_QWEN2_5[size], vocab_size, rope_parameters=rope)
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3456 if size in ("32B", "72B") else 3420,
        "num_heads": 16,
        "out_hidden_size": text["hidden_size"],
    }
    return Published("qwen2_5_vl", text, vision, tied, {}, billions)


def _qwen3_vl(size: str, billions: float, *, large: bool) -> Published:
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]}
    text = _decoder(_QWEN3[size], 151936, head_dim=128, rope_parameters=rope)
    vision = {
        "depth": 27 if large else 24,
        "hidden_size": 1152 if large else 1024,
        "intermediate_size": 4304 if large else 4096,
        "num_heads": 16,
        "deepstack_visual_indexes": [8, 16, 24] if large else [5, 11, 17],
        "out_hidden_size": text["hidden_size"],
    }
    return Published("qwen3_vl", text, vision, not large, {}, billions)


#: hub id → model
PUBLISHED: dict[str, Published] = {
    "OpenGVLab/InternVL3-1B-hf": _internvl3("0.5B", "300M", 0.938),
    "OpenGVLab/InternVL3-2B-hf": _internvl3("1.5B", "300M", 2.09),
    "OpenGVLab/InternVL3-8B-hf": _internvl3("7B", "300M", 7.94),
    "OpenGVLab/InternVL3-14B-hf": _internvl3("14B", "300M", 15.1),
    "OpenGVLab/InternVL3-38B-hf": _internvl3("32B", "6B", 38.4),
    "OpenGVLab/InternVL3-78B-hf": _internvl3("72B", "6B", 78.4),
    "OpenGVLab/InternVL3_5-1B-HF": _internvl3_5("0.6B", "300M", 1.061),
    "OpenGVLab/InternVL3_5-2B-HF": _internvl3_5("1.7B", "300M", 2.35),
    "OpenGVLab/InternVL3_5-4B-HF": _internvl3_5("4B", "300M", 4.73),
    "OpenGVLab/InternVL3_5-8B-HF": _internvl3_5("8B", "300M", 8.53),
    "OpenGVLab/InternVL3_5-14B-HF": _internvl3_5("14B", "300M", 15.1),
    "OpenGVLab/InternVL3_5-38B-HF": _internvl3_5("32B", "6B", 38.4),
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen2_5_vl("3B", 3.75, tied=True, vocab_size=151936),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen2_5_vl("7B", 8.29),
    "Qwen/Qwen2.5-VL-32B-Instruct": _qwen2_5_vl("32B", 33.5),
    "Qwen/Qwen2.5-VL-72B-Instruct": _qwen2_5_vl("72B", 73.4),
    "Qwen/Qwen3-VL-2B-Instruct": _qwen3_vl("1.7B", 2.13, large=False),
    "Qwen/Qwen3-VL-4B-Instruct": _qwen3_vl("4B", 4.44, large=False),
    "Qwen/Qwen3-VL-8B-Instruct": _qwen3_vl("8B", 8.77, large=True),
    "Qwen/Qwen3-VL-32B-Instruct": _qwen3_vl("32B", 33.4, large=True),
}


def config_of(source: str) -> Any:
    """Make the configuration of a model in the table, as transformers would read it."""
    row = PUBLISHED[source]
    parts = {"text_config": dict(row.text), "vision_config": dict(row.vision)}
    return AutoConfig.for_model(row.model_type, tie_word_embeddings=row.tied, **parts, **row.ids)


def skeleton(config: Any, source: str) -> Vlm:
    """Build a model of float32 weights that have shapes but no numbers, with an empty tokenizer."""
    family = family_of(config, source)
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(
            config, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
        )
    nothing = Tokenizer(tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()))
    return Vlm(model, nothing, None, family, source)


def parameters(vlm: Vlm) -> int:
    """Count the numbers in the weights of a model, tied ones once."""
    return sum(p.numel() for p in vlm.model.parameters())
