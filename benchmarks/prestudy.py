"""Time and peak memory of the pre-study's pass over one sample beside a plain forward pass.

    python benchmarks/prestudy.py --size M --rounds 15

Arms: `forward` the teacher's decoder under SDPA, nothing kept; `prestudy` the same pass with all
that the four panels need of it. Size and sample are those of benchmarks/step.py; visual features
are given, so that the vision tower, which both would run, makes no ratio smaller. Every arm is a
process of its own and both live at once; the rounds go through them in turn. Memory is weighed
before, in further processes, in which glibc gives freed tensors back at once. Writes
results/prestudy_cost.json, or prestudy_cost_quick.json where a setting is not that of
`make prestudy-cost`; the last line of output is one JSON object {arm: {"seconds", "peak_mb"}}: the
median over the rounds, and the peak of resident memory over a pass minus that before it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import step  # before torch: it sets how many threads that gets
import torch
from provenance import write_result

from drivekd.data.formats.readers import read
from drivekd.data.sample import Message, Sample
from drivekd.distill.teachers.teacher import freeze
from drivekd.models.batch import collate, forward, rows_of
from drivekd.models.encode import encode
from drivekd.models.features import FeatureCache
from drivekd.models.vlm import Vlm
from drivekd.study.forward import read_row

ARMS = ("forward", "prestudy")
ROUNDS = 15
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def make_pass(arm: str, size: step.Size, path: Path) -> Callable[[], Any]:
    """One pass of the arm over the one sample, visual features computed.

    A much shorter sample has run before: what libraries load when they are first used is no memory
    of the pass.
    """
    vlm, sample = step.model(size.teacher, 1), next(iter(read(path)))
    short = replace(sample, images={}, messages=(Message("user", "a"), Message("assistant", "bb")))
    prepared(arm, vlm, short)()
    return prepared(arm, vlm, sample)


def prepared(arm: str, vlm: Vlm, sample: Sample) -> Callable[[], Any]:
    """The arm's pass over one sample."""
    encoded = [encode(vlm, sample)]
    vlm.model.requires_grad_(False)
    features = FeatureCache()
    features.features(vlm, encoded[0].images)
    if arm == "prestudy":
        freeze(vlm)
        return lambda: read_row(vlm, encoded, features=features)

    @torch.no_grad()
    def plain() -> Any:
        return forward(vlm, collate(vlm, encoded, rows_of(encoded)), features)

    return plain


def weigh(pipe: Connection, arm: str, size: step.Size, sample: Path, threads: int) -> None:
    """A worker: tells resident memory before the pass and its peak above that [MB]."""
    torch.set_num_threads(threads)
    # glibc keeps what is freed, more or less of it as blocks happen to lie; tensors of their own
    # pages go back at once, so that the peak is what the pass holds.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
    run = make_pass(arm, size, sample)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak that the kernel keeps
    before = step.resident("VmRSS")
    run()
    pipe.send((before, step.resident("VmHWM") - before))


def serve(pipe: Connection, arm: str, size: step.Size, sample: Path, threads: int) -> None:
    """A worker: times one pass per request, wall and processor [s]."""
    torch.set_num_threads(threads)
    run = make_pass(arm, size, sample)
    run()
    while pipe.recv():
        start = time.perf_counter(), time.process_time()
        run()
        stop = time.perf_counter(), time.process_time()
        pipe.send([b - a for a, b in zip(start, stop, strict=True)])


def started(work: Callable[..., None], *given: Any) -> Connection:
    """A worker in a process of its own: forked, so that everything is imported once."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    context.Process(target=work, args=(theirs, *given), daemon=True).start()
    theirs.close()
    return ours


def measure(size: step.Size, rounds: int, threads: int) -> dict[str, dict[str, list[float]]]:
    """Resident memory before [MB], peak above it [MB], wall and processor time [s] per round."""
    measured: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        sample = step.write_sample(size, Path(folder))
        for arm in ARMS:
            before, peak = started(weigh, arm, size, sample, threads).recv()
            measured[arm] = {"before_mb": [before], "peak_mb": [peak], "wall": [], "processor": []}
        pipes = {arm: started(serve, arm, size, sample, threads) for arm in ARMS}
        for _ in range(rounds):
            for arm, pipe in pipes.items():
                pipe.send(True)
                wall, processor = pipe.recv()
                measured[arm]["wall"].append(wall)
                measured[arm]["processor"].append(processor)
        for pipe in pipes.values():
            pipe.send(False)
    return measured


def report(measured: Mapping[str, Mapping[str, list[float]]], clock: str) -> dict[str, Any]:
    """Per arm medians; the ratios to the forward pass, memory with and without the weights."""
    base, rows = measured["forward"], {}
    for arm, row in measured.items():
        total = row["before_mb"][0] + row["peak_mb"][0]
        rows[arm] = {
            "seconds": round(median(row[clock]), 4),
            "peak_mb": round(row["peak_mb"][0], 1),
            "seconds_over_forward": round(median(row[clock]) / median(base[clock]), 3),
            "peak_over_forward": round(row["peak_mb"][0] / base["peak_mb"][0], 3),
            "with_weights_over_forward": round(
                total / (base["before_mb"][0] + base["peak_mb"][0]), 3
            ),
            "rounds": [round(value, 4) for value in row[clock]],
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=tuple(step.SIZES), default="M")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    given = parser.parse_args()
    size, load = step.SIZES[given.size], os.getloadavg()
    rows = report(measure(size, given.rounds, given.threads), given.clock)
    for arm, row in rows.items():
        print(
            f"{arm:<9} {row['seconds']:.3f} s, {row['seconds_over_forward']:.2f}x; peak "
            f"{row['peak_mb']:.0f} MB, {row['peak_over_forward']:.2f}x, with the weights "
            f"{row['with_weights_over_forward']:.2f}x"
        )
    content = {
        "arms": rows,
        "size": {"name": given.size, **asdict(size)},
        "threads": given.threads,
        "clock": given.clock,
        "load_average": {"before": load, "after": os.getloadavg()},
    }
    complete = given.size == "M" and given.rounds >= ROUNDS and given.clock == "wall"
    print(write_result("prestudy_cost" if complete else "prestudy_cost_quick", content))
    print(
        json.dumps({arm: {k: row[k] for k in ("seconds", "peak_mb")} for arm, row in rows.items()})
    )


if __name__ == "__main__":
    main()
