"""Small whole runs: pictures and questions on disk, a tiny student, three tiny teachers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerFast

from drivekd.data.sample import Sample
from drivekd.distill.order import Window, windows
from drivekd.distill.plan import Plan
from drivekd.models.tiny import build_tokenizer, tiny_vlm
from drivekd.models.vlm import Vlm
from drivekd.recipe import Recipe, parse
from drivekd.study.measuring import add, ask
from drivekd.study.sums import Sums

CAMERAS = ("CAM_FRONT", "CAM_BACK")
CLOCKS = ("seconds", "questions_per_second")
CAPABILITIES = ("perception", "reasoning", "planning")
QUESTIONS = (
    ("perception", "Which colour?", "red"),
    ("reasoning", "What will it do next?", "It stops."),
    ("planning", "Safe action?", "keep"),
    ("perception", "How many cars are there?", "2"),
    ("planning", "Turn?", "no, wait"),
)


def write_data(folder: Path, scenes: int = 3, questions: int = 5, first: int = 0) -> Path:
    """A file of questions in the Drive-KD format with their pictures; returns its path.

    Scenes are counted from `first`: others are never of the same frame.
    """
    random = np.random.default_rng(7)
    rows = []
    for scene in range(first, first + scenes):
        images = []
        for camera in CAMERAS:
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            images.append(f"{scene}_{camera}.png")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((48, 48)).save(folder / images[-1])
        front = "".join(f"{camera}: <image>\n" for camera in CAMERAS)
        for number, (capability, question, answer) in enumerate(QUESTIONS[:questions]):
            turns = [
                {"role": "user", "content": front + question},
                {"role": "assistant", "content": f"{answer} {scene}"},
            ]
            rows.append(
                {
                    "id": f"s{scene}q{number}",
                    "messages": turns,
                    "images": images,
                    "cameras": CAMERAS,
                    "question_type": capability,
                    "scene": f"scene{scene}",
                    "frame": f"frame{scene}",
                }
            )
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@cache
def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Short sequences: the few words of these questions are tokens."""
    words = [f"{text} 0 1 2" for question in QUESTIONS for text in question[1:]]
    return build_tokenizer(words * 3 + [f"{c}: \n" for c in CAMERAS] * 9, 512, family=family)


def tiny_student(seed: int = 1, **options: Any) -> Vlm:
    """Three layers, four visual tokens per picture."""
    sizes = {
        "text_hidden": 32,
        "text_layers": 3,
        "vision_hidden": 32,
        "vision_layers": 1,
        "image_size": 48,
    }
    words = tokenizer(str(options.get("family", "internvl")))
    return tiny_vlm(seed=seed, **{"tokenizer": words, **sizes, **options})


def tiny_teachers(**options: Any) -> dict[str, Vlm]:
    """One per capability, deeper than the student, by the names that `recipe` gives them."""
    return {
        f"tiny:{name}": tiny_student(seed=10 + i, text_layers=4, initializer_range=0.2, **options)
        for i, name in enumerate(CAPABILITIES)
    }


def measured(vlm: Vlm, samples: Sequence[Sample]) -> Sums:
    """What a pre-study keeps of a frozen teacher."""
    sums = Sums()
    for asked in ask(vlm, samples):
        for each in asked:
            add(sums, each)
    return sums


def recipe(path: Path, output_dir: Path, /, **changes: Mapping[str, Any]) -> Recipe:
    """Three capabilities by the paper's assignment.

    Each change replaces some keys of one part, or all of `capabilities`.
    """
    raw: dict[str, Any] = {
        "name": "tiny",
        "student": "tiny:student",
        "output_dir": str(output_dir),
        "data": {"train": [str(path)], "pack": True},
        "capabilities": {
            "perception": capability("perception", "first", "text_to_vision"),
            "reasoning": capability("reasoning", "1..penultimate", "full"),
            "planning": capability("planning", "penultimate", "text_to_vision"),
        },
        "train": {
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 2,
            "logging_steps": 1,
            "report_to": "none",
        },
    }
    for part, keys in changes.items():
        raw[part] = keys if part == "capabilities" else {**raw.get(part, {}), **keys}
    return parse(raw)


def capability(name: str, layers: str, signal: str, **options: Any) -> dict[str, Any]:
    """One capability of a recipe."""
    return {"teacher": f"tiny:{name}", "student_layers": layers, "signal": signal, **options}


def three_signals(loss: str = "mse", temperature: float = 2.0) -> dict[str, dict[str, Any]]:
    """Attention, hidden states and output distributions, one teacher each."""
    outputs = {"teacher": "tiny:planning", "signal": "logits_kl", "temperature": temperature}
    return {
        "perception": capability("perception", "first", "text_to_vision", loss=loss),
        "reasoning": capability("reasoning", "1..penultimate", "hidden", loss=loss),
        "planning": outputs,
    }


def window(plan: Plan, batches: Sequence[Sequence[int]], step: int = 0) -> Window:
    """A step's window with other batches, each sample in a row of its own."""
    drawn = next(windows(plan.schedule.order, step, step + 1))
    return replace(drawn, batches=tuple(map(alone, batches)))


def rows(plan: Plan, indices: Sequence[int]) -> list[tuple[int, ...]]:
    """The rows of these samples of a run."""
    kept = (tuple(index for index in row if index in indices) for row in plan.schedule.order.rows)
    return [row for row in kept if row]


def alone(indices: Sequence[int]) -> tuple[tuple[int], ...]:
    """Samples in rows of their own."""
    return tuple((index,) for index in indices)


def untimed(output_dir: Path) -> list[dict[str, float]]:
    """The record without what depends on how fast the machine was."""
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in lines(output_dir)]


def lines(output_dir: Path) -> list[dict[str, float]]:
    """The record of a run."""
    text = (output_dir / "log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
