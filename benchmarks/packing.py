"""Questions per second with all questions of a frame in one row, against one question per row.

    DRIVEKD_REAL_DATA=FOLDER python benchmarks/packing.py

DriveLM's 790 training questions on nuScenes pictures, each picture 448×448 pixels and 256 tokens as
for InternVL3; models random and small, because what is measured is how the layout counts. First
every question's cross-entropy is computed in packed rows and alone, and compared. Then one frame
with all six cameras is trained on, as one optimizer step over its questions: alone (one row each),
in one row, and in rows cut as `data.max_row_tokens` would cut them. The rounds go through the
layouts in turn. `sft` is cross-entropy alone; `distilled` has one live teacher in the paper's three
roles, whose rows are laid out alike.

A packed row has a dense mask of n × n: if cutting it in two is faster, that mask and the attention
under it have become what limits, and the result says so. Writes results/packing.json, or
packing_quick.json where a setting is not the default; the last line of output is one JSON object
{arm: {layout: questions per second}}. Exit status: 0, 1 if a loss differs, 2 without data.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

for _name, _value in (("OMP_NUM_THREADS", "1"), ("HF_HUB_OFFLINE", "1")):
    os.environ.setdefault(_name, _value)

import torch  # noqa: E402
from provenance import write_result  # noqa: E402
from step import CAPABILITIES, SIZES, Decoder  # noqa: E402

from drivekd.data.formats.readers import read  # noqa: E402
from drivekd.data.sample import CAMERAS, Sample  # noqa: E402
from drivekd.distill import corpus  # noqa: E402
from drivekd.distill import plan as plans  # noqa: E402
from drivekd.distill.objective import batch_of, losses  # noqa: E402
from drivekd.distill.order import windows  # noqa: E402
from drivekd.distill.run import Run, prepare  # noqa: E402
from drivekd.distill.step import step  # noqa: E402
from drivekd.files.progress import track  # noqa: E402
from drivekd.models.batch import (  # noqa: E402
    Encoded,
    Row,
    answer_loss,
    collate,
    forward,
    rows_of,
)
from drivekd.models.features import FeatureCache  # noqa: E402
from drivekd.models.tiny import build_tokenizer, tiny_vlm  # noqa: E402
from drivekd.models.vlm import Vlm  # noqa: E402
from drivekd.recipe import Recipe, parse  # noqa: E402

FILE = Path("drivelm") / "train_sample.json"
ARMS = ("sft", "distilled")
#: Into how many rows the questions of the frame are cut; None: one row for each question.
LAYOUTS: Mapping[str, int | None] = {"alone": None, "one row": 1, "two rows": 2, "four rows": 4}
#: Relative error of a packed cross-entropy, and how much faster packing is to be.
ERROR, GOAL = 1e-5, 5.0


@dataclass(frozen=True)
class Settings:
    """Models and how often each layout is measured."""

    student: Decoder = SIZES["S"].student  # its decoder
    teacher: Decoder = SIZES["S"].teacher  # the decoder of the teacher in all three roles
    image_size: int = 448  # side of a picture [px]; 14 px and two patches are a token
    vocabulary: int = 4096  # tokens, learned from the questions
    rounds: int = 5  # per layout, after one that does not count
    arms: tuple[str, ...] = ARMS  # what is trained


FULL = Settings()


# ------------------------------------------------------------------------------------ the rows


def model(samples: Sequence[Sample], settings: Settings, decoder: Decoder, seed: int) -> Vlm:
    """A random InternVL whose tokenizer knows the words of the questions.

    Its weights are large enough for what it attends to, to show in its losses.
    """
    texts = [message.content for sample in samples for message in sample.messages]
    return tiny_vlm(
        seed=seed,
        tokenizer=build_tokenizer(texts, settings.vocabulary),
        text_layers=decoder.layers,
        text_hidden=decoder.hidden,
        text_intermediate=decoder.intermediate,
        heads=decoder.heads,
        kv_heads=decoder.kv_heads,
        initializer_range=decoder.hidden**-0.5,
        vision_layers=1,
        vision_hidden=32,
        image_size=settings.image_size,
        patch_size=14,
    )


def six(encoded: Sequence[Encoded], row: Row) -> bool:
    return len(encoded[row[0]].images) == len(CAMERAS)


def counted(encoded: Sequence[Encoded], rows: Sequence[Row]) -> dict[str, Any]:
    """How the questions fall into rows, and how long those of all six cameras are."""
    frames = [row for row in rows if six(encoded, row)]
    lengths = [[len(encoded[index].input_ids) for index in row] for row in frames]
    prefixes = [encoded[row[0]].prefix for row in frames]
    packed = [p + sum(n - p for n in own) for p, own in zip(prefixes, lengths, strict=True)]
    return {
        "questions": len(encoded),
        "prefix_groups": len(rows),
        "six_cameras": {
            "frames": len(frames),
            "questions": sorted(len(row) for row in frames),
            "visual_tokens": sorted({int(encoded[row[0]].is_image.sum()) for row in frames}),
            "tokens_alone": round(sum(map(sum, lengths)) / max(1, sum(map(len, frames))), 1),
            "tokens_of_a_row": sorted(packed),
        },
    }


def compared(vlm: Vlm, encoded: Sequence[Encoded], rows: Sequence[Row]) -> float:
    """The largest relative difference of a cross-entropy, packed and alone."""
    features, worst = FeatureCache(), 0.0
    with torch.no_grad():
        for row in track(rows, label="comparing packed with single questions"):
            own = [encoded[index] for index in row]
            batches = [collate(vlm, own, rows_of(own)), *(collate(vlm, [e]) for e in own)]
            found = [answer_loss(vlm, forward(vlm, b, features), b) for b in batches]
            packed, alone = found[0], torch.cat(found[1:])
            worst = max(worst, float(((packed - alone).abs() / alone).max()))
    return worst


# ----------------------------------------------------------------------------------- the steps


def recipe_of(arm: str, file: Path, excluded: Sequence[str]) -> Recipe:
    """All frames but these; the paper's assignment of layers and signals for `distilled`."""
    roles = {
        name: {"teacher": "bench:teacher", "student_layers": layers, "signal": signal}
        for name, (layers, signal) in CAPABILITIES.items()
    }
    return parse(
        {
            "name": arm,
            "student": "bench:student",
            "output_dir": "unused",
            "data": {"train": str(file), "exclude_frames": list(excluded)},
            "capabilities": roles if arm == "distilled" else {},
            "train": {"lr_scheduler_type": "constant", "max_steps": 1000, "cache_targets_gb": 0},
        }
    )


def run_of(arm: str, settings: Settings, samples: Sequence[Sample], row: Row, file: Path) -> Run:
    """A run on the frame of one row, before its first step."""
    excluded = sorted({str(sample.frame) for sample in samples} - {str(samples[row[0]].frame)})
    student = model(samples, settings, settings.student, 0)
    teachers = {"bench:teacher": model(samples, settings, settings.teacher, 1)}
    plan = plans.build(recipe_of(arm, file, excluded), student, teachers)
    plans.fill_caches(plan)
    return prepare(plan)


def batches(indices: Sequence[int], parts: int | None) -> tuple[tuple[int, ...], ...]:
    """The questions of a step as so many packed rows; None: each alone."""
    total = len(indices)
    parts = total if parts is None else min(parts, total)
    cuts = [total * k // parts for k in range(parts + 1)]
    return tuple(tuple(indices[a:b]) for a, b in pairwise(cuts))


def tables(run: Run, layout: Sequence[Row]) -> torch.Tensor:
    """The losses of every question in one layout."""
    found = []
    for indices in layout:
        with losses(run.plan.models, batch_of(run.plan, [indices])) as each:
            found.append(each.table())
    return torch.cat(found, dim=1)


def measure(
    arm: str, settings: Settings, samples: Sequence[Sample], row: Row, file: Path
) -> dict[str, Any]:
    """Seconds of an optimizer step over the frame's questions, for each layout in turn."""
    run = run_of(arm, settings, samples, row, file)
    wanted = {samples[index].id for index in row}
    indices = [n for n, each in enumerate(run.plan.schedule.encoded) if each.sample.id in wanted]
    layouts = {name: batches(indices, parts) for name, parts in LAYOUTS.items()}
    alone, packed = (tables(run, layouts[name]) for name in ("alone", "one row"))
    terms = 1 + len(run.plan.models.terms)
    error = ((packed - alone).abs()[:terms] / alone[:terms].clamp(min=1e-30)).amax(1).tolist()
    seconds: dict[str, list[float]] = {name: [] for name in layouts}
    for number in range(1 + settings.rounds):
        for name, layout in layouts.items():
            started = time.perf_counter()
            window = next(windows(run.plan.schedule.order, number, number + 1))
            step(run, replace(window, batches=tuple((row,) for row in layout)))
            seconds[name].append(time.perf_counter() - started)
        told = ", ".join(f"{name} {each[-1]:.3g} s" for name, each in seconds.items())
        print(f"{arm}, round {number}: {told}", flush=True)
    rates = {name: len(indices) / median(each[1:]) for name, each in seconds.items()}
    best = max((name for name in layouts if name != "alone"), key=lambda name: rates[name])
    return {
        "questions": len(indices),
        "questions_per_second": {name: round(rate, 3) for name, rate in rates.items()},
        "speedup": round(rates["one row"] / rates["alone"], 2),
        "fastest": best,
        "row_limits": best != "one row",
        "seconds": {name: [round(x, 4) for x in each[1:]] for name, each in seconds.items()},
        "relative_error": dict(
            zip(("ce", *[term.capability for term in run.plan.models.terms]), error, strict=True)
        ),
    }


# ------------------------------------------------------------------------------------- running


def run(data: Path, settings: Settings = FULL) -> dict[str, Any]:
    """All that is counted, compared and measured."""
    file = data / FILE
    samples = list(read(file))
    vlm = model(samples, settings, settings.student, 0)
    encoded = corpus.encode_all(vlm, samples)
    rows = rows_of(encoded)
    found = counted(encoded, rows)
    print(json.dumps(found), flush=True)
    error = compared(vlm, encoded, rows)
    print(f"largest relative difference of a cross-entropy: {error:.2g}", flush=True)
    frames = sorted((row for row in rows if six(encoded, row)), key=len)
    row = frames[len(frames) // 2]
    return {
        **found,
        "relative_error": error,
        "same": error <= ERROR,
        "goal": GOAL,
        "arms": {arm: measure(arm, settings, samples, row, file) for arm in settings.arms},
        "settings": asdict(settings),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=FULL.rounds)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    folder = os.environ.get("DRIVEKD_REAL_DATA", "")
    if not (folder and (Path(folder) / FILE).is_file()):
        need = f"set DRIVEKD_REAL_DATA to the folder that holds {FILE}, got {folder!r}"
        print(f"packing: {need}", file=sys.stderr)
        return 2
    torch.set_num_threads(given.threads)
    load = os.getloadavg()
    settings = Settings(rounds=given.rounds, arms=tuple(given.arms))
    content = run(Path(folder), settings)
    content["threads"] = given.threads
    content["load_average"] = {"before": load, "after": os.getloadavg()}
    whole = settings.arms == ARMS and settings.rounds >= FULL.rounds and given.threads == 1
    print(write_result("packing" if whole else "packing_quick", content))
    for arm, each in content["arms"].items():
        told = f"{each['speedup']:.1f}x by one row (goal {GOAL:g}x), fastest in {each['fastest']}"
        if each["row_limits"]:
            told += "; the dense mask of a whole row has become what limits"
        print(f"{arm}: {each['questions']} questions, {told}")
    print(json.dumps({arm: each["questions_per_second"] for arm, each in content["arms"].items()}))
    return 0 if content["same"] else 1


if __name__ == "__main__":
    sys.exit(main())
