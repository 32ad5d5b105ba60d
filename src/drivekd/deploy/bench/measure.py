"""Repeats a request and sums up: medians with spread, rates, the most memory in use."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from drivekd.data.sample import Sample
from drivekd.deploy.bench import peak
from drivekd.deploy.bench.engine import Engine, Reply
from drivekd.deploy.bench.timing import Timeline, spread

#: goes through some numbers and shows how far it is
Shown = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True, slots=True)
class Row:
    """Requests of one kind.

    Attributes:
        cameras: pictures of a request.
        batch: requests side by side.
        new_tokens: of an answer; the largest where they differ.
        repeats: how often the batch was measured.
        ttft_s: from a request to its first token, spread over requests [s].
        tpot_s: (latency − TTFT) / (n − 1), likewise; None where answers have one token.
        latency_s: from a request to its last token, likewise.
        prefill_s: of the TTFT, what is behind reading and processing the pictures; None where that
            is not seen.
        tokens_per_s: batch / median TPOT.
        images_per_s: cameras · batch / median TTFT: how fast pictures are taken in.
        peak: of memory; None where the model runs elsewhere.
    """

    cameras: int
    batch: int
    new_tokens: int
    repeats: int
    ttft_s: dict[str, float]
    tpot_s: dict[str, float] | None
    latency_s: dict[str, float]
    prefill_s: dict[str, float] | None
    tokens_per_s: float | None
    images_per_s: float
    peak: peak.Peak | None


def measure(
    engine: Engine,
    sample: Sample,
    *,
    batch: int,
    new_tokens: int,
    warmup: int,
    repeats: int,
    budget: float | None,
    device: str | None,
    shown: Shown = iter,
) -> Row:
    """Ask an engine the same again and again.

    Args:
        engine: what answers.
        sample: the request; a batch is so many copies of it.
        batch: requests side by side.
        new_tokens: most tokens of an answer.
        warmup: batches before those that count.
        repeats: batches that count, at most; one counts in any case.
        budget: no other one is begun once all took so long [s]; None: all are.
        device: whose memory is looked at; None: none.
        shown: shows the progress.

    Raises:
        ValueError: the sample cannot be encoded.
        ChatError: a server failed.
        MemoryError: the device's is not enough.
    """
    samples = [sample] * batch
    if device is not None:
        peak.reset(device)
    replies: list[list[Reply]] = []
    started = time.monotonic()
    for _ in shown(range(warmup + repeats)):
        replies.append(engine(samples, new_tokens))
        spent = time.monotonic() - started
        if budget is not None and spent >= budget and len(replies) > warmup:
            break
    used = None if device is None else peak.read(device)
    counted = [[each.timeline for each in made] for made in replies[warmup:]]
    return summed(counted, len(sample.images), batch, used)


def summed(
    batches: Sequence[Sequence[Timeline]], cameras: int, batch: int, used: peak.Peak | None
) -> Row:
    """What some requests took together.

    Tokens a second of a batch are those behind its first one, over the time from there to its
    last: requests that a server lets wait count with their waiting.

    Args:
        batches: of requests; what came as one, once.
        cameras: pictures of a request.
        batch: requests side by side.
        used: memory.
    """
    times = [each for made in batches for each in made]
    per_token = [each.tpot for each in times if each.tpot is not None]
    prefills = [each.prefill for each in times if each.prefill is not None]
    first = spread([each.ttft for each in times])
    each_token = spread(per_token) if per_token else None
    return Row(
        cameras=cameras,
        batch=batch,
        new_tokens=max(each.tokens for each in times),
        repeats=len(batches),
        ttft_s=first,
        tpot_s=each_token,
        latency_s=spread([each.latency for each in times]),
        prefill_s=spread(prefills) if prefills else None,
        tokens_per_s=_tokens_per_s(batches, batch, each_token),
        images_per_s=cameras * batch / first["median"],
        peak=used,
    )


def _tokens_per_s(
    batches: Sequence[Sequence[Timeline]], batch: int, each_token: Mapping[str, float] | None
) -> float | None:
    """1 / TPOT of a single request; None where all tokens of an answer came at once."""
    if each_token is None:
        return None
    if batch == 1:
        return 1 / each_token["median"]
    rates = []
    for made in batches:
        span = max(e.started + e.latency for e in made) - min(e.arrivals[0] for e in made)
        rates.append(sum(e.tokens - 1 for e in made) * batch / len(made) / span)
    return median(rates)


def headline(row: Row) -> dict[str, Any]:
    """The figures that everybody asks for; a peak in MB = 10⁶ bytes, of the device's memory."""
    return {
        "ttft_s": row.ttft_s["median"],
        "tpot_s": row.tpot_s and row.tpot_s["median"],
        "tokens_per_s": row.tokens_per_s,
        "images_per_s": row.images_per_s,
        "peak_memory_mb": row.peak and row.peak.of_device,
        "latency_s": row.latency_s,
    }
