"""Greedy answers equal those of `model.generate`, token for token."""

from __future__ import annotations

import pytest
import torch

from drivekd.models.encode import encode
from drivekd.models.features import FeatureCache
from drivekd.models.generate import generate, generate_ids
from drivekd.models.images import pixels

NEW = 7


def by_transformers(vlm, sample, new=NEW):
    """New tokens of one sample from the stock method."""
    encoded = encode(vlm, sample, add_answer=False)
    inputs = dict(pixels(vlm, encoded.images)) if encoded.images else {}
    if vlm.family.rope_axes == 3 and encoded.images:
        inputs["mm_token_type_ids"] = encoded.is_image[None].int().to(vlm.device)
    ids = encoded.input_ids[None].to(vlm.device)
    made = vlm.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, **inputs
    )
    return made[0, ids.shape[1] :].tolist()


@pytest.fixture(scope="module")
def expected(vlm, mixed):
    return [by_transformers(vlm, sample) for sample in mixed]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
@pytest.mark.parametrize("cached", [False, True])
def test_tokens_equal_those_of_transformers(vlm, mixed, expected, batch_size, cached):
    found = generate_ids(
        vlm,
        mixed,
        max_new_tokens=NEW,
        features=FeatureCache() if cached else None,
        batch_size=batch_size,
    )
    assert found == expected
    # The models are random but not constant, or this would prove little.
    assert len({tuple(tokens) for tokens in found}) >= 4
    assert max(len(set(tokens)) for tokens in found) >= 4


def test_texts_are_the_decoded_tokens(vlm, mixed, expected):
    texts = generate(vlm, mixed, max_new_tokens=NEW)
    assert texts == [vlm.tokenizer.decode(t, skip_special_tokens=True) for t in expected]


def test_each_answer_ends_at_its_own_end_token(vlm, mixed, expected):
    """Make a token that some answers use early the end of the turn."""
    end = expected[0][2]
    settings = vlm.model.generation_config
    before, settings.eos_token_id = settings.eos_token_id, [end, 0]
    try:
        stock = [by_transformers(vlm, sample) for sample in mixed]
        found = generate_ids(vlm, mixed, max_new_tokens=NEW)
    finally:
        settings.eos_token_id = before
    assert found == stock
    assert found[0][-1] == end
    assert len(found[0]) <= 3
    assert len({len(tokens) for tokens in found}) > 1


def test_the_answer_of_a_sample_is_not_read(vlm, make):
    asked, told = make("a", "Why?", None), make("a", "Why?", "because")
    assert len(set(generate(vlm, [asked, told], max_new_tokens=3))) == 1


def test_grey_images_change_the_answers(vlm, mixed, expected):
    assert generate_ids(vlm, mixed, max_new_tokens=NEW, features=FeatureCache("grey")) != expected


def test_a_prefix_runs_once_per_scene(vlm, mixed):
    runs = []
    with vlm.model.model.language_model.register_forward_hook(lambda *_: runs.append(1)):
        generate(vlm, mixed, max_new_tokens=1)
    # Two scenes: prefix and questions each; one group without images.
    assert len(runs) == 5


def test_mode_of_the_model_is_left_as_it_was(vlm, mixed):
    frozen = vlm.model.get_submodule(vlm.family.vision[0])
    vlm.model.train()
    frozen.eval()
    try:
        generate(vlm, mixed[:1], max_new_tokens=1)
        assert vlm.model.training
        assert not frozen.training
    finally:
        vlm.model.eval()


def test_no_samples_no_answers(vlm):
    assert generate(vlm, []) == []


@pytest.mark.parametrize("name", ["max_new_tokens", "batch_size"])
def test_counts_below_one_are_refused(vlm, mixed, name):
    with pytest.raises(ValueError, match=rf"{name} .*0.*1"):
        generate(vlm, mixed, **{name: 0})
