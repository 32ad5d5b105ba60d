"""`accelerate launch` with the shipped configuration: two processes in pieces are one process."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import ranks
import runs
from drivekd.distill.train import train
from drivekd.models import vlm as vlms
from drivekd.recipe import Recipe, load

#: Relative error [L2]: more than two gradients are added in another order, see test_parallel.py.
ERROR = 1e-6

CONFIGURATION = Path(str(resources.files("drivekd") / "recipes/accelerate/fsdp2_8gpu.yaml"))


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """With a teacher, both on disk, and not a word about pieces or precision."""
    data = runs.write_data(tmp_path / "data")
    sources = {"student": runs.tiny_student(), "teacher": runs.tiny_student(9, text_layers=4)}
    for name, vlm in sources.items():
        vlms.save(vlm, tmp_path / name)
    raw = {
        "name": "launched",
        "student": str(tmp_path / "student"),
        "output_dir": str(tmp_path / "one"),
        "data": {"train": [str(data)]},
        "capabilities": {
            "reasoning": {
                "teacher": str(tmp_path / "teacher"),
                "student_layers": "1..penultimate",
                "signal": "full",
            }
        },
        "mixing": {name: {"reasoning": 1} for name in runs.CAPABILITIES},
        "train": {
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 1,
            "max_steps": 2,
            "report_to": "none",
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(raw))
    return load(tmp_path / "recipe.yaml", ["train.gradient_accumulation_steps=2"])


def weights(folder: Path) -> torch.Tensor:
    found = load_file(folder / "model.safetensors")
    return torch.cat([found[name].flatten() for name in sorted(found)])


def test_the_shipped_configuration_is_of_eight_processes_and_no_recipe() -> None:
    from drivekd.recipe import shipped

    found = yaml.safe_load(CONFIGURATION.read_text())
    assert (found["num_processes"], found["fsdp_config"]["fsdp_version"]) == (8, 2)
    assert found["mixed_precision"] == "bf16"
    assert not [name for name in shipped() if "fsdp" in name]


@pytest.mark.timeout(600)
def test_two_processes_of_accelerate_launch_are_one(recipe: Recipe, tmp_path: Path) -> None:
    launcher = ("-m", "accelerate.commands.launch", "--config_file", str(CONFIGURATION))
    changed = ("--num_processes", "2", "--mixed_precision", "no")
    port = ("--main_process_port", ranks.free_port())
    command = ("-m", "drivekd", "train", str(tmp_path / "recipe.yaml"))
    process = ranks.launched(*launcher, *changed, *port, *command, "--out", str(tmp_path / "two"))
    alone = weights(train(recipe))
    _, err = process.communicate(timeout=560)
    assert process.returncode == 0, err
    pair = weights(tmp_path / "two/final")
    start = weights(tmp_path / "student")
    assert (alone - start).norm() > 1e3 * ERROR * alone.norm()
    assert (pair - alone).norm() < ERROR * alone.norm()
    assert json.loads((tmp_path / "two/run.json").read_text())["processes"] == 2
    resolved = load(tmp_path / "two/recipe.yaml").train
    assert (resolved.fsdp, resolved.bf16) == (True, False)
