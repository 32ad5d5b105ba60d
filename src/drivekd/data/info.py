"""Counts of a data file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from drivekd.data.formats.rows import one_line
from drivekd.data.sample import CAPABILITIES, Sample
from drivekd.files.progress import track


def count(samples: Iterable[Sample], total: int | None = None) -> dict[str, Any]:
    """Count samples by capability, template and number of images; `total` is for the time left.

    Returns:
        `{"samples", "capabilities": {name: n}, "unassigned", "templates": {name: n},
        "question_types": {name: n}, "images_per_sample": {"1": n, …}, "scenes", "frames",
        "turns": {"2": n, …}, "question_words": {"mean", "longest"}, "answer_words": …,
        "unanswered", "images", "images_missing"}`; the last two count files, each once.
    """
    capabilities: Counter[str | None] = Counter()
    templates: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    images: Counter[int] = Counter()
    turns: Counter[int] = Counter()
    questions, answers = Counter[int](), Counter[int]()
    scenes, frames, files = set[str](), set[str](), set[Path]()
    for sample in track(samples, total, "counting samples"):
        capabilities[sample.capability] += 1
        images[len(sample.images)] += 1
        turns[len(sample.messages)] += 1
        questions[len(sample.question.split())] += 1
        if (answer := sample.answer) is not None:
            answers[len(answer.split())] += 1
        files.update(sample.images.values())
        templates.update([sample.template] if sample.template else [])
        kinds.update([str(k)] if (k := sample.meta.get("question_type")) else [])
        scenes.update([sample.scene] if sample.scene else [])
        frames.update([sample.frame] if sample.frame else [])
    known = {name: capabilities[name] for name in CAPABILITIES if name in capabilities}
    others = {name: capabilities[name] for name in sorted(filter(None, capabilities))}
    return {
        "samples": capabilities.total(),
        "capabilities": known | others,
        "unassigned": capabilities[None],
        "templates": dict(sorted(templates.items())),
        "question_types": dict(sorted(kinds.items())),
        "images_per_sample": {str(n): images[n] for n in sorted(images)},
        "scenes": len(scenes),
        "frames": len(frames),
        "turns": {str(n): turns[n] for n in sorted(turns)},
        "question_words": _lengths(questions),
        "answer_words": _lengths(answers),
        "unanswered": capabilities.total() - answers.total(),
        "images": len(files),
        "images_missing": sum(not file.is_file() for file in files),
    }


def _lengths(words: Counter[int]) -> dict[str, float]:
    """Return mean and maximum of counted lengths, {} of none."""
    if not words:
        return {}
    mean = sum(length * n for length, n in words.items()) / words.total()
    return {"mean": round(mean, 1), "longest": max(words)}


def describe(counts: dict[str, Any]) -> str:
    """Write the counts as lines for people."""
    lines = []
    for key, value in counts.items():
        parts = value.items() if isinstance(value, dict) else ()
        shown = ", ".join(f"{k} {n}" for k, n in parts) if isinstance(value, dict) else value
        if shown not in ("", 0) or key == "samples":
            lines.append(one_line(f"{key.replace('_', ' '):<18} {shown}"))
    return "\n".join(lines)
