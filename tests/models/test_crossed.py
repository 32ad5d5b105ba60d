"""Llama-3.2-Vision, tiny: it is asked and scored, and refused by name where it would be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForImageTextToText

import runs
from drivekd.data.formats.readers import read
from drivekd.data.sample import Sample
from drivekd.demo.ask import ask
from drivekd.distill.train import train
from drivekd.evaluate.answers.asking import Asking
from drivekd.evaluate.answers.who import Loaded
from drivekd.evaluate.run import Questions, evaluate
from drivekd.models import vlm as vlms
from drivekd.models.encode import encode
from drivekd.models.features import FeatureCache
from drivekd.models.generate import generate, generate_ids
from drivekd.models.images import picture
from drivekd.models.sampling import Sampling
from drivekd.models.tiny import build_tokenizer
from drivekd.models.vlm import LLAMA, Vlm

NEW = 6
HOT, COLD = Sampling(temperature=2.0), Sampling(temperature=1e-9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model: three layers, of which the middle one sees the pictures, in two tiles each."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([LLAMA.image_token], special_tokens=True)
    marker = tokenizer.convert_tokens_to_ids(LLAMA.image_token)
    config = transformers.MllamaConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "cross_attention_layers": [1],
            "initializer_range": 0.3,
            "bos_token_id": tokenizer.eos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 4,
            "intermediate_layers_indices": [0],
            "vision_output_dim": 64,
            "image_size": 28,
            "patch_size": 14,
            "max_num_tiles": 2,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
        image_token_index=marker,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
        for name, parameter in model.named_parameters():
            if "gate" in name:  # stock: 0, as if there were no pictures
                torch.nn.init.constant_(parameter, 1.0)
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    size = {"height": 28, "width": 28}
    processor = transformers.MllamaImageProcessorPil(size=size, max_image_tiles=2)
    made: Path = tmp_path_factory.mktemp("llama")
    for part in (model, tokenizer, processor):
        part.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_data(tmp_path_factory.mktemp("data"))


def by_transformers(vlm: Vlm, sample: Sample) -> list[int]:
    """The processor's own way from pictures and text to tokens."""
    encoded = encode(vlm, sample, add_answer=False)
    shown = [picture(vlm, path, "real", None) for path in encoded.images]
    processor: Any = object.__new__(transformers.MllamaProcessor)
    processor.image_processor, processor.tokenizer = vlm.image_processor, vlm.tokenizer
    processor.image_token, processor.image_token_id = LLAMA.image_token, vlm.image_token_id
    processor.bos_token = processor.chat_template = None
    text = vlm.tokenizer.decode(encoded.input_ids)
    processor.bos_token = text[: text.index(">") + 1]  # what the text begins with: none is added
    inputs = processor(images=[shown], text=[text], return_tensors="pt", add_special_tokens=False)
    ids = inputs["input_ids"]
    assert ids[0].tolist() == encoded.input_ids.tolist()
    model: Any = vlm.model
    made = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    return [int(token) for token in made[0, ids.shape[1] :]]


def test_answers_are_those_of_its_own_processor_and_hang_on_the_pictures(
    folder: Path, data: Path
) -> None:
    vlm, samples = vlms.load(folder, answering=True), list(read(data))[::4]
    found = generate_ids(vlm, samples, max_new_tokens=NEW)
    assert found == [by_transformers(vlm, sample) for sample in samples]
    assert len({tuple(tokens) for tokens in found}) > 1
    grey = generate(vlm, samples, max_new_tokens=NEW, features=FeatureCache(image_mode="grey"))
    assert grey != generate(vlm, samples, max_new_tokens=NEW)
    draws = [generate_ids(vlm, samples, max_new_tokens=NEW, sampling=s) for s in (HOT, HOT, COLD)]
    assert draws[0] == draws[1] and draws[0] != found and draws[2] == found
    last = generate_ids(vlm, samples[-1:], max_new_tokens=NEW, sampling=HOT)
    assert last == draws[0][-1:]


def test_it_is_evaluated_and_asked(folder: Path, data: Path, tmp_path: Path) -> None:
    asking = Asking(max_new_tokens=3)
    found = evaluate(Loaded(str(folder)), Questions(data), tmp_path / "out", asking)
    assert found.scores.everything is not None and found.scores.everything.n == 15
    images = {c: data.parent / f"0_{c}.png" for c in runs.CAMERAS}
    assert isinstance(ask(str(folder), images, "Which colour?", max_new_tokens=3), str)
    with pytest.raises(ValueError, match="attention"):
        ask(str(folder), images, "Which colour?", tmp_path / "look.png")


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_it_is_not_trained_and_teaches_nothing(
    folder: Path, data: Path, tmp_path: Path, role: str
) -> None:
    raw = {"perception": runs.capability("perception", "first", "text_to_vision")}
    raw["perception"]["teacher"] = str(folder)
    recipe = runs.recipe(data, tmp_path, capabilities=raw if role == "teacher" else {})
    if role == "student":
        recipe = recipe.model_copy(update={"student": str(folder)})
    with pytest.raises(ValueError, match="image tokens"):
        train(recipe, student=runs.tiny_student() if role == "teacher" else None)
