"""Capacity of a student for several teachers: distance before and after short probes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drivekd.data.convert import jsonl_row
from drivekd.data.formats.readers import read
from drivekd.data.sample import CAPABILITIES, Sample
from drivekd.distill.order import scene_of, select, stream
from drivekd.distill.teachers import agreement
from drivekd.distill.teachers import teacher as teachers
from drivekd.distill.train import train
from drivekd.distill.trained import load_student
from drivekd.files.lock import locked
from drivekd.files.progress import track
from drivekd.files.writing import new_rows, write_json
from drivekd.method.signals.layers import resolve
from drivekd.models import vlm as vlms
from drivekd.models.encode import encode
from drivekd.recipe import Recipe, parse
from drivekd.statistics import over_seeds
from drivekd.study.gap import Gap, gap

#: layers and signal of each capability [paper]
PAPER = {
    "perception": ("first", "text_to_vision"),
    "reasoning": ("1..penultimate", "full"),
    "planning": ("penultimate", "text_to_vision"),
}

#: probes of each teacher, their steps, and the most questions of a capability that are measured
SEEDS, STEPS, MEASURED = 3, 60, 60


@dataclass(frozen=True)
class Probes:
    """A student and the teachers to compare for it, on which questions."""

    student: str  # folder, hub id or `world:NAME`
    candidates: tuple[str, ...]  # the same of teachers
    trained: tuple[Sample, ...]  # questions that probes are trained on
    measured: tuple[Sample, ...]  # questions about other scenes, on which distances are measured
    root: Path  # folder of all their pictures
    seed: int  # of the first probe
    steps: int  # of a probe


def prepare(
    student: str | None,
    candidates: Sequence[str],
    data: Path,
    *,
    format: str = "auto",
    root: Path | None = None,
    max_samples: int | None = None,
    seed: int = 0,
    steps: int = STEPS,
) -> Probes:
    """Read the questions and hold a third of the scenes out, before any model is loaded.

    `max_samples` are drawn by the seed; probes have the seeds from there on.

    Raises:
        OSError, ValueError: the data, no student, or a candidate that is named twice.
    """
    if student is None:
        raise ValueError("--candidate compares teachers for a student: name it with --student")
    if len(set(candidates)) < len(candidates):
        raise ValueError(f"candidates {', '.join(candidates)}: one is named twice")
    folder = (data.parent if root is None else root).absolute()
    known = [s for s in read(data, format, root=folder) if s.capability in PAPER and s.images]
    samples = select(known, seed=seed, max_scenes=None, max_samples=max_samples)
    scenes = sorted({scene_of(sample) for sample in samples})
    if len(scenes) < 3:
        raise ValueError(
            f"{data} has questions of {', '.join(PAPER)} with pictures about {len(scenes)} scenes: "
            "expected 3 or more, a third of which is held out"
        )
    order = stream(seed, "capacity").permutation(len(scenes))
    held_out = {scenes[i] for i in order[: len(scenes) // 3]}
    trained = tuple(sample for sample in samples if scene_of(sample) not in held_out)
    taught = {sample.capability for sample in trained}
    left = [s for s in samples if scene_of(s) in held_out and s.capability in taught]
    if not left:
        raise ValueError(f"{data}: no capability has questions about both parts of its scenes")
    drawn = tuple(_drawn(left, seed))
    return Probes(student, tuple(candidates), trained, drawn, folder, seed, steps)


def _drawn(samples: Sequence[Sample], seed: int) -> Iterator[Sample]:
    """At most `MEASURED` questions of each capability, in the order of the file."""
    for name in PAPER:
        own = [sample for sample in samples if sample.capability == name]
        places = stream(seed, f"measured {name}").permutation(len(own))[:MEASURED]
        yield from (own[i] for i in sorted(places))


def run(probes: Probes, out: Path) -> dict[str, Any]:
    """Probe every candidate, write `capacity.json` and return what it holds.

    Distances are measured before and after. A probe is a short run of `drivekd train`, on the
    device where that would train, with the paper's layers and signals and one candidate in all
    roles; from the same start, on the same questions in the same order for every candidate; the
    seed of a probe draws that order.

    Raises:
        OSError, ValueError: a model cannot be loaded, or a teacher reads otherwise than the
            student.
    """
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    with locked(out):
        for name in track(probes.candidates, len(probes.candidates), "probing teachers"):
            figures[name] = _figures(*_probed(probes, name))
        content = {
            "student": probes.student,
            "trained": _counts(probes.trained),
            "measured": _counts(probes.measured),
            "steps": probes.steps,
            "seeds": [probes.seed + k for k in range(SEEDS)],
            "candidates": figures,
            "advice": _advice(figures),
        }
        write_json(out / "capacity.json", content)
    return content


def _counts(samples: Sequence[Sample]) -> dict[str, int]:
    return {"samples": len(samples), "scenes": len({scene_of(each) for each in samples})}


def _probed(probes: Probes, candidate: str) -> tuple[Gap, list[Gap]]:
    """Measure the distance from one candidate before training, and after each probe."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with new_rows(folder / "train.jsonl") as rows:
            for sample in probes.trained:
                rows.add(jsonl_row(sample, probes.root))
        recipes = [_recipe(probes, candidate, folder, probes.seed + k) for k in range(SEEDS)]
        pupil = load_student(recipes[0])
        vlm = teachers.freeze(vlms.load(candidate, device=str(pupil.device), head=False))
        encoded = [encode(pupil, sample) for sample in probes.measured]
        agreement.check_agreement(pupil, vlm, "the probe", encoded)
        before, after = gap(pupil, vlm, encoded), []
        for recipe in recipes:
            pupil = load_student(recipe)
            train(recipe, student=pupil, teachers={candidate: vlm})
            after.append(gap(pupil, vlm, encoded))
    return before, after


def _recipe(probes: Probes, candidate: str, folder: Path, seed: int) -> Recipe:
    taught = {sample.capability for sample in probes.trained}
    proportional = {"grouping": "proportional"}
    capabilities = {
        name: {"teacher": candidate, "student_layers": layers, "signal": signal} | proportional
        for name, (layers, signal) in PAPER.items()
        if name in taught
    }
    return parse(
        {
            "name": "probe",
            "student": probes.student,
            "output_dir": str(folder / f"probe{seed}"),
            "seed": seed,
            "data": {"train": [str(folder / "train.jsonl")], "root": str(probes.root)},
            "capabilities": capabilities,
            "train": {"max_steps": probes.steps, "save_steps": probes.steps, "report_to": "none"},
        }
    )


def _figures(before: Gap, after: Sequence[Gap]) -> dict[str, dict[str, Any]]:
    """Collect distances by layer, and at the paper's layers with their interval over probes."""
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


def _interval(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float | None]:
    """Mean and 95 % interval of Student's t over probes; no ends where they are all equal."""
    over = over_seeds(values.tolist())
    return {"mean": over.mean, "low": over.low, "high": over.high}


def _advice(candidates: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Name per capability the candidate whose maps the student ends nearest to, and by how much.

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
            found[name] |= {
                "next": ranked[1],
                "margin": margin,
                "weak": margin["low"] is None or margin["low"] <= 0,
            }
    return found
