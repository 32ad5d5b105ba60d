"""A run as the demo leaves it behind, small and made up."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from browser import Browser, browser

CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_LEFT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)
TEMPLATES = {
    "colour": "perception",
    "kind": "perception",
    "weather": "perception",
    "future": "reasoning",
    "which_slows": "reasoning",
    "nearer": "reasoning",
    "action": "planning",
    "safe_lane": "planning",
    "collision": "planning",
}
#: arm to the share of right answers
SKILL = {
    "majority": 0.33,
    "blind": 0.38,
    "student_base": 0.12,
    "ce_only": 0.46,
    "drivekd": 0.56,
    "full_everywhere": 0.58,
    "teacher": 0.71,
    "teacher_blind": 0.41,
}
TRAINED = {"blind": 0, "ce_only": 0, "drivekd": 3, "full_everywhere": 3}
QUESTION = "What is the colour of <c1,CAM_FRONT,0.4700,0.6800><r9>?"
NASTY = 'is <c1,CAM_BACK,0.2,0.3> "safe" & <b>bold</b><script>document.title="owned"</script>?'


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def picture(path: Path, rng: np.random.Generator) -> None:
    image = Image.new("RGB", (96, 96), (140, 175, 215))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 52, 96, 96), fill=(90, 92, 96))
    for _ in range(3):
        x, y = rng.integers(5, 70), rng.integers(40, 70)
        colour = tuple(int(c) for c in rng.integers(40, 230, 3))
        draw.rectangle((x, y, x + 18, y + 14), fill=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def score_of(right: float, n: int) -> dict[str, Any]:
    half = 100 * 1.96 * math.sqrt(right * (1 - right) / n)
    return {
        "n": n,
        "accuracy": 100 * right,
        "low": 100 * right - half,
        "high": 100 * right + half,
        "scenes": n // 4,
    }


def log_rows(teachers: int, rng: np.random.Generator, steps: int = 500) -> list[dict[str, Any]]:
    names = ("perception", "reasoning", "planning")[:teachers]
    rows = []
    for step in range(10, steps + 1, 10):
        done = step / steps
        row = {"step": step, "loss/ce": 0.5 + 2.2 * math.exp(-4 * done) + 0.04 * rng.normal()}
        for i, name in enumerate(names):
            scale = 10.0 ** (-3 - i)
            row[f"loss/attn/{name}"] = (
                scale * (0.2 + math.exp(-3 * done)) * (1 + 0.1 * rng.random())
            )
            row[f"lambda/{name}"] = 40.0 * 10**i * (1 + 0.3 * rng.random())
            row[f"grad/cos/ce_{name}"] = 0.3 * rng.normal() * (1 - done)
            row[f"grad/stage1_removed/{name}"] = max(0.0, 0.1 * rng.normal())
        if names:
            row["grad/cos/perception_reasoning"] = 0.4 + 0.1 * rng.normal()
            row["grad/cos/perception_planning"] = 0.1 + 0.1 * rng.normal()
            row["grad/cos/reasoning_planning"] = 0.1 * rng.normal()
            row["grad/conflict_rate"] = float(rng.integers(0, 4)) / 3
            row["grad/stage2_rate"] = float(rng.integers(0, 3)) / 6
            row["grad/residual_conflict"] = float(rng.integers(0, 2)) / 6
            row["grad/ce_multiplier"] = 3 + rng.random()
        rows.append(row)
    return rows


def answer_rows(skill: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for i in range(180):
        template = list(TEMPLATES)[i % len(TEMPLATES)]
        right = bool(rng.random() < skill)
        rows.append(
            {
                "id": f"q{i}",
                "capability": TEMPLATES[template],
                "template": template,
                "scene": f"s{i // 9}",
                "question": NASTY if i == 0 else QUESTION,
                "expected": "red",
                "reply": "red" if right else "blue",
                "correct": right,
            }
        )
    return rows


def write_attention(folder: Path, images: dict[str, str], rng: np.random.Generator) -> None:
    arms = {"teacher": True, "ce_only": False, "drivekd": True}
    cases, arrays = [], {}
    for number, (template, rows) in enumerate((("colour", "question"), ("action", "answer"))):
        said = {}
        for arm, right in arms.items():
            for camera in images:
                grid = rng.random((4, 4)).astype(np.float32) ** 6
                arrays[f"{number}/{arm}/{camera}"] = 0.05 * grid
            reply = "red" if right else "blue <i>"
            said[arm] = {"reply": reply, "correct": right, "layer": 1, "layers": 4, "share": 0.3}
        cases.append(
            {
                "id": f"case{number}",
                "capability": TEMPLATES[template],
                "template": template,
                "question": QUESTION if number == 0 else "What should the ego vehicle do?",
                "expected": "red",
                "rows": rows,
                "images": images,
                "tags": [{"name": "c1", "camera": "CAM_FRONT", "x": 0.47, "y": 0.68}][: 1 - number],
                "arms": said,
            }
        )
    write(folder / "attention" / "cases.json", cases)
    np.savez_compressed(folder / "attention" / "maps.npz", allow_pickle=False, **arrays)


def write_run(folder: Path, trained: Mapping[str, int] = TRAINED) -> Path:
    """Everything that the page reads; arms with a log are given with their number of teachers."""
    rng = np.random.default_rng(7)
    images = {camera: f"world/images/0001/{camera}.png" for camera in CAMERAS}
    for name in images.values():
        picture(folder / name, rng)
    scores: dict[str, dict[str, float]] = {}
    for arm, skill in SKILL.items():
        by_template = {t: min(0.98, max(0.02, skill + 0.15 * rng.normal())) for t in TEMPLATES}
        capabilities = {
            c: float(np.mean([by_template[t] for t in TEMPLATES if TEMPLATES[t] == c]))
            for c in ("perception", "reasoning", "planning")
        }
        average = float(np.mean(list(capabilities.values())))
        detail = {
            "capabilities": {c: score_of(v, 600) for c, v in capabilities.items()},
            "templates": {t: score_of(v, 200) for t, v in by_template.items()},
            "average": score_of(average, 1800),
        }
        write(folder / arm / "scores.json", detail)
        write_lines(folder / arm / "answers.jsonl", answer_rows(skill, rng))
        values = {c: 100 * v for c, v in capabilities.items()}
        scores[arm] = {**values, "average": 100 * average}
    for arm, teachers in trained.items():
        write_lines(folder / arm / "log.jsonl", log_rows(teachers, rng))
    n = {"perception": 600, "reasoning": 600, "planning": 600}
    write(folder / "summary.json", {"scores": scores, "n": n, "seconds": 512.4})
    tags = [
        {"name": f"c{i}", "camera": c, "x": 0.3 + 0.1 * i, "y": 0.6} for i, c in enumerate(CAMERAS)
    ]
    asked = [
        {"capability": c, "template": t, "question": QUESTION, "answer": "red"}
        for t, c in TEMPLATES.items()
    ]
    scene = {"frame": "demo-0001", "images": images, "tags": tags, "questions": asked}
    write(folder / "scenes.json", [scene, {**scene, "frame": "demo-0002"}])
    about = {
        "title": "Drive-KD in the embedded world",
        "facts": {"Seed": "0", "Student": "0.4 million parameters", "Hardware": "2 CPU cores"},
        "commands": [
            {"command": "make demo", "what": "Everything on this page:"},
            {"command": "drivekd evaluate --model out/demo/drivekd", "what": "One arm again:"},
        ],
    }
    write(folder / "about.json", about)
    write_attention(folder, images, rng)
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run to change; with few curves, because drawing them takes most of the time."""
    return write_run(tmp_path / "run", {"drivekd": 1})


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a whole run; for tests that only read it."""
    from drivekd.report.page import write_page

    return write_page(write_run(tmp_path_factory.mktemp("page") / "run"))


@pytest.fixture
def chromium(require_all: bool, tmp_path: Path) -> Browser:
    program = shutil.which("chromium")
    if program is not None:
        return browser(program, tmp_path)
    reason = "no browser: install Debian's package chromium (make system)"
    if require_all:
        pytest.fail(reason)
    pytest.skip(reason)
