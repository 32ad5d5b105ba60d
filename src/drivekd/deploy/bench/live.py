"""A model on a stream of frames: how old its answers are, which frames it misses, what it keeps up.

Frame k is taken at k / rate. There is room for one waiting frame, and the newest wins: whenever the
model is free it takes the frame that was taken last, and those that it never saw are dropped. So no
second thread is needed: which frame waits follows from the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivekd.data.formats.readers import read
from drivekd.data.sample import Sample
from drivekd.deploy.bench.timing import spread
from drivekd.files.progress import tell, track

#: frames of a trial, and how close the highest rate is found [share of it]
TRIAL, CLOSE = 20, 0.05
#: of the first guess, as long as no frame is dropped
DOUBLINGS = 6
#: answers given at the rate that was asked for, and scenes of a world that is made for that
ANSWERS, SCENES = 40, 8


@dataclass(frozen=True, slots=True)
class Clock:
    """Time [s] and a way to let it pass; tests have one of their own."""

    now: Callable[[], float] = time.perf_counter
    wait: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of a stream.

    Attributes:
        rate: frames a second [Hz].
        taken: frames that the camera took until the last answer's frame.
        latencies: from the moment a frame was taken to its answer's last token [s].
    """

    rate: float
    taken: int
    latencies: tuple[float, ...]

    @property
    def dropped(self) -> int:
        return self.taken - len(self.latencies)


def stream(
    work: Callable[[int], object],
    rate: float,
    answers: int,
    clock: Clock,
    *,
    until_dropped: bool = False,
) -> Seen:
    """Answer frames as they come.

    Args:
        work: answers frame k.
        rate: frames a second [Hz].
        answers: how many to give.
        clock: tells the time.
        until_dropped: stop behind the first frame that was dropped.
    """
    start, latest, latencies = clock.now(), -1, []
    for _ in track(range(answers), label=f"{rate:.3g} Hz"):
        # The tiny part keeps a frame that is due now from being rounded into the future.
        newest = math.floor((clock.now() - start) * rate + 1e-9)
        if newest <= latest:
            newest = latest + 1
            clock.wait(max(0.0, start + newest / rate - clock.now()))
        latest = newest
        work(newest)
        latencies.append(clock.now() - (start + newest / rate))
        if until_dropped and latest >= len(latencies):
            break
    return Seen(rate, latest + 1, tuple(latencies))


def highest(work: Callable[[int], object], service: float, clock: Clock) -> float | None:
    """The highest rate at which a trial of `TRIAL` frames drops none [Hz], by bisection.

    Args:
        work: answers frame k.
        service: how long an answer takes, about [s].
        clock: tells the time.

    Returns:
        a rate that was kept up, at most `CLOSE` below one that was not; None if none was found.
    """
    low, high = 0.0, 2 / service
    for _ in range(DOUBLINGS):  # the answer that was timed may have been a slow one
        if stream(work, high, TRIAL, clock, until_dropped=True).dropped:
            break
        low, high = high, 2 * high
    while high - low > CLOSE * high:
        middle = (low + high) / 2
        seen = stream(work, middle, TRIAL, clock, until_dropped=True)
        tell(f"{middle:.3g} Hz: {'a frame dropped' if seen.dropped else 'kept up'}")
        if seen.dropped:
            high = middle
        else:
            low = middle
        if high * service < CLOSE:  # nothing this slow can be the model's fault
            break
    return low or None


def check_rate(rate: float) -> None:
    """Refuse a rate that is none.

    Raises:
        ValueError: it is not above 0, or not finite.
    """
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"stream: {rate} Hz; expected frames a second, more than 0")


def view(
    work: Callable[[int], object], rate: float, answers: int, clock: Clock | None = None
) -> dict[str, Any]:
    """A stream at one rate, and the highest rate that is kept up.

    Args:
        work: answers frame k.
        rate: frames a second [Hz].
        answers: to give at that rate.
        clock: by default the real one.
    """
    clock = clock or Clock()
    work(0)  # the first is cold
    started = clock.now()
    work(1)
    service = clock.now() - started
    seen = stream(work, rate, answers, clock)
    return {
        "rate_hz": rate,
        "answers": answers,
        "frames": seen.taken,
        "dropped": seen.dropped,
        "latency_s": spread(seen.latencies),
        "service_s": service,
        "highest_hz": highest(work, service, clock),
        "trial_frames": TRIAL,
    }


def frames(folder: Path, make: Callable[[Path, int], object]) -> list[Sample]:
    """A question about each scene of a world: the first one about planning, without its answer.

    Args:
        folder: of `drivekd world make`; made with a few scenes if it holds none.
        make: writes so many scenes into a folder.

    Raises:
        ValueError: its questions ask nothing about planning.
    """
    questions = folder / "questions.jsonl"
    if not questions.is_file():
        make(folder, SCENES)
    first: dict[str | None, Sample] = {}
    for sample in read(questions):
        if sample.capability == "planning":
            first.setdefault(sample.scene, sample)
    if not first:
        raise ValueError(f"{questions}: expected questions about planning, found none")
    return [Sample(s.id, tuple(s.prompt), s.images, source=s.source) for s in first.values()]


def describe(view: Mapping[str, Any]) -> str:
    """What `view` measured, for people."""
    latency = view["latency_s"]
    ages = ", ".join(f"{name} {latency[name]:.3f}" for name in ("p50", "p90", "p99", "max"))
    highest = "none found" if view["highest_hz"] is None else f"{view['highest_hz']:.3g} Hz"
    return (
        f"{view['rate_hz']:g} Hz: {view['answers']} answers to {view['frames']} frames, "
        f"{view['dropped']} dropped; from frame to answer [s] {ages}\n"
        f"highest rate without a drop in {view['trial_frames']} frames: {highest}"
    )
