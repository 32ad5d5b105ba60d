"""Checkpoints are written whole or not at all and resumed only where they belong."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from drivekd.distill.saving import checkpoint
from drivekd.distill.saving.trainer_state import State, read_state
from drivekd.models.vlm import Vlm
from runs import tiny_student

WHO = {"perception": {"source": "a", "sha256": "1" * 64, "dtype": "float32"}}
TRAIN = {
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 4,
    "logging_steps": 2,
    "save_steps": 5,
    "eval_strategy": "steps",
    "eval_steps": None,
}
DATA = {"samples": "2" * 64, "pictures": "2" * 64, "rows": "2" * 64}
RECIPE = {"name": "x", "seed": 0, "data": {"eval": ["val.jsonl"]}, "train": TRAIN}


def state(step: int = 2) -> State:
    return State(step, 9, RECIPE, WHO, DATA, "f" * 64, ["w"])


@pytest.fixture(scope="module")
def vlm() -> Vlm:
    return tiny_student()


@pytest.fixture
def optimizer() -> torch.optim.Optimizer:
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.arange(3.0)
    made = torch.optim.AdamW([weight], lr=0.1, fused=True)
    made.step()
    return made


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """Files cannot grow beyond a size [bytes]: the same error path as a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_saved_is_read_back(
    tmp_path: Path, vlm: Vlm, optimizer: torch.optim.Optimizer
) -> None:
    memory = {"mean": {"ce": 0.1}, "units": {"ce": 3}}
    lines = [{"step": 1, "loss/ce": 1.5}, {"step": 2, "eval/loss/ce": 0.5}]
    saved = replace(
        state(), weighting=memory, totals={"loss/ce": [1.5, 2.0]}, seconds=3.5, log_history=lines
    )
    found = checkpoint.save(
        tmp_path, vlm=vlm, optimizer=optimizer.state_dict(), state=saved, keep=2
    )
    assert found == checkpoint.latest(tmp_path) == tmp_path / "checkpoint-2"
    assert read_state(found) == saved
    (tmp_path / "usual").touch()  # whoever may read other files may read the weights
    modes = {path.stat().st_mode for path in [tmp_path / "usual", *found.iterdir()]}
    assert len(modes) == 1
    before = optimizer.state_dict()["state"][0]["exp_avg"].clone()
    fresh = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))], lr=0.1, fused=True)
    fresh.load_state_dict(checkpoint.read_optimizer(found))
    assert torch.equal(fresh.state_dict()["state"][0]["exp_avg"], before)


def test_torch_saves_with_checksums_again_behind_a_checkpoint(
    tmp_path: Path, vlm: Vlm, optimizer: torch.optim.Optimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own files do without; what a caller saves otherwise is not touched, faults included."""
    seen, save = [], torch.save

    def noted(*given: object) -> None:
        seen.append(torch.serialization.get_crc32_options())
        save(*given)

    monkeypatch.setattr(torch, "save", noted)
    given = {"vlm": vlm, "optimizer": optimizer.state_dict(), "keep": 2}
    checkpoint.save(tmp_path, state=state(), **given)
    with small_disk(1000), pytest.raises(OSError):
        checkpoint.save(tmp_path, state=state(3), **given)
    assert seen == [False]
    assert torch.serialization.get_crc32_options()


def test_other_tools_find_the_keys_of_hugging_face(
    tmp_path: Path, vlm: Vlm, optimizer: torch.optim.Optimizer
) -> None:
    lines = [{"step": 2, "loss/ce": 1.5}]
    saved = replace(state(), epoch=0.5, num_train_epochs=3, log_history=lines)
    best = replace(saved, best_metric=0.25, best_global_step=1)
    for each, name in ((saved, None), (best, str(tmp_path / "checkpoint-1"))):
        found = checkpoint.save(
            tmp_path, vlm=vlm, optimizer=optimizer.state_dict(), state=each, keep=2, card="# x\n"
        )
        raw = json.loads((found / "trainer_state.json").read_text())
        expected = {
            "global_step": 2,
            "max_steps": 9,
            "epoch": 0.5,
            "num_train_epochs": 3,
            "log_history": lines,
            "logging_steps": 2,
            "eval_steps": 5,
            "save_steps": 5,
            "train_batch_size": 3,
            "best_metric": each.best_metric,
            "best_global_step": each.best_global_step,
            "best_model_checkpoint": name,
        }
        assert expected.items() <= raw.items()
        assert (found / "README.md").read_text() == "# x\n"


def test_only_the_newest_and_the_best_are_kept(
    tmp_path: Path, vlm: Vlm, optimizer: torch.optim.Optimizer
) -> None:
    for step in (1, 2, 3, 4):
        judged = replace(state(step), best_metric=0.5, best_global_step=2 if step > 1 else 1)
        checkpoint.save(tmp_path, vlm=vlm, optimizer=optimizer.state_dict(), state=judged, keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]


def test_only_the_newest_are_kept(
    tmp_path: Path, vlm: Vlm, optimizer: torch.optim.Optimizer
) -> None:
    for step in (2, 9, 10):
        checkpoint.save(
            tmp_path, vlm=vlm, optimizer=optimizer.state_dict(), state=state(step), keep=2
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]
    assert checkpoint.latest(tmp_path) == tmp_path / "checkpoint-10"


def test_a_full_disk_is_one_clear_line_and_spares_the_earlier_checkpoint(
    tmp_path: Path, vlm: Vlm, optimizer: torch.optim.Optimizer
) -> None:
    kept = checkpoint.save(
        tmp_path, vlm=vlm, optimizer=optimizer.state_dict(), state=state(1), keep=1
    )
    before = {p.name: p.read_bytes() for p in kept.iterdir()}
    with small_disk(20_000), pytest.raises(OSError, match="could not be written") as caught:
        checkpoint.save(tmp_path, vlm=vlm, optimizer=optimizer.state_dict(), state=state(2), keep=1)
    assert "\n" not in str(caught.value)
    assert "MiB free" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]
    assert {p.name: p.read_bytes() for p in kept.iterdir()} == before


def test_half_written_folders_do_not_count(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-7.partial").mkdir()
    (tmp_path / "checkpoint-8").mkdir()
    assert checkpoint.latest(tmp_path) is None
    with pytest.raises(ValueError, match="checkpoint"):
        read_state(tmp_path / "checkpoint-8")
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text("[1]")
    with pytest.raises(ValueError, match="checkpoint"):
        read_state(tmp_path / "checkpoint-8")


def test_optimizer_files_run_no_code(tmp_path: Path) -> None:
    torch.save({"state": print}, tmp_path / "optimizer.pt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        checkpoint.read_optimizer(tmp_path)


def test_other_teachers_data_or_methods_are_refused_by_name(tmp_path: Path) -> None:
    same = state(7)
    checkpoint.check_resumable(state(), same, tmp_path)
    moved = {"perception": {**WHO["perception"], "source": "elsewhere"}}
    freely = {**RECIPE, "name": "y", "train": {**TRAIN, "save_steps": 6}}
    checkpoint.check_resumable(state(), replace(same, teachers=moved, recipe=freely), tmp_path)
    other = {"perception": {**WHO["perception"], "sha256": "2" * 64}}
    with pytest.raises(ValueError, match=r"teacher of perception: .*11111111.*22222222"):
        checkpoint.check_resumable(state(), replace(same, teachers=other), tmp_path)
    with pytest.raises(ValueError, match=r"teacher of perception: .*none"):
        checkpoint.check_resumable(state(), replace(same, teachers={}), tmp_path)
    faster = {**RECIPE, "train": {**TRAIN, "learning_rate": 1e-2}}
    with pytest.raises(ValueError, match=r"train\.learning_rate: 0\.001 .*0\.01"):
        checkpoint.check_resumable(state(), replace(same, recipe=faster), tmp_path)
    fewer = {**RECIPE, "train": {**TRAIN, "gradient_accumulation_steps": 2}}
    checkpoint.check_resumable(state(), replace(same, recipe=fewer, processes=2), tmp_path)
    with pytest.raises(ValueError, match=r"batches per step: 4 .*2"):
        checkpoint.check_resumable(state(), replace(same, recipe=fewer), tmp_path)
    for name, said in (("samples", "training samples"), ("pictures", "bytes"), ("rows", "rows")):
        with pytest.raises(ValueError, match=f"data: other {said}|data: other {name}.*{said}"):
            checkpoint.check_resumable(
                state(), replace(same, data={**DATA, name: "3" * 64}), tmp_path
            )
    with pytest.raises(ValueError, match="data: other training samples"):
        checkpoint.check_resumable(replace(state(), data={}), same, tmp_path)
    message = r"student: started from weights f{8} then, e{8} now\. .*another output_dir, or remove"
    with pytest.raises(ValueError, match=message):
        checkpoint.check_resumable(state(), replace(same, start="e" * 64), tmp_path)
    with pytest.raises(ValueError, match="trained parameters"):
        checkpoint.check_resumable(state(), replace(same, trained=["v"]), tmp_path)


def test_a_checkpoint_of_the_earlier_format_is_refused(tmp_path: Path) -> None:
    old = replace(state(), recipe={**RECIPE, "combine": {"missing": "zero"}})
    with pytest.raises(ValueError, match=r"earlier drivekd .*combine\.missing"):
        checkpoint.check_resumable(old, state(7), tmp_path)


def test_where_a_run_goes_on(tmp_path: Path) -> None:
    assert checkpoint.starting_point(tmp_path, True) is None
    assert checkpoint.starting_point(tmp_path, False) is None
    with pytest.raises(ValueError, match="holds none"):
        checkpoint.starting_point(tmp_path, tmp_path / "nowhere")
    for name in ("checkpoint-3", "checkpoint-12"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({}))
    assert checkpoint.starting_point(tmp_path, True) == tmp_path / "checkpoint-12"
    assert checkpoint.starting_point(tmp_path, tmp_path) == tmp_path / "checkpoint-12"
    three = tmp_path / "checkpoint-3"
    assert checkpoint.starting_point(tmp_path, three) == three
    with pytest.raises(ValueError, match="checkpoint-12"):
        checkpoint.starting_point(tmp_path, False)
    elsewhere = tmp_path / "elsewhere"
    assert checkpoint.starting_point(elsewhere, three) == three
    (elsewhere / "final").mkdir(parents=True)
    (elsewhere / "final" / "trainer_state.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="final"):
        checkpoint.starting_point(elsewhere, three)


def test_what_came_after_a_step_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-2.partial").mkdir()  # of a killed run
    for name in ("checkpoint-3", "checkpoint-12", "checkpoint-20", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({}))
    checkpoint.drop_after(tmp_path, 12)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-12", "checkpoint-3"]
    checkpoint.drop_after(tmp_path, 12)
    assert checkpoint.starting_point(tmp_path, True) == tmp_path / "checkpoint-12"
