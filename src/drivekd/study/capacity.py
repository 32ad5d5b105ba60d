"""Which of several teachers a student can follow: distance before and after short probes."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student_t

from drivekd.data.lock import locked
from drivekd.data.progress import track
from drivekd.data.readers import read
from drivekd.data.sample import CAPABILITIES, Sample
from drivekd.data.written import whole
from drivekd.distill import agreement
from drivekd.distill import teacher as teachers
from drivekd.distill.layers import resolve
from drivekd.distill.order import scene_of, stream
from drivekd.distill.train import train
from drivekd.distill.trained import load_student
from drivekd.models import vlm as vlms
from drivekd.models.encode import encode
from drivekd.recipe import Recipe, parse
from drivekd.study.gap import Gap, gap

PAPER = {
    "perception": ("first", "text_to_vision"),
    "reasoning": ("1..penultimate", "full"),
    "planning": ("penultimate", "text_to_vision"),
}
"""Layers and signal of each capability [paper]."""

SEEDS, STEPS, HELD_OUT = 3, 60, 200
"""Probes of each teacher, their steps, and the most questions that distances are measured on."""


def run(
    student: str,
    candidates: Sequence[str],
    data: Path,
    out: Path,
    *,
    format: str = "auto",
    root: Path | None = None,
    seed: int = 0,
    steps: int = STEPS,
) -> dict[str, Any]:
    """Probe every candidate and write `capacity.json`.

    A third of the scenes is held out: distances are measured there, before and after. A probe is a
    short run of `drivekd train` with the paper's layers and signals and one candidate in all
    roles, from the same start, on the same questions in the same order for every candidate; the
    seed of a probe draws that order.

    Args:
        student: folder, hub id or `world:NAME`.
        candidates: the same of teachers; at least one.
        data: driving questions with answers, frames and pictures.
        out: folder for the results.
        format: of the file.
        root: folder that relative image paths start from.
        seed: of the split; probes have the seeds from there on.
        steps: of a probe.

    Raises:
        OSError, ValueError: the data or a model, or a teacher that reads otherwise than the
            student.
    """
    samples = [each for each in read(data, format, root=root) if each.capability in PAPER]
    held_out = _held_out(samples, seed)
    if len(set(candidates)) < len(candidates):
        raise ValueError(f"candidates {', '.join(candidates)}: one is named twice")
    with locked(out):
        figures: dict[str, dict[str, dict[str, Any]]] = {}
        depth = 0
        for name in track(candidates, len(candidates), "probing teachers"):
            recipes = [
                _recipe(student, name, data, root, held_out, samples, seed + k, steps)
                for k in range(SEEDS)
            ]
            before, after = _probed(recipes, name, held_out)
            figures[name] = _figures(before, after)
            depth = len(next(iter(before.values())))
        content = {
            "student": student,
            "layers": depth,
            "held_out": {"samples": len(held_out), "scenes": len({scene_of(s) for s in held_out})},
            "steps": steps,
            "seeds": [seed + k for k in range(SEEDS)],
            "candidates": figures,
            "advice": _advice(figures),
        }
        with whole(out / "capacity.json") as draft:
            draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


def _probed(
    recipes: Sequence[Recipe], candidate: str, held_out: Sequence[Sample]
) -> tuple[Gap, list[Gap]]:
    """The distance from one candidate before training, and after each probe."""
    pupil = load_student(recipes[0])
    vlm = teachers.freeze(vlms.load(candidate, device=str(pupil.device)))
    encoded = [encode(pupil, sample) for sample in held_out]
    agreement.check_agreement(pupil, vlm, "the probe", encoded)
    before, after = gap(pupil, vlm, encoded), []
    for recipe in recipes:
        pupil = load_student(recipe)
        with tempfile.TemporaryDirectory() as folder:
            here = recipe.model_copy(update={"output_dir": folder})
            train(here, student=pupil, teachers={candidate: vlm})
        after.append(gap(pupil, vlm, encoded))
    return before, after


def _held_out(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """A third of the scenes, with a frame token each, so that training can leave them out."""
    scenes = sorted({scene_of(sample) for sample in samples})
    if len(scenes) < 3:
        raise ValueError(
            f"questions about {len(scenes)} scenes: expected 3 or more, a third is held out"
        )
    order = stream(seed, "capacity").permutation(len(scenes))
    chosen = {scenes[i] for i in order[: len(scenes) // 3]}
    found = [s for s in samples if scene_of(s) in chosen and s.images]
    without = next((sample for sample in found if not sample.frame), None)
    if without is not None:
        raise ValueError(
            f"{without.source}: sample {without.id!r} has no frame token, by which held-out "
            "questions are kept out of training; write `frame` into the file"
        )
    return found[:HELD_OUT]


def _recipe(
    student: str,
    candidate: str,
    data: Path,
    root: Path | None,
    held_out: Sequence[Sample],
    samples: Sequence[Sample],
    seed: int,
    steps: int,
) -> Recipe:
    scenes = {scene_of(sample) for sample in held_out}
    frames = sorted({str(s.frame) for s in samples if scene_of(s) in scenes})
    owners = {sample.capability for sample in samples if scene_of(sample) not in scenes}
    capabilities = {
        name: {
            "teacher": candidate,
            "student_layers": layers,
            "signal": signal,
            "grouping": "proportional",
        }
        for name, (layers, signal) in PAPER.items()
        if name in owners
    }
    return parse(
        {
            "name": "probe",
            "student": student,
            "output_dir": "probe",
            "seed": seed,
            "data": {
                "train": [str(data)],
                "root": None if root is None else str(root),
                "exclude_frames": frames,
            },
            "capabilities": capabilities,
            "train": {"max_steps": steps, "save_steps": steps, "report_to": "none"},
        }
    )


def _figures(before: Gap, after: Sequence[Gap]) -> dict[str, dict[str, Any]]:
    """Distances by layer, and at the paper's layers with their interval over probes."""
    found = {}
    for name, start in before.items():
        ends = np.stack([each[name] for each in after])
        chosen = resolve(PAPER[name][0], len(start))
        far, left = float(start[chosen].mean()), ends[:, chosen].mean(axis=1)
        found[name] = {
            "before": start.tolist(),
            "after": ends.tolist(),
            "distance": far,
            "left": left.tolist(),
            "closed": _interval(1 - left / far) if far else None,
        }
    return found


def _interval(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    """Mean and 95 % interval of Student's t over probes."""
    count = len(values)
    half = float(student_t.ppf(0.975, count - 1)) * float(values.std(ddof=1)) / count**0.5
    mean = float(values.mean())
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _advice(candidates: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per capability the candidate whose maps the student ends nearest to, and by how much.

    Weak: over probes, which are paired by seed, the interval of the difference to the next one
    holds 0; or there is no other.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in CAPABILITIES:
        left = {
            who: np.array(each[name]["left"]) for who, each in candidates.items() if name in each
        }
        ranked = sorted(left, key=lambda who: float(left[who].mean()))
        if not ranked:
            continue
        found[name] = {"teacher": ranked[0], "next": None, "margin": None, "weak": True}
        if len(ranked) > 1:
            margin = _interval(left[ranked[1]] - left[ranked[0]])
            found[name] |= {"next": ranked[1], "margin": margin, "weak": margin["low"] <= 0}
    return found


def table(content: Mapping[str, Any]) -> str:
    """The distances at the paper's layers, and the teacher that the student follows best."""
    console = Console(file=io.StringIO(), width=110)
    made = Table("capability", "teacher", "distance", "after the probe", "closed", box=None)
    for name in CAPABILITIES:
        for who, each in content["candidates"].items():
            if name in each:
                closed, left = each[name]["closed"], float(np.mean(each[name]["left"]))
                span = _percent(closed) if closed else "–"
                made.add_row(name, who, f"{each[name]['distance']:.3f}", f"{left:.3f}", span)
    console.print(made)
    for name, advice in content["advice"].items():
        console.print(f"{name}: {_said(advice)}", markup=False, soft_wrap=True)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()


def _percent(share: Mapping[str, float]) -> str:
    mean, low, high = (100 * share[key] for key in ("mean", "low", "high"))
    return f"{mean:.0f} % [{low:.0f}, {high:.0f}]"


def _said(advice: Mapping[str, Any]) -> str:
    if advice["next"] is None:
        return f"{advice['teacher']} is the only candidate"
    margin = advice["margin"]
    said = (
        f"the student ends nearest to {advice['teacher']}, by {margin['mean']:.3f} "
        f"[{margin['low']:.3f}, {margin['high']:.3f}] nearer than to {advice['next']}"
    )
    return f"{said}; the evidence is weak" if advice["weak"] else said
