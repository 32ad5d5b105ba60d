"""Memory and speed of every InternVL3 and Qwen2.5-VL, measured where it fits, else computed.

    python benchmarks/efficiency.py --device cpu

Architectures come from their configuration, weights are random: they cost what trained ones cost.
Each size that fits is measured by `drivekd bench` in a process of its own, one and six cameras of
1600x900 pixels; what was measured at this commit with these settings is kept in out/efficiency, so
that an interrupted run goes on. Other sizes are computed from shapes (`deploy/bench/cost.py`):

    memory  = base + weights + cache + activations
    prefill = c_p * operations / matrix rate              (bound by products)
    decode  = c_d * bytes of weights and cache / bandwidth (bound by reading)

base, c_p and c_d are the medians over the measured sizes; how far the model is off is said for each
measured size with the constants of the others. Writes results/efficiency_DEVICE.json, or
efficiency_DEVICE_quick.json where a setting is not the default; the last line of output is one JSON
object {size: {"memory_gb", "tokens_per_s", "ttft_s", "measured"}} of six cameras.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from provenance import COMMIT, write_result

from drivekd.deploy.bench import cost, machine, random_weights, workload
from drivekd.deploy.bench.asked import DTYPES
from drivekd.deploy.bench.cost import Load
from drivekd.deploy.bench.opening import refuse_too_large
from drivekd.deploy.bench.rates import Rates
from drivekd.evaluate import published
from drivekd.files.writing import write_json
from drivekd.models.encode import encode
from drivekd.models.published import PUBLISHED, parameters
from drivekd.models.vlm import Vlm

FAMILIES = ("OpenGVLab/InternVL3-", "Qwen/Qwen2.5-VL-")
SIZES = tuple(name for name in PUBLISHED if name.startswith(FAMILIES))
#: columns of the paper's table: memory [GB], decoding [tokens/s], first token [s]
COLUMNS = ("memory_gb", "tokens_per_s", "first_token_s")
SMALL, LARGE = "InternVL3-1B-hf", "InternVL3-78B-hf"


def paper() -> dict[str, tuple[float | None, ...]]:
    """The paper's figures of these sizes, in the order of `COLUMNS`, by the names used here."""
    figures = {row.model: row.figures for row in published.rows(None) if row.table == "main"}
    return {
        name: tuple(figures[model][column] for column in COLUMNS)
        for name in map(short, SIZES)
        if (model := name.removesuffix("-hf").removesuffix("-Instruct")) in figures
    }


def short(name: str) -> str:
    return name.partition("/")[2]


@dataclass(frozen=True)
class Settings:
    """How each size is measured; on a CPU one request of six cameras takes minutes."""

    device: str = "cpu"  # where
    #: of the weights; a CPU without units for bfloat16 multiplies it several times slower
    dtype: str = "float32"
    threads: int = 2  # of PyTorch on a CPU
    #: pictures of a request; the largest number is the one that is told
    cameras: tuple[int, ...] = (1, 6)
    new_tokens: int = 16  # of an answer
    repeats: int = 3  # requests of each number of cameras that count, at most
    budget: float = 60.0  # none is repeated once they took so long [s]


@dataclass(frozen=True)
class Constants:
    """What shapes do not tell: see the head of this file; `pictures` is reading them [s]."""

    base: float
    prefill: float
    decode: float
    pictures: float


# --------------------------------------------------------------------------------- what is measured


def measured(name: str, settings: Settings, folder: Path) -> dict[str, Any]:
    """The last line of `drivekd bench` on one size, or what an earlier run kept of it."""
    kept = folder / f"{settings.device}_{settings.dtype}_{short(name)}.json"
    key = {"commit": COMMIT, "settings": json.loads(json.dumps(asdict(settings)))}
    if kept.is_file():
        content: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        if content["key"] == key and not COMMIT.endswith("-dirty"):
            print(f"{short(name)}: kept from an earlier run", flush=True)
            return content
    print(f"{short(name)}: measuring", flush=True)
    words = ["--config-only", name, "--device", settings.device, "--dtype", settings.dtype]
    words += [word for cameras in settings.cameras for word in ("--cameras", str(cameras))]
    words += ["--new-tokens", str(settings.new_tokens), "--warmup", "0"]
    words += ["--repeats", str(settings.repeats), "--budget", str(settings.budget)]
    command = [sys.executable, "-m", "drivekd", "bench", *words]
    threads = {"OMP_NUM_THREADS": str(settings.threads)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **threads})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {done.returncode}")
    content = {"key": key, **json.loads(done.stdout.splitlines()[-1])}
    write_json(kept, content)
    return content


def fits(vlm: Vlm, settings: Settings) -> bool:
    try:
        refuse_too_large(
            vlm,
            cameras=max(settings.cameras),
            batch=1,
            new_tokens=settings.new_tokens,
            device=settings.device,
            dtype=DTYPES[settings.dtype],
        )
    except ValueError as error:
        print(f"computed: {error}", flush=True)
        return False
    return True


# --------------------------------------------------------------------------------- what is computed


def load_of(vlm: Vlm, settings: Settings, folder: Path) -> Load:
    """The request of the most cameras, as this model reads it."""
    encoded = encode(vlm, workload.request(folder, max(settings.cameras)), add_answer=False)
    return Load(encoded.grids, len(encoded.input_ids), settings.new_tokens)


def constants(rows: Sequence[Mapping[str, Any]]) -> Constants:
    """Medians over measured rows."""
    return Constants(
        base=median(row["memory_gb"] - row["counted_gb"] for row in rows),
        prefill=median(row["over_floor"]["prefill"] for row in rows),
        decode=median(row["over_floor"]["decode"] for row in rows),
        pictures=median(row["ttft_s"] - row["prefill_s"] for row in rows),
    )


def computed(
    vlm: Vlm, load: Load, settings: Settings, found: Rates, given: Constants
) -> dict[str, Any]:
    """The row of a size, by the model at the head of this file."""
    number = DTYPES[settings.dtype].itemsize
    least = cost.floor(vlm, load, number, found)
    counted = cost.memory(vlm, load, number).total / 1e9
    prefill, tpot = given.prefill * least.prefill_s, given.decode * least.decode_s
    return {
        "parameters": parameters(vlm),
        "measured": False,
        "memory_gb": given.base + counted,
        "ttft_s": given.pictures + prefill,
        "tokens_per_s": 1 / tpot,
        "prefill_s": prefill,
        "tpot_s": tpot,
        "prompt_tokens": load.prompt,
        "counted_gb": counted,
        "floor": asdict(least),
        "over_floor": {"prefill": given.prefill, "decode": given.decode},
    }


def row_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a size that was measured: the row of the most cameras."""
    row = max(content["rows"], key=lambda row: row["cameras"])
    used = row["peak"]["allocator"] or row["peak"]["process"]
    return {
        "parameters": content["parameters"],
        "measured": True,
        "memory_gb": used / 1e3,
        "ttft_s": row["ttft_s"]["median"],
        "tokens_per_s": row["tokens_per_s"],
        "prefill_s": row["prefill_s"]["median"],
        "tpot_s": row["tpot_s"]["median"],
        "prompt_tokens": row["prompt_tokens"],
        "counted_gb": row["estimated_memory_mb"] / 1e3,
        "floor": row["floor"],
        "over_floor": row["over_floor"],
        "rates": content["rates"],
        "load_average": content["load_average"],
        "rows": content["rows"],
    }


def errors(
    rows: Mapping[str, Mapping[str, Any]], skeletons: Mapping[str, tuple[Vlm, Load]], s: Settings
) -> dict[str, dict[str, float]]:
    """Computed over measured, minus 1, with constants and rates of the other measured sizes."""
    off = {}
    for name, row in rows.items():
        others = [row for other, row in rows.items() if other != name]
        if others:
            made = computed(*skeletons[name], s, rates_of(others), constants(others))
            columns = ("memory_gb", "ttft_s", "tokens_per_s")
            off[name] = {key: round(made[key] / row[key] - 1, 4) for key in columns}
    return off


def rates_of(rows: Sequence[Mapping[str, Any]]) -> Rates:
    names = ("bytes_per_s", "flops_per_s")
    return Rates(*(median(row["rates"][name] for row in rows) for name in names))


# ------------------------------------------------------------------------------------- what is told


def ratios(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The paper's two: memory of the largest over the smallest, speed the other way round."""
    if SMALL not in rows or LARGE not in rows:
        return {}
    theirs = paper()
    return {
        "memory": {
            "ours": round(rows[LARGE]["memory_gb"] / rows[SMALL]["memory_gb"], 1),
            "paper": round(theirs[LARGE][0] / theirs[SMALL][0], 1),
        },
        "tokens_per_s": {
            "ours": round(rows[SMALL]["tokens_per_s"] / rows[LARGE]["tokens_per_s"], 1),
            "paper": round(theirs[SMALL][1] / theirs[LARGE][1], 1),
        },
        "ttft": {
            "ours": round(rows[LARGE]["ttft_s"] / rows[SMALL]["ttft_s"], 1),
            "paper": round(theirs[LARGE][2] / theirs[SMALL][2], 1),
        },
    }


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: ours, how far above the floor, the paper's GB, tokens/s and seconds."""
    lines = [
        "| Model | | GB | tokens/s | first token [s] | × floor: prefill, decode | paper |",
        "|---|---|---|---|---|---|---|",
    ]
    theirs = paper()
    for name, row in rows.items():
        figures = ", ".join(f"{value:g}" for value in theirs.get(name, ())) or "–"
        over = ", ".join(f"{row['over_floor'][part]:.2f}" for part in ("prefill", "decode"))
        lines.append(
            f"| {name} | {'measured' if row['measured'] else 'computed'} | {row['memory_gb']:.1f} "
            f"| {row['tokens_per_s']:.3g} | {row['ttft_s']:.3g} | {over} | {figures} |"
        )
    return "\n".join(lines)


def run(settings: Settings, sizes: Sequence[str], folder: Path) -> dict[str, Any]:
    """All rows, in the order of the sizes.

    Raises:
        RuntimeError: nothing fits, so nothing can be computed either, or a measurement failed.
    """
    rows_measured: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as pictures:
        shells = {name: random_weights.shell(name) for name in sizes}
        bare = {
            short(name): (vlm, load_of(vlm, settings, Path(pictures)))
            for name, vlm in shells.items()
        }
    for name, vlm in shells.items():
        if fits(vlm, settings):
            rows_measured[short(name)] = row_of(measured(name, settings, folder))
    if not rows_measured:
        raise RuntimeError("no size fits this device: nothing was measured to compute from")
    usual, reached = constants([*rows_measured.values()]), rates_of([*rows_measured.values()])
    rows = {
        name: rows_measured.get(name) or computed(*bare[name], settings, reached, usual)
        for name in bare
    }
    return {
        "rows": rows,
        "errors": errors(rows_measured, bare, settings),
        "constants": asdict(usual),
        "rates": asdict(reached),
        "ratios": ratios(rows),
        "paper": paper(),
        "settings": asdict(settings),
        "device": machine.hardware(settings.device),
    }


def _dtype(device: str) -> str:
    return "float32" if device == "cpu" else "bfloat16"


def main() -> int:
    usual = Settings()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default=usual.device)
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="float32 on a CPU, else bfloat16")
    parser.add_argument("--threads", type=int, default=usual.threads)
    parser.add_argument("--new-tokens", type=int, default=usual.new_tokens)
    parser.add_argument("--repeats", type=int, default=usual.repeats)
    parser.add_argument("--budget", type=float, default=usual.budget)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES, metavar="NAME")
    given = vars(parser.parse_args())
    sizes = tuple(given.pop("sizes"))
    given["dtype"] = given["dtype"] or _dtype(given["device"])
    settings = Settings(**given)
    content = run(settings, sizes, Path("out") / "efficiency")
    rows = content["rows"]
    name = f"efficiency_{settings.device.partition(':')[0]}"
    complete = settings == Settings(settings.device, _dtype(settings.device)) and sizes == SIZES
    print(write_result(name if complete else f"{name}_quick", content))
    print(table(rows))
    print(f"computed over measured, minus 1: {json.dumps(content['errors'])}")
    print(f"{LARGE} and {SMALL}: {json.dumps(content['ratios'])}")
    columns = ("memory_gb", "tokens_per_s", "ttft_s", "measured")
    print(json.dumps({name: {key: row[key] for key in columns} for name, row in rows.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
