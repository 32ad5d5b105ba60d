"""Time and peak memory of one optimizer step: plain SFT, the release's way, ours.

    python benchmarks/step.py --size M --rounds 5

Arms: `sft` cross-entropy alone; `naive` the public release's way (benchmarks/naive.py);
`exact_live` three distinct live teachers; `exact_shared` one teacher in all three roles;
`exact_cached` the same with kept targets (train.cache_targets_gb); `refresh8` that with a
projection every eighth step only.

All arms train the same parameters (the language model without its input embeddings) with AdamW on
the same single sample, whose visual features are given. Every arm is a process of its own and all
of them live at once; the rounds go through the arms in turn, so that whatever else the machine
does falls on all. Writes results/step_cpu.json, or step_cpu_quick.json where a setting is not that
of `make benchmark`; the last line of output is one JSON object
{arm: {"seconds", "peak_mb"}}: the median over the rounds, and the peak of resident memory over the
first steps minus that before the first.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import string
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

for _name, _value in (("OMP_NUM_THREADS", "1"), ("HF_HUB_OFFLINE", "1")):
    os.environ.setdefault(_name, _value)

import naive  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from provenance import write_result  # noqa: E402

from drivekd.data.formats.readers import read  # noqa: E402
from drivekd.distill import plan as plans  # noqa: E402
from drivekd.distill.objective import batch_of  # noqa: E402
from drivekd.distill.order import windows  # noqa: E402
from drivekd.distill.run import prepare  # noqa: E402
from drivekd.distill.step import step  # noqa: E402
from drivekd.distill.teachers import teacher  # noqa: E402
from drivekd.models.encode import encode  # noqa: E402
from drivekd.models.tiny import tiny_vlm  # noqa: E402
from drivekd.models.vlm import Vlm  # noqa: E402
from drivekd.recipe import Recipe, parse  # noqa: E402

ARMS = ("sft", "naive", "exact_live", "exact_shared", "exact_cached", "refresh8")
ROUNDS = 5
CACHED = ("exact_cached", "refresh8")
CAPABILITIES = {
    "perception": ("first", "text_to_vision"),
    "reasoning": ("1..penultimate", "full"),
    "planning": ("penultimate", "text_to_vision"),
}
REFRESH = 8
#: λ: with them the gradients of random models are about as long as the cross-entropy's
WEIGHTS = {"perception": 1e5, "reasoning": 1e6, "planning": 1e5}
TEXT = string.ascii_lowercase


@dataclass(frozen=True)
class Decoder:
    """A Qwen2 decoder with 64 or fewer dimensions per head."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int

    @property
    def linear(self) -> int:
        """Weights of one layer's matrices."""
        narrow = self.hidden * self.kv_heads // self.heads
        return self.hidden * (2 * self.hidden + 2 * narrow + 3 * self.intermediate)


@dataclass(frozen=True)
class Size:
    """Models and the one sample; tokens are bytes, so letters of text are tokens.

    Attributes:
        student: its decoder.
        teacher: the decoder of every teacher.
        pictures: each of 64 visual tokens.
        tokens: length of the sequence.
        answer: supervised tokens, the end of the turn included.
    """

    student: Decoder
    teacher: Decoder
    pictures: int
    tokens: int
    answer: int


SIZES = {
    "XS": Size(Decoder(3, 32, 64, 4, 2), Decoder(4, 48, 96, 4, 2), 1, 110, 6),
    "S": Size(Decoder(8, 256, 800, 4, 2), Decoder(12, 512, 1440, 8, 2), 6, 512, 32),
    "M": Size(Decoder(12, 512, 1440, 8, 2), Decoder(16, 768, 2048, 12, 4), 13, 1040, 64),
}


# --------------------------------------------------------------------------------------- the arms


def model(decoder: Decoder, seed: int) -> Vlm:
    """A random InternVL with a small vision tower, which is run before anything is measured."""
    return tiny_vlm(
        seed=seed,
        text_layers=decoder.layers,
        text_hidden=decoder.hidden,
        text_intermediate=decoder.intermediate,
        heads=decoder.heads,
        kv_heads=decoder.kv_heads,
        vision_layers=1,
        image_size=192,
    )


def write_sample(size: Size, folder: Path) -> Path:
    """One question with its pictures, filled up with letters to the exact length."""
    names = [f"picture{i}.png" for i in range(size.pictures)]
    for i, name in enumerate(names):
        Image.new("RGB", (16, 16), (19 * i % 256, 7 * i % 256, 90)).save(folder / name)
    path, vlm = folder / "train.jsonl", model(SIZES["XS"].student, 0)
    answer, spare = (TEXT * 9)[: size.answer - 1], 0
    for _ in range(2):  # the second time with what the first one lacked
        asked = "<image>\n" * size.pictures + (TEXT * 99)[:spare]
        turns = [("user", asked), ("assistant", answer)]
        messages = [{"role": role, "content": content} for role, content in turns]
        row = {"id": "only", "messages": messages, "images": names, "question_type": "reasoning"}
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
        spare = size.tokens - len(encode(vlm, next(iter(read(path)))).input_ids)
    assert spare == 0, f"the sample lacks {spare} tokens"
    return path


def recipe_of(arm: str, sample: Path) -> Recipe:
    """The paper's assignment of layers and signals; no capabilities for `sft`."""
    shared = arm == "exact_shared" or arm in CACHED
    capabilities = {
        name: {
            "teacher": "bench:shared" if shared else f"bench:{name}",
            "student_layers": layers,
            "signal": signal,
        }
        for name, (layers, signal) in CAPABILITIES.items()
    }
    taught = arm != "sft"
    return parse(
        {
            "name": arm,
            "student": "bench:student",
            "output_dir": "unused",
            "data": {"train": str(sample), "pack": False},
            "capabilities": capabilities if taught else {},
            "weighting": {"mode": "fixed", "fixed": WEIGHTS if taught else {}},
            "combine": {"refresh": REFRESH} if arm == "refresh8" else {},
            "train": {
                "per_device_train_batch_size": 1,
                "lr_scheduler_type": "constant",
                "max_steps": 1000,
                "cache_targets_gb": 4 if arm in CACHED else 0,
            },
        }
    )


def make_plan(arm: str, size: Size, sample: Path) -> plans.Plan:
    """Models of the arm and all that is decided, visual features included."""
    recipe = recipe_of(arm, sample)
    names = dict.fromkeys(each.teacher for each in recipe.capabilities.values())
    teachers = {name: model(size.teacher, 1 + i) for i, name in enumerate(names)}
    plan = plans.build(recipe, model(size.student, 0), teachers)
    plans.fill_caches(plan)
    batch = batch_of(plan, [(0,)])
    if arm in CACHED:  # what the first visit costs is not the step's
        plan.models.targets(batch, teacher.text_rows(batch))
    return plan


def make_steps(arm: str, size: Size, sample: Path) -> Iterable[Callable[[], None]]:
    """The arm's steps, one after the other."""
    plan = make_plan(arm, size, sample)
    if arm == "naive":
        run: Any = naive.prepare(plan)
        take: Callable[..., None] = naive.step
    else:
        run, take = prepare(plan), step
    for window in windows(plan.schedule.order, 0, plan.schedule.total_steps):
        yield lambda window=window: take(run, window)  # type: ignore[misc]


# ----------------------------------------------------------------------------------- measurement


def resident(field: str) -> float:
    """`VmRSS` or `VmHWM`, the peak of it, of this process [MB]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024 / 1e6


def serve(pipe: Connection, arm: str, size: Size, sample: Path, threads: int) -> None:
    """A worker: tells its peak over the first steps, then times one round per request."""
    torch.set_num_threads(threads)
    steps = iter(make_steps(arm, size, sample))
    count = REFRESH if arm == "refresh8" else 1
    # "5" resets the peak that the kernel keeps: what building the models took does not count.
    # Two steps: during the second one the optimizer's state, made by the first, is there too.
    ready = next(steps)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    ready()
    for _ in range(count):
        next(steps)()
    pipe.send(resident("VmHWM") - before)
    while pipe.recv():
        start = time.perf_counter(), time.process_time()
        for _ in range(count):
            next(steps)()
        stop = time.perf_counter(), time.process_time()
        pipe.send([(b - a) / count for a, b in zip(start, stop, strict=True)])


def measure(
    size: Size, arms: Iterable[str], rounds: int, threads: int
) -> dict[str, dict[str, list[float]]]:
    """Peak [MB], wall and processor time [s] of every round, per arm."""
    # Forked, not spawned: everything is imported once. This process computes nothing itself.
    context = multiprocessing.get_context("fork")
    found: dict[str, dict[str, list[float]]] = {}
    pipes: dict[str, Connection] = {}
    with tempfile.TemporaryDirectory() as folder:
        sample = write_sample(size, Path(folder))
        for arm in arms:
            pipes[arm], theirs = context.Pipe()
            args = (theirs, arm, size, sample, threads)
            context.Process(target=serve, args=args, daemon=True).start()
            theirs.close()
            found[arm] = {"peak_mb": [pipes[arm].recv()], "wall": [], "processor": []}
            print(f"{arm}: peak {found[arm]['peak_mb'][0]:.0f} MB", flush=True)
        for number in range(rounds):
            for arm, pipe in pipes.items():
                pipe.send(True)
                wall, processor = pipe.recv()
                found[arm]["wall"].append(wall)
                found[arm]["processor"].append(processor)
            told = (f"{arm} {each['processor'][-1]:.3g}" for arm, each in found.items())
            print(f"round {number + 1}, seconds of processor time: {', '.join(told)}", flush=True)
    for pipe in pipes.values():
        pipe.send(False)
    return found


# ----------------------------------------------------------------------------------------- floors


def floors(size: Size) -> dict[str, float]:
    """Counted cost of each arm's step over that of `sft`, from matrix products alone.

    Unit: the student's forward pass. A backward pass is 2 for the share of layers that the loss
    reaches; a map costs one product more forward and three more backward (the heads again,
    towards q, towards k). Of causal attention half is counted, the release's eager attention
    whole. Up to the penultimate layer's map means all layers below it, its q and its k.
    Text→vision maps, the first layer's loss, elementwise work, projection and optimizer count
    nothing. All products count as equally fast: a teacher's, larger than the student's, are
    faster, so live teachers can come out below this.
    """
    n, student, teacher_ = size.tokens, size.student, size.teacher

    def layer(decoder: Decoder, *, causal: bool = True) -> float:
        return 2.0 * n * decoder.linear + 4.0 * n * n * decoder.hidden * (0.5 if causal else 1.0)

    def reached(decoder: Decoder) -> float:
        q_and_k = decoder.hidden**2 * (1 + decoder.kv_heads / decoder.heads)
        return (decoder.layers - 2) * layer(decoder) + 2.0 * n * q_and_k

    def maps(decoder: Decoder) -> float:
        return (decoder.layers - 1) * 1.0 * n * n * decoder.hidden

    forward = student.layers * layer(student)
    deep, once = 2 * reached(student) / forward, maps(student) / forward
    live = reached(teacher_) / forward
    exact = 1 + once + 2 + (deep + 3 * once) + deep
    between = 1 + once + 2 + 3 * once
    eager = layer(student, causal=False) / layer(student)
    whole = teacher_.layers * layer(teacher_, causal=False) / forward
    units = {
        "sft": 3.0,
        "naive": eager * (3 + 2 * deep) + 3 * whole,
        "exact_live": exact + 2 * live + maps(teacher_) / forward,
        "exact_shared": exact + live + maps(teacher_) / forward,
        "exact_cached": exact,
        "refresh8": (exact + (REFRESH - 1) * between) / REFRESH,
    }
    return {arm: value / units["sft"] for arm, value in units.items()}


def report(
    size: Size, measured: Mapping[str, Mapping[str, list[float]]], clock: str
) -> dict[str, Any]:
    """Per arm: medians, ratios to `sft`, the floor and how far above it."""
    base, least, rows = measured["sft"], floors(size), {}
    for arm in ARMS:
        if arm not in measured:
            rows[arm] = None
            continue
        each = measured[arm]
        ratio = median(each[clock]) / median(base[clock])
        rows[arm] = {
            "seconds": round(median(each[clock]), 4),
            "peak_mb": round(each["peak_mb"][0], 1),
            "seconds_over_sft": round(ratio, 2),
            "peak_over_sft": round(each["peak_mb"][0] / base["peak_mb"][0], 2),
            "floor_over_sft": round(least[arm], 2),
            "over_floor": round(ratio / least[arm], 2),
            "rounds": [round(value, 4) for value in each[clock]],
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=tuple(SIZES), default="S")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="always with sft")
    parser.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="processor: on a machine that does other things too, with one thread",
    )
    given = parser.parse_args()
    size = SIZES[given.size]
    print(json.dumps(asdict(size)))
    least = ", ".join(f"{arm} {value:.2f}" for arm, value in floors(size).items())
    print(f"floor over sft: {least}", flush=True)
    load = os.getloadavg()
    arms = [arm for arm in ARMS if arm in {"sft", *given.arms}]
    measured = measure(size, arms, given.rounds, given.threads)
    rows = report(size, measured, given.clock)
    for arm, row in rows.items():
        if row:
            print(
                f"{arm:<13} {row['seconds']:8.3f} s {row['seconds_over_sft']:5.2f}x "
                f"(floor {row['floor_over_sft']:.2f}, {row['over_floor']:.2f} of it) "
                f"{row['peak_mb']:8.0f} MB {row['peak_over_sft']:5.2f}x"
            )
    content = {
        "arms": rows,
        "size": {"name": given.size, **asdict(size)},
        "samples_per_step": 1,
        "threads": given.threads,
        "clock": given.clock,
        "load_average": {"before": load, "after": os.getloadavg()},
    }
    whole = given.size == "M" and given.rounds >= ROUNDS and tuple(arms) == ARMS
    name = "step_cpu" if whole and given.clock == "wall" else "step_cpu_quick"
    print(write_result(name, content))
    line = {
        arm: row and {key: row[key] for key in ("seconds", "peak_mb")} for arm, row in rows.items()
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
