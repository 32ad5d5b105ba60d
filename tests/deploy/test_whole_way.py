"""A student is trained, exported, served on loopback, evaluated there and measured there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.runs import recipe, tiny_student, write_data

from drivekd.cli import app
from drivekd.distill.train import train
from drivekd.models.vlm import save

pytestmark = pytest.mark.usefixtures("no_debug")


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        app.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    return out


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of a folder, in a process of its own that has to end well."""
    command = [sys.executable, "-m", "drivekd", "serve", "--model", str(folder), "--port", "0"]
    with subprocess.Popen(
        [*command, "--served-name", "student"], stdout=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        try:
            yield next(word for word in first.split() if word.startswith("http")).rstrip(":")
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0


def replies(folder: Path) -> dict[str, str]:
    lines = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: row["reply"] for row in map(json.loads, lines)}


def test_a_student_is_exported_served_evaluated_and_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = write_data(tmp_path / "data")
    start = tmp_path / "start"
    save(tiny_student(), start)
    plain = recipe(data, tmp_path / "run", train={"max_steps": 2}, capabilities={})
    final = train(plain.model_copy(update={"student": str(start)}))
    exported, here, there = (tmp_path / name for name in ("exported", "here", "there"))
    call(capsys, "export", "--model", final, "--out", exported)
    common = ("--data", data, "--max-new-tokens", 8, "--no-controls")
    call(capsys, "evaluate", "--model", final, *common, "--out", here)
    with served(exported) as url:
        asked = ("--model", "student", "--server", url, *common, "--judge", "scripted")
        printed = call(capsys, "evaluate", *asked, "--out", there)
        few = ("--cameras", 1, "--cameras", 6, "--new-tokens", 4, "--repeats", 2)
        measured = call(
            capsys, "bench", "--model", "student", "--engine", "server", "--url", url, *few
        )
    assert replies(there) == replies(here) and len(replies(there)) == 15
    assert "judged scores" in printed and (there / "report.html").is_file()
    found = json.loads(measured.splitlines()[-1])
    assert found["ttft_s"] > 0 and found["tokens_per_s"] > 0
    assert {row["cameras"] for row in found["rows"]} == {1, 6}
