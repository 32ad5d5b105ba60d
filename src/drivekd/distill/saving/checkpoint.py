"""Checkpoints of a run: written whole or not at all, and resumed only where they belong.

A folder `checkpoint-<step>/` holds the model and its processor as plain transformers loads them,
and beside them
- `optimizer.pt`: the optimizer's state, read back with `weights_only=True`;
- `bridges.safetensors`: the learned maps of `hidden` signals, where there are any (bridges.py);
- `adapter/`: adapters of a run that trains them (lora.py); the model is then the sum of both;
- `trainer_state.json`: step, weighting, kept coefficients, pending log means, and what identifies
  the run: the resolved recipe, the teachers, the data, the weights it started from. The learning
  rate and every random draw are functions of the recipe, the seed and the step (order.py), so there
  is no further state to keep;
- `recipe.yaml` and `README.md`: the resolved recipe and a model card (card.py), for the reader.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from drivekd.distill.saving import lora
from drivekd.distill.saving.trainer_state import FILE, FINAL, State, place_of, write_state
from drivekd.files.writing import atomic_folder, draft_of
from drivekd.models import vlm as vlms

BRIDGES = "bridges.safetensors"
"""Name of the file of learned maps in a checkpoint."""

_NAME = re.compile(r"checkpoint-(\d+)")


# ------------------------------------------------------------------------------------- writing


def save(
    folder: Path,
    *,
    vlm: vlms.Vlm,
    optimizer: Mapping[str, Any],
    state: State,
    keep: int | None,
    weights: Mapping[str, Tensor] | None = None,
    bridges: Mapping[str, Tensor] | None = None,
    card: str = "",
) -> Path:
    """Write `folder/checkpoint-<step>` and drop all but the newest `keep` and the best checkpoint.

    Raises:
        OSError: it could not be written; nothing of it is left and the earlier ones are intact.
    """

    def fill(target: Path) -> None:
        write_model(target, vlm, state.recipe, weights)
        with _without_checksums():
            torch.save(dict(optimizer), target / "optimizer.pt")
        if bridges:
            save_file({name: weight.detach() for name, weight in bridges.items()}, target / BRIDGES)
        if lora.parameters(vlm):
            lora.write(vlm, target / lora.FOLDER)
        _describe(target, state, folder, card)

    written = write_whole(folder / f"checkpoint-{state.step}", fill)
    if keep is not None:
        for old in _checkpoints(folder)[: -max(keep, 1)]:
            if _step(old) != state.best_global_step:
                _drop(old)
    return written


@contextmanager
def _without_checksums() -> Iterator[None]:
    """Leave CRC-32 out of what torch saves.

    `torch.load` compares none, and to compute them makes saving a third slower.
    """
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def drop_after(folder: Path, step: int) -> None:
    """Remove what a run left after a step: a run resumed there makes its own.

    Without this, the steps of two branches would mix: `latest` would name the older branch, and
    `final` a model that these checkpoints do not lead to. What a killed run left half written
    or half removed goes too.
    """
    for draft in folder.glob(".*.partial"):
        shutil.rmtree(draft, ignore_errors=True)
    later = [path for path in _checkpoints(folder) if _step(path) > step]
    for path in [folder / FINAL, *reversed(later)]:
        if path.exists():
            _drop(path)


def _drop(path: Path) -> None:
    """Remove a folder; interrupted on the way, it does not look like a whole one."""
    gone = draft_of(path)
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone)


def save_final(
    folder: Path,
    *,
    vlm: vlms.Vlm,
    state: State,
    weights: Mapping[str, Tensor] | None = None,
    card: str = "",
) -> Path:
    """Write `folder/final`, the model without what only a running training needs."""

    def fill(target: Path) -> None:
        write_model(target, vlm, state.recipe, weights)
        _describe(target, state, folder, card)

    return write_whole(folder / FINAL, fill)


def save_best(folder: Path, *, state: State, card: str = "") -> Path:
    """Write `folder/final` with the model of the best checkpoint."""
    assert state.best_global_step is not None
    best = place_of(state, state.best_global_step, folder)

    def fill(target: Path) -> None:
        left = shutil.ignore_patterns("optimizer.pt", BRIDGES, lora.FOLDER)
        shutil.copytree(best, target, ignore=left, dirs_exist_ok=True)
        _describe(target, state, folder, card)

    return write_whole(folder / FINAL, fill)


def _describe(target: Path, state: State, folder: Path, card: str) -> None:
    (target / "README.md").write_text(card, encoding="utf-8")
    write_state(target, state, folder)


def write_model(
    target: Path,
    vlm: vlms.Vlm,
    recipe: Mapping[str, Any],
    weights: Mapping[str, Tensor] | None,
) -> None:
    """The model as plain transformers loads it, and the recipe that made it.

    `weights` by name, where the model does not hold them itself.
    """
    import yaml

    vlms.save(vlm, target, weights)
    text = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
    (target / "recipe.yaml").write_text(text, encoding="utf-8")


def write_whole(target: Path, fill: Callable[[Path], None]) -> Path:
    """Make a folder appear complete or not at all: temporary name, fsync, rename.

    Raises:
        OSError: with the folder, the reason and the space left, in one line.
    """
    try:
        with atomic_folder(target) as draft:
            fill(draft)
    except Exception as error:
        raise OSError(_complaint(target, error)) from error
    return target


def _complaint(target: Path, error: Exception) -> str:
    place = next((p for p in target.parents if p.exists()), Path("/"))
    free = shutil.disk_usage(place).free / 2**20
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"{target} could not be written: {reason} ({free:.0f} MiB free). Earlier checkpoints are "
        f"intact: make room or choose another output_dir, then resume."
    )


# ------------------------------------------------------------------------------------- reading


def _checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return [path for path in sorted(found, key=_step) if (path / FILE).exists()]


def _step(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run's folder, None where there is none."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def starting_point(folder: Path, resume: bool | Path) -> Path | None:
    """Where a run goes on: a checkpoint, the finished model, or None for a new run.

    Args:
        folder: of the run.
        resume: True: the latest of `folder`, if any; a path: this checkpoint (or the latest of
            this run's folder), which may lie elsewhere if `folder` holds no run of its own;
            False: start anew.

    Raises:
        ValueError: a new run would overwrite an earlier one, or the path holds no checkpoint.
    """
    finished = folder / FINAL / FILE
    if resume is True:
        return finished.parent if finished.exists() else latest(folder)
    found = None
    if resume is not False:
        found = Path(resume) if (Path(resume) / FILE).exists() else latest(resume)
        if found is None:
            raise ValueError(
                f"resume: {resume} is no checkpoint and holds none; expected checkpoint-*"
            )
    if found is None or found.resolve().parent != folder.resolve():
        held = finished.parent if finished.exists() else latest(folder)
        if held is not None:
            raise ValueError(
                f"output_dir {folder} holds {held.name} of an earlier run: resume it, delete the "
                f"folder, or choose another output_dir"
            )
    return found


def read_optimizer(checkpoint: Path) -> dict[str, Any]:
    """The optimizer's state; no code in the file is ever run."""
    return dict(torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True))


def read_bridges(checkpoint: Path, weights: Mapping[str, Tensor]) -> None:
    """Copy the learned maps of a checkpoint into these weights; nothing to do without any.

    Raises:
        ValueError: the checkpoint has no such file, or other maps than these.
    """
    if not weights:
        return
    path = checkpoint / BRIDGES
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}), but the run learns maps for its hidden signals; "
            f"resume another checkpoint"
        ) from error
    shapes, found = ({n: tuple(w.shape) for n, w in part.items()} for part in (weights, saved))
    if shapes != found:
        raise ValueError(
            f"{path} holds maps of other layers or widths than the run has: {found} then, {shapes} "
            f"now; resume with the recipe and teachers of that run"
        )
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(saved[name])


#: What may differ between a checkpoint and the run that resumes it: places (what lies there is
#: compared by content), limits, intervals, and who runs the batches of a step, if equally many.
FREE = (
    "name",
    "output_dir",
    "data.train",
    "data.eval",
    "data.root",
    "data.max_length",
    "data.max_images",
    "capabilities.*.teacher",
    "train.dataloader_num_workers",
    "train.fsdp",
    "train.gradient_accumulation_steps",
    "train.logging_steps",
    "train.eval_strategy",
    "train.eval_steps",
    "train.save_steps",
    "train.save_total_limit",
    "train.report_to",
    "train.offload_teachers",
    "train.num_threads",
    "train.cache_features_gb",
    "train.cache_targets_gb",
    "cache.dir",
    "cache.max_gb",
)


_DATA = {
    "samples": "training samples (questions or answers)",
    "pictures": "pictures: files have other bytes than then",
    "rows": "rows: samples share them otherwise",
}


def check_resumable(saved: State, now: State, checkpoint: Path) -> None:
    """Refuse to continue a run with another start, other teachers, data or another method.

    Raises:
        ValueError: naming every difference, or that it was written by an earlier version.
    """
    if "missing" in saved.recipe.get("combine", {}):
        raise ValueError(
            f"{checkpoint} has the format of an earlier drivekd (its recipe has combine.missing) "
            "and cannot be resumed by this one: finish the run with that version, or start anew in "
            "another output_dir"
        )
    old, new = _leaves(saved.recipe), _leaves(now.recipe)
    differences = [
        f"{key}: {old.get(key)!r} then, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    for name in sorted(saved.teachers.keys() | now.teachers.keys()):
        then, here = saved.teachers.get(name, {}), now.teachers.get(name, {})
        if then.get("sha256") != here.get("sha256"):
            differences.append(f"teacher of {name}: {_who(then)} then, {_who(here)} now")
    if _batches(saved) != _batches(now):
        differences.append(
            f"batches per step: {_batches(saved)} in {saved.processes} processes then, "
            f"{_batches(now)} in {now.processes} now (gradient_accumulation_steps × processes)"
        )
    differences += [
        f"data: other {what}" for k, what in _DATA.items() if saved.data.get(k) != now.data.get(k)
    ]
    if saved.start != now.start:
        differences.append(
            f"student: started from weights {saved.start[:8]} then, {now.start[:8]} now"
        )
    if saved.trained != now.trained:
        differences.append("student: another set of trained parameters")
    if differences:
        raise ValueError(
            f"{checkpoint} belongs to another run and cannot be resumed: {'; '.join(differences)}. "
            f"Restore these, choose another output_dir, or remove the folder {checkpoint.parent}"
        )


def _batches(state: State) -> int:
    """Batches of one optimizer step, over all processes."""
    return int(state.recipe["train"]["gradient_accumulation_steps"]) * state.processes


def _who(teacher: Mapping[str, str]) -> str:
    return f"{teacher['source']} ({teacher['sha256'][:8]})" if teacher else "none"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key to value for everything that must not change."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if any(re.fullmatch(free.replace(".", r"\.").replace("*", "[^.]+"), name) for free in FREE):
            continue
        if isinstance(value, Mapping):
            leaves.update(_leaves(value, f"{name}."))
        else:
            leaves[name] = value
    return leaves
