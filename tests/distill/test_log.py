"""The record of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drivekd.distill.saving import log


def test_means_are_weighted_and_nothing_is_made_up() -> None:
    totals: log.Totals = {}
    log.add(totals, "loss", 2.0, 3)
    log.add(totals, "loss", 6.0, 1)
    log.add(totals, "absent", 5.0, 0)
    assert log.means(totals) == {"loss": 3.0}


def test_the_status_is_that_of_the_newest_line_with_losses() -> None:
    assert log.status([]) == ""
    line = {"step": 1, "loss/ce": 1.23456, "loss/attn/planning": 0.00012, "lr": 1.0}
    old = {"step": 0, "loss/ce": 9.0, "questions_per_second": 1.0}
    lines = [old, {**line, "questions_per_second": 31.25}, {"step": 1, "eval/loss/ce": 7.0}]
    assert log.status(lines) == "31.2 samples/s, ce 1.23, attn/planning 0.00012"


def test_a_resumed_record_loses_the_lines_after_the_checkpoint(tmp_path: Path) -> None:
    journal = log.start(tmp_path, tensorboard=False, after=0)
    for step in (1, 2, 3):
        log.write(journal, {"step": step, "loss/ce": step / 2})
    log.close(journal)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "los')  # killed while writing
    assert [line["step"] for line in journal.history] == [1, 2, 3]
    again = log.start(tmp_path, tensorboard=False, after=2)
    assert again.history == [{"step": 1, "loss/ce": 0.5}, {"step": 2, "loss/ce": 1.0}]
    log.close(again)
    (tmp_path / "elsewhere").mkdir()
    log.close(log.start(tmp_path / "elsewhere", tensorboard=False, after=2, history=again.history))
    moved = (tmp_path / "elsewhere" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in moved] == [1, 2]
    kept = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in kept] == [1, 2]


@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    journal = log.start(tmp_path, tensorboard=True, after=0)
    log.write(journal, {"step": 3, "loss/ce": 0.25})
    log.close(journal)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (scalar,) = events.Scalars("loss/ce")
    assert (scalar.step, scalar.value) == (3, 0.25)
