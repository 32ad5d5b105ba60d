from __future__ import annotations

import pytest

from drivekd.files import progress
from drivekd.files.progress import duration, tell, track


def test_items_pass_through_and_quick_work_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(7), label="x")) == list(range(7))
    assert list(track(iter("ab"))) == ["a", "b"]
    assert capsys.readouterr() == ("", "")


def test_plain_lines_come_at_most_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 10_000, 3))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    list(track(range(11), label="scenes"))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "scenes: 4/11, 0.3/s, 21s left",
        "scenes: 8/11, 0.3/s, 9s left",
        "scenes: 11/11, 0.3/s, done in 36s",
    ]


def test_a_status_stands_at_the_end_of_the_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, losses = iter(range(0, 10_000, 6)), iter(("", "ce 2.5", "ce 1.5"))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    list(track(range(5), label="training", status=lambda: next(losses)))
    assert capsys.readouterr().err.splitlines() == [
        "training: 2/5, 0.2/s, 18s left",
        "training: 4/5, 0.2/s, 6s left, ce 2.5",
        "training: 5/5, 0.1/s, done in 36s, ce 1.5",
    ]


def test_what_is_gone_on_with_counts_from_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 10_000, 5))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    list(track(range(4), 10, "training", before=6))
    assert capsys.readouterr().err.splitlines() == [
        "training: 8/10, 0.2/s, 10s left",
        "training: 10/10, 0.2/s, done in 20s",
        "training: 10/10, 0.2/s, done in 25s",
    ]


def test_without_a_total_there_is_a_rate_but_no_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 10_000, 11))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    list(track(iter(range(2)), label="rows"))
    assert "left" not in capsys.readouterr().err


def test_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    assert list(track([1, 2, 3], label="scenes")) == [1, 2, 3]
    assert "3/3" in capsys.readouterr().err
    monkeypatch.setenv("COLUMNS", "80")
    list(track([1, 2], label="x [b]y", status=lambda: f"[b]ce 1.5[/b] {'long ' * 30}"))
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "2/2" in each]
    assert "x [b]y" in line
    assert "[b]ce 1.5[/b] long" in line
    assert "…" in line


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
