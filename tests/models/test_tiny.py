"""Tiny models: tokenizer, sizes, randomness."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from drivekd.models import tiny
from drivekd.models.images import token_grid

TEXT = "What colour is <c1,CAM_FRONT,0.4700,0.6800><r95>?\n\nÜber 3 km — 自动驾驶 🚗 "


@pytest.mark.parametrize("texts", [(), ("is it safe to change the lane?",) * 3])
def test_any_text_survives_the_tokenizer(texts):
    tokenizer = tiny.build_tokenizer(texts)
    ids = tokenizer(TEXT).input_ids
    assert tokenizer.decode(ids) == TEXT
    assert max(ids) < len(tokenizer) <= 1024


def test_region_tokens_are_single_tokens_that_decoding_keeps():
    tokenizer = tiny.build_tokenizer()
    ids = [tokenizer(token).input_ids for token in tiny.REGION_TOKENS]
    assert len(tiny.REGION_TOKENS) == 96
    assert all(len(i) == 1 for i in ids)
    assert len({i[0] for i in ids}) == 96
    assert tokenizer.decode(ids[7], skip_special_tokens=True) == "<r7>"


def test_digits_are_tokens_of_their_own_even_if_often_seen_together():
    tokenizer = tiny.build_tokenizer(["0.4700 0.6800"] * 50)
    assert len(tokenizer("0.4700").input_ids) == 6


def test_learned_merges_shorten_text():
    text = "Is it safe to change to the left lane?"
    learned = tiny.build_tokenizer([text] * 5)
    assert len(learned(text).input_ids) < len(tiny.build_tokenizer()(text).input_ids) / 3


def test_tokenizer_says_what_room_it_needs():
    with pytest.raises(ValueError, match=r"vocab_size .*300.*362"):
        tiny.build_tokenizer(vocab_size=300)


def test_saved_tokenizer_reads_back_the_same(tmp_path):
    tokenizer = tiny.build_tokenizer(["some text to learn from"] * 4)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    turns = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "yes"}]
    assert again(TEXT).input_ids == tokenizer(TEXT).input_ids
    assert again.apply_chat_template(turns, tokenize=False) == (
        f"<|im_start|>user\n{TEXT}<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    )
    assert again.context_image_token == "<IMG_CONTEXT>"
    assert again.padding_side == "right"
    assert (again.eos_token, again.pad_token) == ("<|im_end|>", "<|endoftext|>")


@pytest.mark.parametrize(
    ("family", "marker"),
    [
        ("internvl", "<IMG_CONTEXT>\n"),
        ("internvl3_5", "<IMG_CONTEXT>\n"),
        ("qwen2_5_vl", "<|vision_start|><|image_pad|><|vision_end|>"),
        ("qwen3_vl", "<|vision_start|><|image_pad|><|vision_end|>"),
    ],
)
def test_template_writes_image_markers_for_structured_content(family, marker):
    parts = [{"type": "image"}, {"type": "text", "text": "Where?"}]
    text = tiny.build_tokenizer(family=family).apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    assert text == f"<|im_start|>user\n{marker}Where?<|im_end|>\n<|im_start|>assistant\n"


def test_sizes_of_the_embedded_world(pictures):
    teacher = tiny.tiny_vlm(
        text_hidden=128, text_layers=4, vision_hidden=96, vision_layers=4, image_size=96
    )
    vision = teacher.model.config.vision_config
    assert (vision.layer_scale_init_value, vision.use_mean_pooling) == (1.0, False)
    positions = teacher.model.model.vision_tower.embeddings.position_embeddings
    assert positions.std() > 0.2
    assert token_grid(teacher, pictures("any")) == (4, 4)
    assert teacher.model.config.image_seq_length == 16
    assert 0.8e6 < sum(p.numel() for p in teacher.model.model.language_model.parameters()) < 1.2e6


@pytest.mark.parametrize("family", tiny.KINDS)
def test_sizes_for_real_pictures(family, pictures):
    vlm = tiny.tiny_vlm(family, image_size=448, patch_size=28, vision_layers=1)
    rows, columns = token_grid(vlm, pictures("camera", (1600, 900)))
    assert (rows, columns) == ((8, 8) if vlm.family.one_size else (5, 10))


@pytest.mark.parametrize("family", tiny.KINDS)
def test_seed_decides_the_weights_and_the_global_state_is_left_alone(family):
    state = torch.get_rng_state()
    one, same, other = (tiny.tiny_vlm(family, seed=s).model.state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", tiny.KINDS)
def test_tied_embeddings_are_one_tensor(family, tied):
    model = tiny.tiny_vlm(family, tie_embeddings=tied).model
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"family": "llava"}, "family 'llava' is unknown; expected one of internvl, qwen2_5_vl"),
        ({"text_width": 64}, "size 'text_width' is unknown; expected one of text_hidden"),
        ({"image_size": 100}, "image_size is 100, expected a multiple of 24"),
        ({"text_hidden": 30}, "text_hidden is 30, expected a multiple of 8"),
        ({"kv_heads": 3}, "heads is 4, expected a multiple of 3"),
    ],
)
def test_wrong_sizes_are_named(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        tiny.tiny_vlm(**arguments)
