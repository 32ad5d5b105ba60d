"""InternVL's other layout: a renaming that its way back undoes to the bit."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from drivekd.deploy.export.layouts import chat_config, from_chat, refuse_unlike, same, to_chat
from drivekd.models import published
from drivekd.models.tiny import tiny_vlm
from drivekd.models.vlm import Vlm

#: the towers of the two sizes on the hub, as far as their tensors differ
TOWERS: dict[str, dict[str, Any]] = {
    "300M": {"attention_bias": True},
    "6B": {"attention_bias": False, "use_qk_norm": True, "norm_type": "rms_norm"},
}


def stock(kind: str = "internvl", tower: str = "300M", **sizes: Any) -> Vlm:
    """A tiny InternVL whose tower is that of the hub: no final norm, biases, perhaps key norms."""
    vlm = tiny_vlm(kind, vision_hidden=32, image_size=48, initializer_range=0.15, **sizes)
    config: Any = deepcopy(vlm.model.config)
    for name, value in {"use_mean_pooling": True, **TOWERS[tower]}.items():
        setattr(config.vision_config, name, value)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    model.generation_config = vlm.model.generation_config
    return replace(vlm, model=model)


@pytest.mark.parametrize("kind", ["internvl", "internvl3_5"])
@pytest.mark.parametrize("tower", TOWERS)
def test_the_way_back_undoes_the_way_there(kind: str, tower: str) -> None:
    weights = stock(kind, tower).model.state_dict()
    chat = to_chat(weights)
    assert not chat.keys() & weights.keys()
    assert same(weights, from_chat(chat))
    assert same(chat, to_chat(from_chat(chat)))
    assert sum(v.numel() for v in chat.values()) == sum(v.numel() for v in weights.values())


def test_names_and_order_are_those_of_the_code_on_the_hub() -> None:
    weights = stock().model.state_dict()
    chat = to_chat(weights)
    layer = "vision_model.encoder.layers.1."
    assert {name.removeprefix(layer) for name in chat if name.startswith(layer)} == {
        "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias", "ls1", "ls2",
        "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias",
        "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias",
    }  # fmt: skip
    inner = ("vision_model.encoder.", "language_model.")
    assert {name for name in chat if not name.startswith(inner)} == {
        "vision_model.embeddings.class_embedding", "vision_model.embeddings.position_embedding",
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.embeddings.patch_embedding.bias",
        "mlp1.0.weight", "mlp1.0.bias", "mlp1.1.weight", "mlp1.1.bias",
        "mlp1.3.weight", "mlp1.3.bias",
    }  # fmt: skip
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in chat
    assert "language_model.lm_head.weight" in chat
    theirs = chat[f"{layer}attn.qkv.weight"]
    ours = "model.vision_tower.encoder.layer.1.attention"
    for letter, part in zip("qkv", theirs.reshape(3, 32, 32), strict=True):
        assert torch.equal(part, weights[f"{ours}.{letter}_proj.weight"])


def test_a_swapped_stack_is_noticed() -> None:
    weights = stock().model.state_dict()
    chat = to_chat(weights)
    name = "vision_model.encoder.layers.0.attn.qkv.weight"
    chat[name] = chat[name].flip(0)
    assert not same(weights, from_chat(chat))


def test_the_same_is_the_same_names_types_and_bits() -> None:
    one = {"a": torch.tensor([1.0])}
    assert same(one, {"a": torch.tensor([1.0])})
    others: tuple[dict[str, Tensor], ...] = (
        {},
        {"b": torch.tensor([1.0])},
        {"a": torch.tensor([2.0])},
        {"a": torch.tensor([1.0], dtype=torch.float16)},
        {"a": torch.tensor([1.0, 1.0])},
    )
    assert not any(same(one, other) for other in others)


@pytest.mark.parametrize(
    ("change", "names"), [(to_chat, "model.vision_tower.layernorm.weight"), (from_chat, "mlp1.2.w")]
)
def test_a_tensor_without_a_place_is_named(change: Any, names: str) -> None:
    with pytest.raises(ValueError, match=names.replace(".", r"\.")):
        change({names: torch.zeros(1)})


def test_the_configuration_says_what_the_code_on_the_hub_reads() -> None:
    config = published.config_of("OpenGVLab/InternVL3-1B-hf")
    refuse_unlike(config, "it")
    written = chat_config(config, "bfloat16")
    assert written["architectures"] == ["InternVLChatModel"]
    assert (written["force_image_size"], written["downsample_ratio"]) == (448, 0.5)
    assert written["vision_config"]["qkv_bias"] is True
    assert written["vision_config"]["qk_normalization"] is False
    assert written["vision_config"]["image_size"] == 448
    text = written["llm_config"]
    assert text["rope_theta"] == 1e6
    assert text["rope_scaling"] == {"rope_type": "dynamic", "type": "dynamic", "factor": 2}
    assert (text["architectures"], text["hidden_size"]) == (["Qwen2ForCausalLM"], 896)
    large = chat_config(published.config_of("OpenGVLab/InternVL3_5-38B-HF"), "bfloat16")
    assert large["vision_config"]["norm_type"] == "rms_norm"
    assert large["vision_config"]["qk_normalization"] is True
    assert large["llm_config"]["architectures"] == ["Qwen3ForCausalLM"]
    assert large["llm_config"]["rope_scaling"] is None


def test_what_that_layout_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="norm"):
        refuse_unlike(tiny_vlm("internvl").model.config, "it")
    with pytest.raises(ValueError, match=r"InternVL.*qwen2_5_vl"):
        refuse_unlike(tiny_vlm("qwen2_5_vl").model.config, "it")
    config = stock().model.config
    config.vision_feature_layer = -2
    with pytest.raises(ValueError, match="vision tower"):
        refuse_unlike(config, "it")
