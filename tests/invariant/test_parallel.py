"""Two processes are one: joined by gloo on the CPU, each with all of the student or with pieces."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ranks
import runs
from drivekd.distill import plan as plans
from drivekd.distill.order import windows
from drivekd.distill.processes import parallel
from drivekd.distill.processes.parallel import ALONE, Ranks
from drivekd.distill.train import train
from drivekd.models import vlm as vlms
from drivekd.models.batch import flat
from drivekd.recipe import to_yaml

#: Relative error [L2] of updates and weights. Where both sides add the same two gradients it is 0;
#: more of them are added in another order, and backward passes through pieces too.
ERROR = 1e-6

#: The same of what is logged; cosines and the like, which may be near 0, absolutely.
LOGGED = 1e-5

KINDS = [*ranks.CASES, *(f"{case} in pieces" for case in ranks.CASES if case not in ranks.WHOLE)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    runs.write_data(folder / "held_out", first=3)
    return runs.write_data(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The folder of all whole runs, with that of one process and copies of its checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    trained(data, folder / "one")
    for name in ("resumed", "resumed in pieces", "mended", "other batches"):
        shutil.copytree(folder / "one/checkpoint-2", folder / name / "checkpoint-2")
        shutil.copy(folder / "one/log.jsonl", folder / name)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each of the two processes did."""
    return ranks.spawn(tmp_path_factory.mktemp("pair") / "here", ranks.in_all, data, folder)


@pytest.fixture(scope="module")
def alone(data: Path) -> dict[str, dict[str, Any]]:
    """The same steps in one process."""
    teachers = runs.tiny_teachers()
    return {case: ranks.stepped(data, case, ALONE, teachers) for case in ranks.CASES}


def trained(data: Path, output_dir: Path, *, resume: bool = False) -> Path:
    recipe = ranks.recipe_of(data, output_dir, size=1)
    student, teachers = runs.tiny_student(), runs.tiny_teachers()
    return train(recipe, resume=resume, student=student, teachers=teachers)


def error(one: Tensor, other: Tensor) -> float:
    assert other.norm() > 0
    return float((one - other).norm() / other.norm())


# ------------------------------------------------------------------------------------- steps


def test_the_cases_are_what_they_should_be(data: Path) -> None:
    """Steps in which a process lacks a loss, and some in which it has no batch at all."""
    teachers = runs.tiny_teachers()
    plan = ranks.run_of(data, "absent", ALONE, teachers).plan
    owners = [
        [plan.schedule.encoded[index].sample.capability for index in flat(window.batches)]
        for window in windows(plan.schedule.order, 0, ranks.CASES["absent"][0])
    ]
    assert sum(first != second for first, second in owners) > 1
    packed = ranks.run_of(data, "agp", ALONE, teachers).plan
    assert [len(w.batches) for w in windows(packed.schedule.order, 0, 2)] == [2, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_step_as_one(
    found: list[Any], alone: dict[str, dict[str, Any]], kind: str
) -> None:
    one, two = alone[kind.removesuffix(" in pieces")], [steps[kind] for steps, _ in found]
    for mine, expected in zip(two[0]["updates"], one["updates"], strict=True):
        assert error(mine, expected) < ERROR
    assert error(two[0]["weights"], one["weights"]) < ERROR
    for mine, expected in zip(two[0]["bridges"], one["bridges"], strict=True):
        assert error(mine, expected) < ERROR
    assert two[0]["means"] == pytest.approx(one["means"], rel=LOGGED, abs=LOGGED)
    # Neither copies from the other.
    assert torch.equal(two[0]["weights"], two[1]["weights"])
    assert two[0]["means"] == two[1]["means"]
    assert two[0]["dropout"] == one["dropout"] != two[1]["dropout"]


def test_without_the_sum_they_are_not_one(
    found: list[Any], alone: dict[str, dict[str, Any]]
) -> None:
    """The control of the test above: each process goes by its own gradients."""
    two = [steps["unsummed"] for steps, _ in found]
    assert error(two[0]["updates"][0], alone["agp"]["updates"][0]) > 1e5 * ERROR
    assert error(two[0]["weights"], alone["agp"]["weights"]) > 1e3 * ERROR
    assert not torch.equal(two[0]["weights"], two[1]["weights"])


# -------------------------------------------------------------------------------- whole runs


def weights(folder: Path) -> Tensor:
    from safetensors.torch import load_file

    found = load_file(folder / "model.safetensors")
    return torch.cat([found[name].flatten() for name in sorted(found)])


def moments(folder: Path) -> Tensor:
    state = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
    return torch.cat([each["exp_avg_sq"].flatten() for _, each in sorted(state.items())])


@pytest.mark.parametrize("name", ["pair", "pair in pieces", "resumed", "resumed in pieces"])
def test_a_run_of_two_is_a_run_of_one(found: list[Any], folder: Path, name: str) -> None:
    """Also where it goes on from the checkpoint of one."""
    for part in ("checkpoint-4", "final"):
        assert error(weights(folder / name / part), weights(folder / "one" / part)) < ERROR
    last = "checkpoint-4"
    assert error(moments(folder / name / last), moments(folder / "one" / last)) < ERROR
    mine, expected = runs.untimed(folder / name), runs.untimed(folder / "one")
    assert len(mine) == len(expected) == 9  # six steps, three of them with a held-out loss
    for line, other in zip(mine, expected, strict=True):
        assert line == pytest.approx(other, rel=LOGGED, abs=LOGGED)
    about = json.loads((folder / name / "run.json").read_text())
    plain = json.loads((folder / "one/run.json").read_text())
    assert (about.pop("processes"), plain.pop("processes")) == (2, 1)
    assert about == plain
    assert vlms.load(folder / name / "final").model.dtype == torch.float32


def test_one_process_goes_on_from_the_checkpoint_of_pieces(
    found: list[Any], folder: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    shutil.copytree(folder / "pair in pieces/checkpoint-4", tmp_path / "run/checkpoint-4")
    final = trained(data, tmp_path / "run", resume=True)
    assert error(weights(final), weights(folder / "one/final")) < ERROR


@pytest.mark.parametrize("name", ["faulty", "faulty in pieces"])
def test_what_is_no_number_in_one_process_stops_both(
    found: list[Any], folder: Path, name: str
) -> None:
    first, second = (errors[name] for _, errors in found)
    assert first == second
    assert first.startswith("step 3, samples s")
    assert "the loss ce of samples s" in first
    assert [line["step"] for line in runs.lines(folder / name)] == [1, 2, 2]
    left = sorted(path.name for path in (folder / name).iterdir() if path.is_dir())
    assert left == ["checkpoint-2"]
    assert error(weights(folder / name / left[0]), weights(folder / "one" / left[0])) < ERROR
    assert error(weights(folder / "mended/final"), weights(folder / "one/final")) < ERROR


def test_processes_that_differ_stop_and_other_windows_are_refused(found: list[Any]) -> None:
    for _, errors in found:
        assert errors["apart"].startswith("the run of process 1 is not that of process 0")
        said = "batches per step: 2 in 1 processes then, 4 in 2 now"
        assert said in errors["other batches"]
    expected = {"faulty", "faulty in pieces", "apart", "other batches"}
    assert all(errors.keys() == expected for _, errors in found)


# ---------------------------------------------------------------------------- as users start it


@pytest.fixture
def recipe_file(data: Path, tmp_path: Path) -> Path:
    """Cross-entropy alone, on a student that lies on disk."""
    vlms.save(runs.tiny_student(), tmp_path / "student")
    recipe = runs.recipe(data, tmp_path / "run", capabilities={}, train={"max_steps": 2})
    changed = recipe.model_copy(update={"student": str(tmp_path / "student")})
    (tmp_path / "recipe.yaml").write_text(to_yaml(changed))
    return tmp_path / "recipe.yaml"


def test_torchrun_trains_with_two_processes(recipe_file: Path) -> None:
    torchrun = (
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        f"--master_port={ranks.free_port()}",
    )
    process = ranks.launched(*torchrun, "-m", "drivekd", "train", str(recipe_file))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    folder = recipe_file.parent / "run"
    assert out.splitlines()[-1] == str(folder / "final")
    assert out.count("to evaluate:") == 1
    assert json.loads((folder / "run.json").read_text())["rows_per_step"] == 4
    assert [line["step"] for line in runs.lines(folder)] == [1, 2]


def test_a_process_that_fails_ends_the_other(recipe_file: Path) -> None:
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": ranks.free_port()}
    command = ("-m", "drivekd", "train", str(recipe_file))
    good = ranks.launched(*command, RANK="0", LOCAL_RANK="0", **shared)
    bad = ranks.launched(
        *command, "--set", "data.train=nowhere", RANK="1", LOCAL_RANK="1", **shared
    )
    _, said = bad.communicate(timeout=120)
    assert bad.returncode == 2
    assert "no data file nowhere" in said
    _, said = good.communicate(timeout=120)
    assert good.returncode == 1
    assert "process 0 of 2 stopped because another one ended" in said
    assert not (recipe_file.parent / "run/final").exists()


# ------------------------------------------------------------------------------- small parts


def test_an_incomplete_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with parallel.joined() as ranks_:
        assert ranks_ == ALONE
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = "WORLD_SIZE=2 .* but RANK, LOCAL_RANK, MASTER_PORT is not set; start them with torchrun"
    with pytest.raises(ValueError, match=said), parallel.joined():
        pass


def test_projections_one_after_the_other_are_refused(data: Path) -> None:
    combine = {"granularity": "micro_batch"}
    recipe = runs.recipe(data, Path("unused"), data={"pack": False}, combine=combine)
    with pytest.raises(ValueError, match=r"micro_batch .* 2 processes .*granularity: step"):
        plans.build(recipe, runs.tiny_student(), runs.tiny_teachers(), Ranks(0, 2))


def test_windows_are_shared_out_without_rest(data: Path) -> None:
    """What the processes run together is what one process runs, in any world size."""
    teachers = runs.tiny_teachers()
    recipe = runs.recipe(data, Path("unused"), data={"pack": False})
    for size in (1, 2, 3):
        shares = [Ranks(rank, size) for rank in range(size)]
        plan = plans.build(recipe, runs.tiny_student(), teachers, shares[0])
        assert plan.schedule.order.rows_per_step == 2 * size
        assert plan.schedule.total_steps == -(-15 // (2 * size))
        seen = [
            index
            for window in windows(plan.schedule.order, 0, plan.schedule.order.steps_per_epoch)
            for share in shares
            for index in flat(share.share(window.batches))
        ]
        assert np.array_equal(sorted(seen), range(15))
