"""Prove the wiring on real pictures: train, distil, generate and reload on DriveLM-nuScenes.

    DRIVEKD_REAL_DATA=FOLDER python benchmarks/real_smoke.py

A tiny random InternVL (448 px, one tile per camera, 64 tokens each, up to six cameras) learns the
questions of one nuScenes scene. It shows that real data runs through every part and that the
pictures reach the answers. It is a wiring proof, not a score: one scene of four frames says
nothing about driving, and the scene that is held out is printed only to say so.

As in the method, only the language model is trained. The vision tower is random and frozen; its
tokens are whitened over the training pictures, as those of the shipped models are. So a token says
which picture it belongs to, not what is in it: enough to learn the answers of one scene by heart,
and all that "below the grey run" can mean here. Both runs start from the same weights.

Everything goes through `drivekd.distill.train.train` with recipes, models given in memory. Two
processes with one thread each; results in out/real_smoke. Exit status: 0 all checks hold, 1 one
does not, 2 no data. The last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import compress
from pathlib import Path
from statistics import fmean
from typing import Any

for _name, _value in (("OMP_NUM_THREADS", "1"), ("HF_HUB_OFFLINE", "1")):
    os.environ.setdefault(_name, _value)

import torch  # noqa: E402
import transformers  # noqa: E402
from smoke_checks import (  # noqa: E402
    Check,
    check_attention,
    check_overfit,
    check_pictures,
    check_reload,
)
from world_models.grounding import whiten  # noqa: E402

from drivekd.data.formats.readers import read  # noqa: E402
from drivekd.data.pictures import read_image  # noqa: E402
from drivekd.data.sample import CAPABILITIES, IMAGE_PLACEHOLDER, Sample  # noqa: E402
from drivekd.distill.corpus import training_samples  # noqa: E402
from drivekd.distill.train import train  # noqa: E402
from drivekd.files.lock import locked  # noqa: E402
from drivekd.files.workers import side_by_side  # noqa: E402
from drivekd.files.writing import write_json  # noqa: E402
from drivekd.models.batch import answer_loss, collate, encode, forward, rows_of  # noqa: E402
from drivekd.models.features import FeatureCache, image_features  # noqa: E402
from drivekd.models.generate import generate, generate_ids  # noqa: E402
from drivekd.models.images import ImageMode  # noqa: E402
from drivekd.models.tiny import build_tokenizer, tiny_vlm  # noqa: E402
from drivekd.models.vlm import Vlm  # noqa: E402
from drivekd.recipe import Recipe, parse  # noqa: E402

NOTE = "a wiring proof on one training scene, not a score"
OUT = Path("out") / "real_smoke"
FILE = Path("drivelm") / "train_sample.json"
#: Its questions are in DriveBench, which is for testing.
DRIVEBENCH_FRAME = "1b45a97a0e5e49fe9cd345dd4bd729c3"
TEACHER = "tiny:teacher"
COMMON: Mapping[str, Any] = {
    "image_size": 448,
    "patch_size": 28,
    "vision_hidden": 128,
    "vision_layers": 2,
    "initializer_range": 0.05,  # of so narrow a model; with the stock 0.02 it learns half as fast
}
#: the paper's: capability → layers and signal
ASSIGNMENT = {
    "perception": ("first", "text_to_vision"),
    "reasoning": ("1..penultimate", "full"),
    "planning": ("penultimate", "text_to_vision"),
}
#: samples per forward pass where only the loss is wanted
CHUNK = 16


@dataclass(frozen=True)
class Settings:
    """How long each run is, in optimizer steps, and how large the decoders are."""

    ce_steps: int  # on real and on grey pictures
    overfit_steps: int
    teacher_steps: int  # cross-entropy of the larger model
    distil_steps: int  # of the student under it
    student: Mapping[str, Any]
    teacher: Mapping[str, Any]
    overfit_samples: int = 8


FULL = Settings(
    ce_steps=500,
    overfit_steps=60,
    teacher_steps=120,
    distil_steps=200,
    student={"text_hidden": 128, "text_layers": 4},
    teacher={"text_hidden": 160, "text_layers": 5},
)


# --------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Split:
    """The file by scene, DriveBench's frame in neither part."""

    file: Path
    training: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    excluded: tuple[str, ...]  # frames that a recipe leaves out to train on `training`


def split(data: Path) -> Split:
    """Let the scene with more frames train (then more questions), the other is held out."""
    file = data / FILE
    samples = list(read(file))
    kept = [sample for sample in samples if sample.frame != DRIVEBENCH_FRAME]
    frames = Counter(scene for scene, _ in {(s.scene, s.frame) for s in kept})
    questions = Counter(sample.scene for sample in kept)
    chosen = max(questions, key=lambda scene: (frames[scene], questions[scene]))
    training = tuple(sample for sample in kept if sample.scene == chosen)
    held_out = tuple(sample for sample in kept if sample.scene != chosen)
    excluded = {str(s.frame) for s in samples} - {str(s.frame) for s in training}
    return Split(file, training, held_out, tuple(sorted(excluded)))


def needs_pictures(samples: Sequence[Sample]) -> list[bool]:
    """Whether another frame's question reads the same, cameras included, but is answered else."""
    answers: dict[object, set[str | None]] = {}
    for sample in samples:
        answers.setdefault(sample.prompt, set()).add(sample.answer)
    return [len(answers[sample.prompt]) > 1 for sample in samples]


def describe(samples: Sequence[Sample]) -> str:
    kinds = Counter(sample.capability for sample in samples)
    each = " / ".join(str(kinds[name]) for name in CAPABILITIES)
    frames = len({sample.frame for sample in samples})
    return f"{len(samples)} questions ({each}), {frames} frames, {len(pictures(samples))} pictures"


def pictures(samples: Sequence[Sample]) -> list[Path]:
    """The distinct files of all samples."""
    return list(dict.fromkeys(path for sample in samples for path in sample.images.values()))


# -------------------------------------------------------------------------------------- models


def tiny(parts: Split, sizes: Mapping[str, Any], seed: int) -> Vlm:
    """A random model; tokenizer and whitening are made from the training scene."""
    texts = [message.content for sample in parts.training for message in sample.messages]
    vlm = tiny_vlm(tokenizer=build_tokenizer(texts, 1536), seed=seed, **COMMON, **sizes)
    with torch.no_grad():
        whiten(vlm, torch.stack(image_features(vlm, pictures(parts.training))))
    return vlm


def recipe(parts: Split, output_dir: Path, steps: int, **changes: Mapping[str, Any]) -> Recipe:
    """Plain cross-entropy on the training scene; each change replaces keys of one part."""
    raw: dict[str, Any] = {
        "name": output_dir.name,
        "student": "tiny:internvl",
        "output_dir": str(output_dir),
        "data": {
            "train": [str(parts.file)],
            "exclude_frames": list(parts.excluded),
            "questions_per_row": 16,
        },
        "train": {
            "learning_rate": 4e-3,
            "per_device_train_batch_size": 1,
            "max_steps": steps,
            "warmup_steps": steps // 20,
            "logging_steps": 1,
            "save_steps": steps + 1,
            "report_to": "none",
        },
    }
    for part, keys in changes.items():
        raw[part] = {**raw.get(part, {}), **keys}
    return parse(raw)


def cross_entropies(vlm: Vlm, samples: Sequence[Sample], features: FeatureCache) -> list[float]:
    """The cross-entropy of every sample, nothing trained."""
    values: list[float] = []
    with torch.no_grad():
        for start in range(0, len(samples), CHUNK):
            part = [encode(vlm, sample) for sample in samples[start : start + CHUNK]]
            batch = collate(vlm, part, rows_of(part))
            hidden = forward(vlm, batch, features)
            values += answer_loss(vlm, hidden, batch).tolist()
    return values


# --------------------------------------------------------------------------------------- runs


def run_cross_entropy(data: Path, out: Path, settings: Settings, images: ImageMode) -> Any:
    """Train on real or on grey pictures; loss before and after, and a few answers' tokens."""
    parts = split(data)
    vlm = tiny(parts, settings.student, seed=1)
    features = FeatureCache(image_mode=images)
    before = fmean(cross_entropies(vlm, parts.training, features))
    plan = recipe(parts, out / f"ce_{images}", settings.ce_steps, data={"images": images})
    train(plan, student=vlm)
    after = cross_entropies(vlm, parts.training, features)
    return {
        "before": before,
        "after": fmean(after),
        "after_same_question": fmean(compress(after, needs_pictures(parts.training))),
        "held_out": fmean(cross_entropies(vlm, parts.held_out, features)),
        "tokens": generate_ids(vlm, probes(parts), max_new_tokens=24),
    }


def run_overfit(data: Path, out: Path, settings: Settings) -> Any:
    """Learn a few answers by heart; replies and answers."""
    parts = split(data)
    vlm = tiny(parts, settings.student, seed=2)
    count = settings.overfit_samples
    changes = {"data": {"max_samples": count}, "train": {"per_device_train_batch_size": count}}
    plan = recipe(parts, out / "overfit", settings.overfit_steps, **changes)
    train(plan, student=vlm)
    samples = training_samples(plan)
    longest = max(len(vlm.tokenizer(sample.answer).input_ids) for sample in samples)
    replies = generate(vlm, samples, max_new_tokens=longest + 4)
    return [(sample.answer, reply) for sample, reply in zip(samples, replies, strict=True)]


def run_distillation(data: Path, out: Path, settings: Settings) -> Any:
    """Train a teacher shortly, distil a student from it; the record of its attention losses."""
    parts = split(data)
    teacher = tiny(parts, settings.teacher, seed=3)
    train(recipe(parts, out / "teacher", settings.teacher_steps), student=teacher)
    capabilities = {
        name: {"teacher": TEACHER, "student_layers": layers, "signal": signal}
        for name, (layers, signal) in ASSIGNMENT.items()
    }
    student = tiny(parts, settings.student, seed=4)
    # Full maps cost the square of a row, so rows are short.
    changes: dict[str, Any] = {"data": {"questions_per_row": 8}, "capabilities": capabilities}
    plan = recipe(parts, out / "drivekd", settings.distil_steps, **changes)
    train(plan, student=student, teachers={TEACHER: teacher})
    log = (out / "drivekd" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    names = {f"loss/attn/{name}": name for name in CAPABILITIES}
    return [{names[k]: v for k, v in json.loads(line).items() if k in names} for line in log]


# -------------------------------------------------------------------------- plain transformers


def probes(parts: Split) -> list[Sample]:
    """A question with all six cameras and one with a single camera."""
    by_cameras = {len(sample.images): sample for sample in parts.training}
    return [by_cameras[6], by_cameras[1]]


def run_plain(data: Path, folder: Path) -> Any:
    """The probes' tokens by transformers alone, from what training wrote into `folder`."""
    logs: Any = transformers.utils.logging
    logs.disable_progress_bar()
    model: Any = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    # By name: the automatic class asks for torchvision in some releases.
    processor: Any = transformers.GotOcr2ImageProcessorPil.from_pretrained(folder)
    tokens = []
    for sample in probes(split(data)):
        marks = f"<img>{'<IMG_CONTEXT>' * model.config.image_seq_length}</img>"
        content = sample.prompt[0].content.replace(IMAGE_PLACEHOLDER, marks)
        turns = [{"role": "user", "content": content}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        images = [read_image(path) for path in sample.images.values()]
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        ids = model.generate(**inputs, pixel_values=pixels, max_new_tokens=24, do_sample=False)
        tokens.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
    return tokens


# ------------------------------------------------------------------------------------- running

Job = Callable[[], Any]


def in_processes(jobs: Mapping[str, Job]) -> dict[str, Any]:
    """Two at a time."""
    return dict(zip(jobs, side_by_side(_call, jobs.values(), 2), strict=True))


def _call(job: Job) -> Any:
    return job()


def run(
    data: Path,
    out: Path,
    settings: Settings = FULL,
    do: Callable[[Mapping[str, Job]], dict[str, Any]] = in_processes,
) -> list[Check]:
    """All runs, then all checks; `out` is emptied first."""
    for left in (path for path in out.glob("*") if path.is_dir()):
        shutil.rmtree(left)
    given = (data, out, settings)
    done = do(
        {
            "real": partial(run_cross_entropy, *given, "real"),
            "grey": partial(run_cross_entropy, *given, "grey"),
            "distillation": partial(run_distillation, *given),
            "overfit": partial(run_overfit, *given),
        }
    )
    done |= do({"plain": partial(run_plain, data, out / "ce_real" / "final")})
    return [
        *check_pictures(done["real"], done["grey"]),
        check_overfit(done["overfit"]),
        *check_attention(done["distillation"]),
        check_reload(done["real"]["tokens"], done["plain"]),
    ]


def main() -> int:
    given = os.environ.get("DRIVEKD_REAL_DATA", "")
    data = Path(given)
    if not (given and (data / FILE).is_file()):
        need = f"set DRIVEKD_REAL_DATA to the folder that holds {FILE}, got {given!r}"
        print(f"real-smoke: {need}", file=sys.stderr)
        return 2
    started = time.monotonic()
    parts = split(data)
    print(f"This is {NOTE}.\ntraining scene: {describe(parts.training)}")
    print(f"held-out scene: {describe(parts.held_out)}; never used: {DRIVEBENCH_FRAME}", flush=True)
    with locked(OUT):
        checks = run(data, OUT)
    seconds = time.monotonic() - started
    checks.append(Check("within ten minutes", seconds <= 600, {"seconds": seconds}))
    for check in checks:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in check.figures.items())
        print(f"{'ok  ' if check.holds else 'FAIL'} {check.claim}: {figures}")
    passed = all(check.holds for check in checks)
    result = {"note": NOTE, "passed": passed, "checks": [asdict(check) for check in checks]}
    write_json(OUT / "result.json", result)
    print(json.dumps(result))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
