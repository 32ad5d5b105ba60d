"""Measures how fast a model answers and how much memory that takes; the numbers as table and JSON.

from drivekd.deploy.bench.asked import Asked
from drivekd.deploy.bench.bench import bench, table
print(table(bench(Asked(model="world:student_base", cameras=(1, 6)))))
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from drivekd.data.sample import Sample
from drivekd.deploy.bench import cost, machine, peak, rates, workload
from drivekd.deploy.bench import live as live_view
from drivekd.deploy.bench.asked import DTYPES, Asked, Opened, check, opened
from drivekd.deploy.bench.cost import Load
from drivekd.deploy.bench.measure import Row, headline, measure, summed
from drivekd.deploy.bench.timing import Timeline
from drivekd.files.progress import track
from drivekd.models.encode import encode
from drivekd.models.published import parameters
from drivekd.models.vlm import Vlm


def bench(asked: Asked) -> dict[str, Any]:
    """Measure every number of cameras with every batch, after one request that is cold.

    The cold one has the fewest cameras.

    Returns:
        the headline of the first batch with the most cameras, `cold`, `rows`, `scores` and what was
        measured on; see `headline` and `Row`.

    Raises:
        ValueError: options that do not go together, a model that cannot be read or does not fit, or
            a score file that is none.
        ChatError: the server failed.
    """
    check(asked)
    scores = None if asked.scores is None else read_scores(asked.scores)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = workload.request(folder, min(asked.cameras))
        with opened(asked) as found:
            cold = found.engine([first], asked.new_tokens)[0].timeline.ttft
            rows = [
                _row(asked, found, workload.request(folder, cameras), batch)
                for cameras in sorted(asked.cameras)
                for batch in asked.batch
            ]
            main = next(row for row in rows if row.cameras == max(asked.cameras))
            content = _content(asked, found, cold, rows, folder)
    return _rounded({**headline(main), "cameras": main.cameras, **content, "scores": scores})


def live(
    asked: Asked,
    rate: float,
    make: Callable[[Path, int], object],
    world: Path | None = None,
) -> dict[str, Any]:
    """Answer frames of the embedded world as they come, and find the highest rate kept up.

    Answers end where the model ends them, after `new_tokens` at the latest.

    Args:
        asked: model, engine, precision, device and length of answers; the rest does not count.
        rate: frames a second [Hz].
        make: writes so many scenes of the embedded world into a folder.
        world: folder of `drivekd world make`, made there if need be; None: made and removed.

    Returns:
        the headline of all answers but the cold one, and `stream`; see `live.view`.

    Raises:
        ValueError: as `bench`, or no rate.
        ChatError: the server failed.
    """
    check(asked)
    live_view.check_rate(rate)
    with tempfile.TemporaryDirectory() as name, opened(asked, to_the_end=True) as found:
        shots = live_view.frames(world or Path(name), make)

        times: list[Timeline] = []
        on = None if found.vlm is None else asked.device

        def work(number: int) -> None:
            replies = found.engine([shots[number % len(shots)]], asked.new_tokens)
            times.append(replies[0].timeline)

        if on is not None:
            peak.reset(on)
        seen = live_view.view(work, rate, live_view.ANSWERS)
        used = None if on is None else peak.read(on)
        warm = times[1:]
        row = summed([[each] for each in warm], len(shots[0].images), 1, used)
    stream = {**seen, "scenes": len(shots)}
    return _rounded({**headline(row), "stream": stream, **_measured_on(asked, found)})


def _row(asked: Asked, found: Opened, sample: Sample, batch: int) -> Row:
    label = f"{len(sample.images)} cameras, batch {batch}"
    shown: Callable[[Iterable[int]], Iterable[int]] = partial(track, label=label)
    return measure(
        found.engine,
        sample,
        batch=batch,
        new_tokens=asked.new_tokens,
        warmup=asked.warmup,
        repeats=asked.repeats,
        budget=asked.budget,
        device=None if found.vlm is None else asked.device,
        shown=shown,
    )


# ------------------------------------------------------------------------------- what is told


def _content(
    asked: Asked, found: Opened, cold: float, rows: list[Row], folder: Path
) -> dict[str, Any]:
    """Everything but the headline: rows with their floors, and what was measured on."""
    content = {
        "cold": {"load_s": found.load_s, "ttft_s": cold, "cameras": min(asked.cameras)},
        "rows": [asdict(row) for row in rows],
        "warmup": asked.warmup,
        **_measured_on(asked, found),
    }
    if found.vlm is None:
        return content
    found_rates = rates.rates(asked.device, DTYPES[asked.dtype])
    for row, each in zip(rows, content["rows"], strict=True):
        sample = workload.request(folder, row.cameras)
        each |= _against_floor(found.vlm, row, sample, DTYPES[asked.dtype].itemsize, found_rates)
    return content | {"rates": asdict(found_rates)}


def _rounded(content: Mapping[str, Any]) -> dict[str, Any]:
    """The same with floats of six digits: a clock tells no more."""

    def each(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: each(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [each(inner) for inner in value]
        return float(f"{value:.6g}") if isinstance(value, float) else value

    return {name: each(value) for name, value in content.items()}


def _measured_on(asked: Asked, found: Opened) -> dict[str, Any]:
    """Model, engine and, where it runs here, precision, kernel and hardware."""
    names = ("model", "config_only", "engine", "url", "new_tokens")
    content = {name: getattr(asked, name) for name in names} | {
        "random_weights": asked.config_only is not None,
        "versions": machine.versions(),
        "commit": machine.commit(),
        "date": datetime.now(tz=UTC).date().isoformat(),
        "load_average": os.getloadavg(),
    }
    if found.vlm is None:
        return content
    return content | {
        "parameters": parameters(found.vlm),
        "dtype": asked.dtype,
        "device": asked.device,
        "kernel": "scaled_dot_product_attention",
        "hardware": machine.hardware(asked.device),
    }


def _against_floor(
    vlm: Vlm, row: Row, sample: Sample, number: int, found: rates.Rates
) -> dict[str, Any]:
    """Lengths of the prompt, what the row must cost at least, and how far above that it is."""
    encoded = encode(vlm, sample, add_answer=False)
    load = Load(encoded.grids, len(encoded.input_ids), row.new_tokens, row.batch)
    least = cost.floor(vlm, load, number, found)
    over = {
        "prefill": row.prefill_s and row.prefill_s["median"] / least.prefill_s,
        "decode": row.tpot_s and row.tpot_s["median"] / least.decode_s,
    }
    return {
        "prompt_tokens": load.prompt,
        "visual_tokens": load.visual,
        "estimated_memory_mb": cost.memory(vlm, load, number).total / 1e6,
        "floor": asdict(least),
        "over_floor": over,
    }


def read_scores(path: Path) -> dict[str, float]:
    """Percent right by capability, and their average, from `scores.json` of `drivekd evaluate`.

    Raises:
        ValueError: the file is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        parts = dict(content["capabilities"])
        if content.get("average") is not None:
            parts["average"] = content["average"]
        return {name: float(each["accuracy"]) for name, each in parts.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected scores.json as drivekd evaluate writes it ({error!r:.100})"
        ) from error


def table(content: dict[str, Any]) -> str:
    """The rows for people."""
    head = "cameras batch   TTFT s      p50      p90      p99  TPOT ms  tokens/s  images/s      MB"
    lines = [head, *(_line(each) for each in content["rows"])]
    cold = content["cold"]
    loaded = "" if cold["load_s"] is None else f"loading {cold['load_s']:.3g} s, "
    lines.append(
        f"cold: {loaded}then first token, {cold['cameras']} cameras {cold['ttft_s']:.3g} s"
    )
    for each in content["rows"]:
        if "over_floor" in each:
            over = [f"{k} {v:.2f}" for k, v in each["over_floor"].items() if v is not None]
            kind = f"{each['cameras']} cameras, batch {each['batch']}"
            lines.append(f"times the machine's floor, {kind}: {', '.join(over)}")
    if content["scores"]:
        said = (f"{name} {value:.1f} %" for name, value in content["scores"].items())
        lines.append(f"quality: {', '.join(said)}")
    if content["random_weights"]:
        lines.append("weights are random: what it costs is real, what it says is not")
    return "\n".join(lines)


def _line(each: dict[str, Any]) -> str:
    first, whole, per_token = each["ttft_s"], each["latency_s"], each["tpot_s"]
    used = each["peak"]
    memory = used and (used["allocator"] or used["process"])
    cells = [
        f"{each['cameras']:>7} {each['batch']:>5}",
        f"{first['median']:>8.3f}",
        *(f"{whole[name]:>8.3f}" for name in ("p50", "p90", "p99")),
        f"{per_token['median'] * 1000:>8.2f}" if per_token else f"{'–':>8}",
        f"{each['tokens_per_s']:>9.2f}" if per_token else f"{'–':>9}",
        f"{each['images_per_s']:>9.2f}",
        f"{memory:>7.0f}" if memory else f"{'–':>7}",
    ]
    return " ".join(cells)
