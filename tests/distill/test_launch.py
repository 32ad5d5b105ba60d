"""What `accelerate launch` sets, and what becomes of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import runs
from drivekd.distill.processes.launch import honoured
from drivekd.distill.train import train
from drivekd.recipe import Recipe, parse

#: What the launcher of accelerate 1.15 sets for two processes without FSDP, ranks and ports aside.
PLAIN = {
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "OMP_NUM_THREADS": "1",
}
#: The same with FSDP of version 2 and everything else left as it is.
FSDP2 = PLAIN | {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}
CPU = PLAIN | {"ACCELERATE_USE_CPU": "True"}


def recipe(**settings: Any) -> Recipe:
    return parse({"name": "n", "student": "s", "output_dir": "o", "train": settings})


def changed(before: Recipe, environment: dict[str, str]) -> dict[str, Any]:
    old, new = before.train.model_dump(), honoured(before, environment).train.model_dump()
    return {key: value for key, value in new.items() if value != old[key]}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {}),
        (PLAIN, {}),
        (PLAIN | {"ACCELERATE_MIXED_PRECISION": "bf16"}, {"bf16": True}),
        (FSDP2, {"fsdp": True}),
        (FSDP2 | {"FSDP_ACTIVATION_CHECKPOINTING": "true"},
         {"fsdp": True, "gradient_checkpointing": True}),
        (PLAIN | {"FSDP_VERSION": "1"}, {}),  # without FSDP its version means nothing
        (PLAIN | {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
         {"gradient_accumulation_steps": 4}),
        (PLAIN | {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto"}, {}),
        (PLAIN | {"ACCELERATE_USE_PARALLELISM_CONFIG": "true",
                  "PARALLELISM_CONFIG_DP_SHARD_SIZE": "8",
                  "PARALLELISM_CONFIG_TP_SIZE": "1"}, {}),
    ],
)  # fmt: skip
def test_what_the_recipe_leaves_open_is_taken(
    environment: dict[str, str], expected: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert changed(recipe(), environment) == expected
        said = recipe(learning_rate=1.0, max_steps=3)
        assert changed(said, environment) == expected
    assert not caplog.text


def test_what_stands_in_the_recipe_wins_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    environment = FSDP2 | {"ACCELERATE_MIXED_PRECISION": "bf16"}
    with caplog.at_level(logging.WARNING):
        assert changed(recipe(bf16=False, fsdp=True), environment) == {}
    (line,) = caplog.records
    assert line.getMessage() == (
        "train.bf16: false stands in the recipe and wins; accelerate launch asks for true by "
        "mixed_precision: bf16"
    )
    caplog.clear()
    assert changed(recipe(bf16=False, fsdp=True), environment | {"RANK": "1"}) == {}
    assert changed(recipe(bf16=True), PLAIN) == {}  # "no" is what it sets where nobody asked
    assert not caplog.text


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (PLAIN | {"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed .*MULTI_GPU, or FSDP"),
        (PLAIN | {"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM .*MULTI_GPU, or FSDP"),
        (FSDP2 | {"FSDP_VERSION": "1"}, "FSDP of version 1, .*; set fsdp_version: 2"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP of version 1, "),
        (FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        (FSDP2 | {"FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "true"}, "checkpointing_offload"),
        (PLAIN | {"ACCELERATE_MIXED_PRECISION": "fp16"}, "fp16, expected no or bf16"),
        (PLAIN | {"ACCELERATE_MIXED_PRECISION": "fp8"}, "fp8, expected no or bf16"),
        (PLAIN | {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "dynamo_backend: INDUCTOR"),
        (FSDP2 | {"ACCELERATE_USE_PARALLELISM_CONFIG": "true",
                  "PARALLELISM_CONFIG_TP_SIZE": "2"}, "tp_size: 2, which is not built; .*to 1"),
        (CPU | {"MASTER_PORT": "29500"}, "starts only one; replace --cpu by --multi_gpu"),
    ],
)  # fmt: skip
def test_what_is_not_built_is_refused_in_one_line(
    environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=rf"accelerate launch .*{said}") as caught:
        honoured(recipe(), environment)
    assert "\n" not in str(caught.value)


def test_one_process_may_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert changed(recipe(), CPU) == {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"CPU.*CUDA_VISIBLE_DEVICES"):
        honoured(recipe(), CPU)


def test_training_goes_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = runs.write_data(tmp_path / "data", scenes=1)
    asked = runs.recipe(data, tmp_path / "run", capabilities={}, train={"max_steps": 1})
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="fp16"):
        train(asked, student=runs.tiny_student())
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    train(asked, student=runs.tiny_student())
    assert "bf16: true" in (tmp_path / "run/recipe.yaml").read_text()


def test_what_the_recipe_excludes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"accelerate launch.*lora") as caught:
        honoured(recipe(trainable="lora"), FSDP2)
    assert "\n" not in str(caught.value)
