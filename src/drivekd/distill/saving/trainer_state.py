"""`trainer_state.json`: what a run is at one moment, for resuming it and for other tools."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from drivekd.files.writing import write_json

FILE = "trainer_state.json"
"""Of the file: that of Hugging Face's trainer, whose keys it holds beside ours."""

FINAL = "final"
"""Name of the folder of the finished model."""


@dataclass(frozen=True)
class State:
    """What a run is at one moment, apart from weights and optimizer.

    Attributes:
        step: optimizer steps done.
        total_steps: of the whole run.
        recipe: the resolved recipe as plain data.
        teachers: identity of each capability's teacher, see teacher.identity.
        data: digests of the training samples, see `corpus.digests`.
        start: sha256 of the student's weights before the first step.
        trained: names of the trained parameters, in the optimizer's order.
        weighting: the state of the loss weighting.
        kept: coefficients for the steps between exact ones, see refresh.py.
        totals: sums for the log since the last logged step.
        seconds: wall time spent so far [s].
        questions: samples seen so far.
        processes: that train together, see parallel.py.
        epoch: passes over the data, as a fraction.
        num_train_epochs: passes over the data of the whole run, rounded up.
        log_history: the lines of `log.jsonl` so far.
        best_metric: least eval/loss/ce of a checkpoint or of the end, where the run asks for it.
        best_global_step: the step that it was taken after.
    """

    step: int
    total_steps: int
    recipe: Mapping[str, Any]
    teachers: Mapping[str, Mapping[str, str]]
    data: Mapping[str, str]
    start: str
    trained: list[str]
    weighting: Mapping[str, Any] = field(default_factory=dict)
    kept: Mapping[str, Any] = field(default_factory=dict)
    totals: Mapping[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    questions: int = 0
    processes: int = 1
    epoch: float = 0.0
    num_train_epochs: int = 0
    log_history: Sequence[Mapping[str, float]] = ()
    best_metric: float | None = None
    best_global_step: int | None = None


def digest(parts: Iterable[str]) -> str:
    """sha256 over a sequence of texts, for example one for each training sample."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode())
        total.update(b"\0")
    return total.hexdigest()


def write_state(folder: Path, state: State, run: Path) -> None:
    """Write the file into a checkpoint of a run whose folder is `run`."""
    write_json(folder / FILE, asdict(state) | _for_other_tools(state, run))


def _for_other_tools(state: State, run: Path) -> dict[str, Any]:
    """What Hugging Face's trainer calls otherwise; null where the run has no such thing."""
    train, best = state.recipe["train"], state.best_global_step
    evaluates = train["eval_strategy"] == "steps" and bool(state.recipe["data"]["eval"])
    return {
        "global_step": state.step,
        "max_steps": state.total_steps,
        "train_batch_size": train["per_device_train_batch_size"],
        "logging_steps": train["logging_steps"],
        "save_steps": train["save_steps"],
        "eval_steps": (train["eval_steps"] or train["save_steps"]) if evaluates else None,
        "best_model_checkpoint": None if best is None else str(place_of(state, best, run)),
    }


def place_of(state: State, step: int, run: Path) -> Path:
    """The folder of the model after a step: the last one has no checkpoint beside `final`."""
    return run / (FINAL if step == state.total_steps else f"checkpoint-{step}")


def read_state(checkpoint: Path) -> State:
    """The state stored in a checkpoint.

    Raises:
        ValueError: the folder is no checkpoint of ours.
    """
    path = checkpoint / FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(raw.get("data"), str):  # one digest of everything, as earlier versions wrote
            raw["data"] = {}
        return State(**{each.name: raw[each.name] for each in fields(State) if each.name in raw})
    except (OSError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{checkpoint} is not a checkpoint of drivekd train ({path.name}: {error}): "
            f"expected a folder checkpoint-<step> inside a run's output_dir"
        ) from error
