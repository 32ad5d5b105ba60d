"""Every family from end to end: distilled, resumed, exported, answering in plain transformers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

import runs
from drivekd.data.formats.readers import read
from drivekd.distill.train import train
from drivekd.models import vlm as vlms
from drivekd.models.encode import encode
from drivekd.models.generate import generate_ids
from drivekd.models.images import pixels
from drivekd.models.tiny import KINDS

NEW = 5


def distilled(family: str, data: Path, out: Path) -> Path:
    """Four steps, or what is left of them.

    A Qwen student is deeper than its teachers of four layers, as Qwen2.5-VL-3B is deeper than 7B:
    its layers are grouped in proportion. The others' students have three.
    """
    qwen = family.startswith("qwen")
    how = {"grouping": "proportional"} if qwen else {}
    capabilities = {
        "perception": runs.capability("perception", "first", "text_to_vision", **how),
        "reasoning": runs.capability("reasoning", "1..penultimate", "full", **how),
        "planning": runs.capability("planning", "penultimate", "text_to_vision", **how),
    }
    settings = {"max_steps": 4, "save_steps": 2, "num_train_epochs": 4}
    recipe = runs.recipe(data, out, capabilities=capabilities, train=settings)
    student = runs.tiny_student(family=family, initializer_range=0.15, text_layers=5 if qwen else 3)
    teachers = runs.tiny_teachers(family=family)
    return train(recipe, resume=True, student=student, teachers=teachers)


@pytest.mark.parametrize("family", sorted(KINDS))
def test_trained_resumed_exported_and_reloaded(tmp_path: Path, family: str) -> None:
    data = runs.write_data(tmp_path / "data")
    final = distilled(family, data, tmp_path / "whole")
    losses = [line[f"loss/attn/{name}"] for line in runs.lines(tmp_path / "whole") for name in
              runs.CAPABILITIES if f"loss/attn/{name}" in line]  # fmt: skip
    assert len(losses) >= 6 and min(losses) > 0

    broken = tmp_path / "broken"
    broken.mkdir()
    shutil.copytree(tmp_path / "whole/checkpoint-2", broken / "checkpoint-2")
    shutil.copy(tmp_path / "whole/log.jsonl", broken)
    again = distilled(family, data, broken)
    assert (again / "model.safetensors").read_bytes() == (final / "model.safetensors").read_bytes()

    plain = AutoModelForImageTextToText.from_pretrained(final).eval()
    ours = vlms.load(final)
    samples = list(read(data))[:4]
    expected = []
    for sample in samples:
        encoded = encode(ours, sample, add_answer=False)
        inputs = dict(pixels(ours, encoded.images))
        if ours.family.rope_axes == 3:
            inputs["mm_token_type_ids"] = encoded.is_image[None].int()
        ids = encoded.input_ids[None]
        seen = {"attention_mask": torch.ones_like(ids), "max_new_tokens": NEW, **inputs}
        expected.append(plain.generate(input_ids=ids, **seen)[0, ids.shape[1] :].tolist())
    assert generate_ids(ours, samples, max_new_tokens=NEW) == expected
    assert len({tuple(tokens) for tokens in expected}) > 1
