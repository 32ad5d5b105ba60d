"""Streams on a clock of their own: which frames are answered, dropped, and how old answers are."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from drivekd.deploy.bench.live import CLOSE, Clock, check_rate, highest, stream, view


@dataclass
class Model:
    """Takes as long as planned for every frame, on a clock that only it and waiting move."""

    service: float
    time: float = 100.0
    seen: list[int] = field(default_factory=list)

    def work(self, number: int) -> None:
        self.seen.append(number)
        self.time += self.service

    def wait(self, seconds: float) -> None:
        self.time += seconds

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.time, self.wait)


def test_a_fast_model_answers_every_frame() -> None:
    model = Model(service=0.3)
    seen = stream(model.work, rate=2.0, answers=5, clock=model.clock)
    assert model.seen == [0, 1, 2, 3, 4]
    assert (seen.taken, seen.dropped) == (5, 0)
    assert seen.latencies == pytest.approx([0.3] * 5)


def test_the_newest_frame_wins_and_waits() -> None:
    """Frames every 1 s, 2.5 s of work: behind frame 0 the newest is 2, taken 0.5 s ago."""
    model = Model(service=2.5)
    seen = stream(model.work, rate=1.0, answers=4, clock=model.clock)
    assert model.seen == [0, 2, 5, 7]
    assert seen.latencies == pytest.approx([2.5, 3.0, 2.5, 3.0])
    assert (seen.taken, seen.dropped) == (8, 4)


def test_a_model_as_fast_as_the_camera_drops_nothing() -> None:
    model = Model(service=0.1)
    assert stream(model.work, rate=10.0, answers=50, clock=model.clock).dropped == 0


@pytest.mark.parametrize("service", [0.013, 0.2, 7.0])
def test_the_highest_rate_is_found(service: float) -> None:
    model = Model(service)
    found = highest(model.work, service, model.clock)
    assert found is not None
    assert (1 - CLOSE) / service <= found * 1.0001
    # A trial of n frames notices a rate that is too high by 1 / n of a frame or more.
    assert found <= 1.06 / service


def test_no_rate_is_kept_up_by_a_model_that_got_stuck() -> None:
    model = Model(service=50.0)
    assert highest(model.work, 0.1, model.clock) is None


def test_a_view_tells_all(capsys: pytest.CaptureFixture[str]) -> None:
    model = Model(service=0.75)
    found = view(model.work, rate=2.0, answers=3, clock=model.clock)
    assert model.seen[:5] == [0, 1, 0, 1, 3]
    assert (found["frames"], found["dropped"], found["service_s"]) == (4, 1, 0.75)
    assert found["latency_s"]["max"] == pytest.approx(1.0)
    assert found["highest_hz"] == pytest.approx(1 / 0.75, rel=0.06)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_no_rate(rate: float) -> None:
    with pytest.raises(ValueError, match="frames"):
        check_rate(rate)
