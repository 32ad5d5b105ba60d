from __future__ import annotations

import os
import pty
import sys
import termios
from collections.abc import Iterable

import pytest

from drivekd.files.progress import duration, tell, track


def test_items_pass_through_and_quick_work_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(7), label="x")) == list(range(7))
    assert list(track(iter("ab"))) == ["a", "b"]
    assert capsys.readouterr() == ("", "")


class Clock:
    """A clock that only items move, each by the same time [s]."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, each: float) -> None:
        self.now, self.each = 0.0, each
        monkeypatch.setattr("tqdm.std.time", lambda: self.now)

    def pass_with(self, items: Iterable[int]) -> None:
        for _ in items:
            self.now += self.each


def test_plain_lines_come_at_most_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Clock(monkeypatch, 3.0).pass_with(track(range(11), label="scenes"))
    assert capsys.readouterr().err.splitlines() == [
        "scenes: 4/11, 0.3/s, 21s left",
        "scenes: 8/11, 0.3/s, 9s left",
        "scenes: 11/11, 0.3/s, done in 33s",
    ]


def test_a_status_comes_at_the_end_of_the_line_and_is_asked_for_only_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, losses = Clock(monkeypatch, 6.0), iter(("", "ce 2.5", "ce 1.5"))
    clock.pass_with(track(range(5), label="training", status=lambda: next(losses)))
    assert capsys.readouterr().err.splitlines() == [
        "training: 2/5, 0.2/s, 18s left",
        "training: 4/5, 0.2/s, 6s left, ce 2.5",
        "training: 5/5, 0.2/s, done in 30s, ce 1.5",
    ]


def test_what_is_gone_on_with_counts_from_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Clock(monkeypatch, 5.0).pass_with(track(range(4), 10, "training", before=6))
    assert capsys.readouterr().err.splitlines() == [
        "training: 8/10, 0.2/s, 10s left",
        "training: 10/10, 0.2/s, done in 20s",
        "training: 10/10, 0.2/s, done in 20s",
    ]


def test_without_a_total_there_is_a_rate_but_no_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Clock(monkeypatch, 11.0).pass_with(track(iter(range(2)), label="rows"))
    assert capsys.readouterr().err.splitlines()[-1] == "rows: 2, 0.1/s"


def test_a_bar_fits_the_terminal_and_holds_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with os.fdopen(theirs, "w") as terminal, os.fdopen(ours, "rb") as bar:
        monkeypatch.setattr(sys, "stderr", terminal)
        list(track([1, 2], label="x [b]y", status=lambda: f"[b]ce 1.5[/b] {'long ' * 30}"))
        text = b""
        while not text.endswith(b"\n"):  # the bar's own end
            text += os.read(bar.fileno(), 10_000)
    line = text.decode().rstrip().split("\r")[-1]
    assert line.startswith("x [b]y: 100%")
    assert "2/2" in line
    assert "[b]ce 1.5[/b] long" in line
    assert 70 < len(line) < 80


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0s"), (59.4, "59s"), (498, "8m18s"), (7500, "2h05m")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_only_the_first_of_several_processes_tells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        tell(f"from {rank}")
    assert capsys.readouterr().err == "from 0\n"
