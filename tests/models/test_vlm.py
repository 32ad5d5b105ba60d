"""Loading, saving, parts."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForImageTextToText,
    AutoTokenizer,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from drivekd.models import batch, tiny, vlm
from drivekd.models.images import pixels, token_grid


def test_round_trip_is_bit_equal_and_plain_transformers_reads_it(vlm_saved, make):
    made, folder = vlm_saved
    again = vlm.load(folder)
    plain = AutoModelForImageTextToText.from_pretrained(folder)
    for loaded in (again.model, plain):
        assert type(loaded) is type(made.model)
        state = loaded.state_dict()
        assert state.keys() == made.model.state_dict().keys()
        assert all(torch.equal(state[k], v) for k, v in made.model.state_dict().items())
    assert again.family == made.family
    assert not again.model.training
    sample = make("a", "What is <r5>?", "a car")
    ours, theirs = batch.encode(made, sample), batch.encode(again, sample)
    assert torch.equal(ours.input_ids, theirs.input_ids)
    left, right = pixels(made, ours.images), pixels(again, ours.images)
    assert all(torch.equal(left[k], right[k]) for k in left)


def test_saved_folder_generates_in_plain_transformers(vlm_saved, make):
    made, folder = vlm_saved
    model = AutoModelForImageTextToText.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = batch.encode(made, make("a"), add_answer=False)
    inputs = dict(pixels(made, encoded.images))
    if made.family.rope_axes == 3:
        inputs["mm_token_type_ids"] = encoded.is_image[None].int()
    ids = encoded.input_ids[None]
    new = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, **inputs
    )
    assert new.shape[1] > ids.shape[1]
    assert isinstance(tokenizer.decode(new[0, ids.shape[1] :]), str)


def test_saved_folder_has_what_processors_of_others_need(vlm_saved):
    made, folder = vlm_saved
    read = {p.name: json.loads(p.read_text()) for p in folder.glob("*.json")}
    assert read["processor_config.json"]["processor_class"] == made.family.processor
    # The class without suffix: users with torchvision get its back end, others Pillow's.
    kind = read["preprocessor_config.json"]["image_processor_type"]
    assert kind == made.family.image_processor.removesuffix("Pil")
    assert "video_processor_type" in read["video_preprocessor_config.json"]
    assert {"model.safetensors", "chat_template.jinja"} <= {p.name for p in folder.iterdir()}


def test_a_registered_attention_does_not_follow_into_the_file(vlm_saved, tmp_path):
    """Plain transformers does not know it, so a trained checkpoint would not load there."""
    AttentionInterface.register("known_only_here", sdpa_attention_forward)
    AttentionMaskInterface.register("known_only_here", sdpa_mask)
    own = vlm.load(vlm_saved[1])
    own.model.set_attn_implementation({"text_config": "known_only_here", "vision_config": "sdpa"})
    vlm.save(own, tmp_path)
    assert "known_only_here" not in (tmp_path / "config.json").read_text()


def test_loading_is_silent(vlm_saved, capfd):
    vlm.load(vlm_saved[1], num_layers=1)
    assert capfd.readouterr() == ("", "")


def test_cut_model_keeps_the_lower_layers_exactly(vlm_saved, make):
    made, folder = vlm_saved
    cut = vlm.load(folder, num_layers=1)
    rows = batch.collate(made, [batch.encode(made, make("a"))])
    seen = []

    def note(module, inputs, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    for loaded in (vlm.load(folder), cut):
        with vlm.decoder_layers(loaded)[0].register_forward_hook(note), torch.no_grad():
            batch.forward(loaded, rows)
    assert len(vlm.decoder_layers(cut)) == 1
    assert torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("number", [0, 3])
def test_layers_that_the_model_lacks_are_refused(vlm_saved, number):
    with pytest.raises(ValueError, match=rf"num_layers={number}.*1 to 2"):
        vlm.load(vlm_saved[1], num_layers=number)


def test_unknown_places_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere'.*config"):
        vlm.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="'world:nobody'"):
        vlm.load("world:nobody")


def test_world_names_point_into_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(vlm, "ASSETS", tmp_path)
    vlm.save(tiny.tiny_vlm(text_layers=1, vision_layers=1), tmp_path / "some")
    assert vlm.load("world:some").source == "world:some"
    with pytest.raises(ValueError, match="world:some"):
        vlm.locate("world:other")


def test_other_families_are_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match=r"'llama'.*internvl"):
        vlm.load(tmp_path)


def test_tokens_per_image_are_capped(tmp_path, pictures):
    vlm.save(tiny.tiny_vlm("qwen2_5_vl", image_size=448, patch_size=14), tmp_path)
    camera = pictures("camera", (1600, 900))
    rows, columns = token_grid(vlm.load(tmp_path, max_image_tokens=64), camera)
    assert (rows, columns) == (5, 10)
    rows, columns = token_grid(vlm.load(tmp_path), camera)
    assert 64 < rows * columns <= 256


def test_parts_and_freezing(vlm_saved):
    loaded = vlm.load(vlm_saved[1])
    assert vlm.decoder_layers(loaded) is vlm.language_model(loaded).layers
    assert vlm.lm_head(loaded).out_features == len(loaded.tokenizer)
    for part in vlm.vision_parts(loaded):
        part.requires_grad_(False)
    trained = {n for n, p in loaded.model.named_parameters() if p.requires_grad}
    assert trained
    assert all(n.startswith(("model.language_model.", "lm_head.")) for n in trained)


@pytest.fixture(scope="module", params=sorted(tiny.KINDS))
def vlm_saved(request, tmp_path_factory):
    made = tiny.tiny_vlm(request.param, initializer_range=0.15, vision_hidden=32, image_size=48)
    folder = tmp_path_factory.mktemp("saved")
    vlm.save(made, folder)
    return made, folder


def test_a_device_that_is_not_there_is_one_line(vlm_saved, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device cuda"):
        vlm.load(vlm_saved[1], device="cuda")
    with pytest.raises(ValueError, match=r"device 'foo'.*cpu"):
        vlm.load(vlm_saved[1], device="foo")
