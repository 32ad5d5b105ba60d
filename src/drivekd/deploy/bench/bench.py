"""Speed and memory of a model that answers, measured; the numbers as table and JSON.

from drivekd.deploy.bench.opening import Settings
from drivekd.deploy.bench.bench import bench, table
print(table(bench(Settings(model="world:student_base", cameras=(1, 6)))))
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from drivekd.data.sample import Sample
from drivekd.deploy.bench import cost, machine, workload
from drivekd.deploy.bench import live as live_view
from drivekd.deploy.bench.cost import Load
from drivekd.deploy.bench.measure import Row, headline, measure, summed
from drivekd.deploy.bench.opening import DTYPES, Opened, Settings, check, opened
from drivekd.deploy.bench.timing import Timeline
from drivekd.models.encode import encode
from drivekd.models.published import parameters
from drivekd.models.vlm import Vlm


def bench(settings: Settings) -> dict[str, Any]:
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
    check(settings)
    scores = None if settings.scores is None else read_scores(settings.scores)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = workload.request(folder, min(settings.cameras))
        with opened(settings) as subject:
            cold = subject.engine([first], settings.new_tokens)[0].timeline.ttft
            rows = [
                _row(settings, subject, workload.request(folder, cameras), batch)
                for cameras in sorted(settings.cameras)
                for batch in settings.batch
            ]
            main = next(row for row in rows if row.cameras == max(settings.cameras))
            content = _content(settings, subject, cold, rows, folder)
    return dict(_rounded({**headline(main), "cameras": main.cameras, **content, "scores": scores}))


def live(
    settings: Settings,
    rate: float,
    make: Callable[[Path, int], object],
    world: Path | None = None,
) -> dict[str, Any]:
    """Answer frames of the embedded world as they come, and find the highest rate kept up.

    Answers end where the model ends them, after `new_tokens` at the latest.

    Args:
        settings: model, engine, precision, device and length of answers; the rest does not count.
        rate: frames a second [Hz].
        make: writes so many scenes of the embedded world into a folder.
        world: folder of `drivekd world make`, made there if need be; None: made and removed.

    Returns:
        the headline of all answers but the cold one, and `stream`; see `live.view`.

    Raises:
        ValueError: as `bench`, or no rate.
        ChatError: the server failed.
    """
    check(settings)
    live_view.check_rate(rate)
    with tempfile.TemporaryDirectory() as name, opened(settings, to_the_end=True) as subject:
        shots = live_view.frames(world or Path(name), make)

        times: list[Timeline] = []
        on = None if subject.vlm is None else settings.device

        def work(number: int) -> None:
            replies = subject.engine([shots[number % len(shots)]], settings.new_tokens)
            times.append(replies[0].timeline)

        if on is not None:
            machine.reset_peak(on)
        seen = live_view.view(work, rate, live_view.ANSWERS)
        used = None if on is None else machine.read_peak(on)
        warm = times[1:]
        row = summed([[timeline] for timeline in warm], len(shots[0].images), 1, used)
    stream = {**seen, "scenes": len(shots)}
    return dict(_rounded({**headline(row), "stream": stream, **_measured_on(settings, subject)}))


def _row(settings: Settings, subject: Opened, sample: Sample, batch: int) -> Row:
    label = f"{len(sample.images)} cameras, batch {batch}"
    return measure(
        subject.engine,
        sample,
        batch=batch,
        new_tokens=settings.new_tokens,
        warmup=settings.warmup,
        repeats=settings.repeats,
        budget=settings.budget,
        device=None if subject.vlm is None else settings.device,
        label=label,
    )


def _content(
    settings: Settings, subject: Opened, cold: float, rows: list[Row], folder: Path
) -> dict[str, Any]:
    """Everything but the headline: rows with their floors, and what was measured on."""
    content = {
        "cold": {"load_s": subject.load_s, "ttft_s": cold, "cameras": min(settings.cameras)},
        "rows": [asdict(row) for row in rows],
        "warmup": settings.warmup,
        **_measured_on(settings, subject),
    }
    if subject.vlm is None:
        return content
    dtype = DTYPES[settings.dtype]
    rates = machine.rates(settings.device, dtype)
    for row, shown in zip(rows, content["rows"], strict=True):
        sample = workload.request(folder, row.cameras)
        shown |= _against_floor(subject.vlm, row, sample, dtype.itemsize, rates)
    return content | {"rates": asdict(rates)}


def _rounded(value: Any) -> Any:
    """Plain data with floats of six digits, for no clock is better."""
    if isinstance(value, Mapping):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _measured_on(settings: Settings, subject: Opened) -> dict[str, Any]:
    """Model, engine and, where it runs here, precision, kernel and hardware."""
    names = ("model", "config_only", "engine", "url", "new_tokens")
    content = {name: getattr(settings, name) for name in names} | {
        "random_weights": settings.config_only is not None,
        "versions": machine.versions(),
        "commit": machine.commit(),
        "date": datetime.now(tz=UTC).date().isoformat(),
        "load_average": os.getloadavg(),
    }
    if subject.vlm is None:
        return content
    return content | {
        "parameters": parameters(subject.vlm),
        "dtype": settings.dtype,
        "device": settings.device,
        "kernel": "scaled_dot_product_attention",
        "hardware": machine.hardware(settings.device),
    }


def _against_floor(
    vlm: Vlm, row: Row, sample: Sample, number: int, rates: machine.Rates
) -> dict[str, Any]:
    """Lengths of the prompt, what the row must cost at least, and how far above that it is."""
    encoded = encode(vlm, sample, add_answer=False)
    load = Load(encoded.grids, len(encoded.input_ids), row.new_tokens, row.batch)
    least = cost.floor(vlm, load, number, rates)
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
        return {name: float(part["accuracy"]) for name, part in parts.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected scores.json as drivekd evaluate writes it ({error!r:.100})"
        ) from error


def table(content: dict[str, Any]) -> str:
    """The rows for people."""
    head = "cameras batch   TTFT s      p50      p90      p99  TPOT ms  tokens/s  images/s      MB"
    lines = [head, *map(_line, content["rows"])]
    cold = content["cold"]
    loaded = "" if cold["load_s"] is None else f"loading {cold['load_s']:.3g} s, "
    lines.append(
        f"cold: {loaded}then first token, {cold['cameras']} cameras {cold['ttft_s']:.3g} s"
    )
    for row in content["rows"]:
        if "over_floor" in row:
            over = [f"{k} {v:.2f}" for k, v in row["over_floor"].items() if v is not None]
            kind = f"{row['cameras']} cameras, batch {row['batch']}"
            lines.append(f"times the machine's floor, {kind}: {', '.join(over)}")
    if content["scores"]:
        said = (f"{name} {value:.1f} %" for name, value in content["scores"].items())
        lines.append(f"quality: {', '.join(said)}")
    if content["random_weights"]:
        lines.append("weights are random: what it costs is real, what it says is not")
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    first, latency, per_token = row["ttft_s"], row["latency_s"], row["tpot_s"]
    used = row["peak"]
    memory = used and (used["allocator"] or used["process"])
    cells = [
        f"{row['cameras']:>7} {row['batch']:>5}",
        f"{first['median']:>8.3f}",
        *(f"{latency[name]:>8.3f}" for name in ("p50", "p90", "p99")),
        f"{per_token['median'] * 1000:>8.2f}" if per_token else f"{'–':>8}",
        f"{row['tokens_per_s']:>9.2f}" if per_token else f"{'–':>9}",
        f"{row['images_per_s']:>9.2f}",
        f"{memory:>7.0f}" if memory else f"{'–':>7}",
    ]
    return " ".join(cells)
