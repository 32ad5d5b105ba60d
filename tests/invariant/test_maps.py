"""Maps captured beside SDPA are those that transformers' eager attention reports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

import runs
from drivekd.data.formats.readers import read
from drivekd.distill.teachers import attention
from drivekd.models import tiny
from drivekd.models import vlm as vlms
from drivekd.models.batch import collate, encode, forward
from drivekd.models.images import pixels


@pytest.mark.parametrize("family", tiny.KINDS)
def test_captured_maps_are_eager_maps(family: str, tmp_path: Path) -> None:
    vlm = runs.tiny_student(family=family, initializer_range=0.1)
    samples = list(read(runs.write_data(tmp_path / "data", scenes=2, questions=2)))
    vlms.save(vlm, tmp_path / "model")
    attention.install(vlm.model)
    batch = collate(vlm, [encode(vlm, sample) for sample in samples])
    layers = vlms.decoder_layers(vlm)
    wanted = dict.fromkeys(range(len(layers)))
    with torch.no_grad(), attention.capture(layers, wanted) as maps:
        forward(vlm, batch)
    eager = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "model", attn_implementation="eager"
    )
    inputs = pixels(vlm, [path for row in batch.images for path in row])
    if vlm.family.rope_axes == 3:
        inputs["mm_token_type_ids"] = batch.is_image.int()
    with torch.no_grad():
        theirs = eager(
            input_ids=batch.input_ids,
            attention_mask=batch.valid.long(),
            output_attentions=True,
            **inputs,
        ).attentions
    assert not bool(batch.valid.all()), "the test should cover padding"
    for layer, map_ in maps.items():
        difference = (map_ - theirs[layer].mean(1))[batch.valid].abs().max()
        assert float(difference) < 1e-6, layer
