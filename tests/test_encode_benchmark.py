"""The benchmark of tokenising, with the tiny vocabulary in place of a published one."""

from __future__ import annotations

from pathlib import Path

from tests.scripts import script

from drivekd.models.tiny import tiny_vlm


def test_both_ways_give_the_same_tokens(tmp_path: Path) -> None:
    tiny_vlm("qwen2_5_vl").tokenizer.backend_tokenizer.save(str(tmp_path / "words.json"))
    found = script("encode").run(tmp_path / "words.json", 20)
    assert found["same_tokens"]
    assert found["samples"] == 20
    assert found["tokens_per_sample"] > 100
