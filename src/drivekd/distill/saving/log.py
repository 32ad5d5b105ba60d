"""The record of a run: one JSON line per logged step in `log.jsonl`, and TensorBoard on request.

A quantity that did not occur is a missing key, never 0.0.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from drivekd.files import extras

Totals = dict[str, list[Any]]
"""Per name: the weighted sum and the weight collected since the last logged step.

A sum may be a tensor that is still on its device: it is fetched when somebody reads it.
"""


def add(totals: Totals, name: str, value: float | Tensor, weight: float = 1.0) -> None:
    """Count `value` with `weight` towards the mean of `name`; nothing happens for weight 0."""
    if weight > 0:
        entry = totals.setdefault(name, [0.0, 0.0])
        entry[0] += value * weight
        entry[1] += weight


def add_all(totals: Totals, values: Mapping[str, float]) -> None:
    """Count each value once."""
    for name, value in values.items():
        add(totals, name, value)


def means(totals: Totals) -> dict[str, float]:
    """The mean of each name that occurred."""
    return {name: total / weight for name, (total, weight) in fetched(totals).items()}


def fetched(totals: Totals) -> dict[str, list[float]]:
    """All sums and weights as plain numbers."""
    return {name: [float(total), float(weight)] for name, (total, weight) in totals.items()}


@dataclass(frozen=True)
class Journal:
    """An open record: the file of lines and, where asked for, the TensorBoard writer.

    `history` holds the lines of the file.
    """

    lines: IO[str]
    board: Any | None
    history: list[dict[str, float]] = field(default_factory=list)


def start(
    folder: Path,
    *,
    tensorboard: bool,
    after: int,
    history: Sequence[Mapping[str, float]] = (),
) -> Journal:
    """Open the record of a run that has done `after` steps; later lines of a lost run are cut.

    Args:
        folder: of the run; receives `log.jsonl` and `tensorboard/`.
        tensorboard: also write event files.
        after: optimizer steps already done (0 = a new run).
        history: the lines up to there, for a run that goes on in another folder.
    """
    path = folder / "log.jsonl"
    there = _complete(path) if path.exists() else [f"{json.dumps(dict(x))}\n" for x in history]
    found = [(line, json.loads(line)) for line in there] if after else []
    kept = [(line, record) for line, record in found if record["step"] <= after]
    path.write_text("".join(line for line, _ in kept), encoding="utf-8")
    lines, board = path.open("a", encoding="utf-8"), None
    if tensorboard:
        board = _board(folder / "tensorboard", after)
    return Journal(lines, board, [record for _, record in kept])


def uses_tensorboard(report_to: str | None) -> bool:
    """Whether event files are written: where a recipe is silent, if TensorBoard is installed.

    Raises:
        ModuleNotFoundError: it is asked for and not installed.
    """
    if report_to == "tensorboard":
        extras.require("tensorboard")
    return report_to != "none" and extras.present("tensorboard")


def nowhere() -> Journal:
    """A record that nobody keeps: that of all processes but the first."""
    return Journal(Path(os.devnull).open("a", encoding="utf-8"), None)


def _complete(path: Path) -> list[str]:
    """Lines that end in a newline: a killed run may leave half a line behind."""
    text = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in text if line.endswith("\n")]


def _board(folder: Path, after: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=after + 1 if after else None)


def write(journal: Journal, record: Mapping[str, float | int]) -> None:
    """Append one line and flush it, so that a report can follow a running training."""
    journal.lines.write(json.dumps(dict(record)) + "\n")
    journal.lines.flush()
    journal.history.append(dict(record))
    if journal.board is not None:
        for name, value in record.items():
            if name != "step":
                journal.board.add_scalar(name, value, int(record["step"]))


def status(history: Sequence[Mapping[str, float]]) -> str:
    """Speed and losses of the newest line that has them, short enough for a line of progress."""
    newest = next((line for line in reversed(history) if "loss/ce" in line), None)
    if newest is None:
        return ""
    losses = [(k.removeprefix("loss/"), v) for k, v in newest.items() if k.startswith("loss/")]
    shown = (f"{name} {value:.3g}" for name, value in losses)
    return ", ".join((f"{newest['questions_per_second']:.3g} samples/s", *shown))


def close(journal: Journal) -> None:
    """Close both records."""
    journal.lines.close()
    if journal.board is not None:
        journal.board.close()
