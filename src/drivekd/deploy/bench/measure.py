"""Repeated requests summed up: medians with spread, rates, the most memory in use."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from drivekd.data.sample import Sample
from drivekd.deploy.bench.engine import Engine, Reply
from drivekd.deploy.bench.machine import Peak, read_peak, reset_peak
from drivekd.deploy.bench.timing import Timeline, spread
from drivekd.files.progress import track


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
    peak: Peak | None


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
    label: str = "measuring",
) -> Row:
    """Ask an engine the same again and again; see `opening.Settings` for what the numbers mean.

    Args:
        engine: what answers.
        sample: the request; a batch is so many copies of it.
        batch: requests side by side.
        new_tokens: most tokens of an answer.
        warmup: batches before those that count.
        repeats: batches that count, at most; one counts in any case.
        budget: no further batch is begun once all took so long [s]; None: all are.
        device: whose memory is measured; None: none.
        label: of the progress.

    Raises:
        ValueError: the sample cannot be encoded.
        ChatError: a server failed.
        MemoryError: the device's is not enough.
    """
    samples = [sample] * batch
    if device is not None:
        reset_peak(device)
    replies: list[list[Reply]] = []
    started = time.monotonic()
    for _ in track(range(warmup + repeats), label=label):
        replies.append(engine(samples, new_tokens))
        spent = time.monotonic() - started
        if budget is not None and spent >= budget and len(replies) > warmup:
            break
    used = None if device is None else read_peak(device)
    counted = [[reply.timeline for reply in batch] for batch in replies[warmup:]]
    return summed(counted, len(sample.images), batch, used)


def summed(
    batches: Sequence[Sequence[Timeline]], cameras: int, batch: int, used: Peak | None
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
    times = [timeline for made in batches for timeline in made]
    per_token = [t.tpot for t in times if t.tpot is not None]
    prefills = [t.prefill for t in times if t.prefill is not None]
    first = spread([t.ttft for t in times])
    tpot = spread(per_token) if per_token else None
    return Row(
        cameras=cameras,
        batch=batch,
        new_tokens=max(t.tokens for t in times),
        repeats=len(batches),
        ttft_s=first,
        tpot_s=tpot,
        latency_s=spread([t.latency for t in times]),
        prefill_s=spread(prefills) if prefills else None,
        tokens_per_s=_tokens_per_s(batches, batch, tpot),
        images_per_s=cameras * batch / first["median"],
        peak=used,
    )


def _tokens_per_s(
    batches: Sequence[Sequence[Timeline]], batch: int, tpot: Mapping[str, float] | None
) -> float | None:
    """1 / TPOT of a single request; None where all tokens of an answer came at once."""
    if tpot is None:
        return None
    if batch == 1:
        return 1 / tpot["median"]
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
