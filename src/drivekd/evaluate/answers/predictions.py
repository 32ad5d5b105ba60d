"""Predictions in DriveBench's format: rows of questions with `pred`, read and written.

A row holds `scene_token`, `frame_token`, `question_type`, `question`, `answer`, `tag`, `image_path`
and `pred`, as the public evaluator wants it [public benchmark].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drivekd.data.cameras import task_of
from drivekd.data.sample import Sample
from drivekd.evaluate.answers.answer import Answer, answer_of
from drivekd.files.writing import write_json

#: where nothing tells the benchmark's task; reasoning is prediction or behavior there
_KINDS = {"perception": "perception", "reasoning": "prediction", "planning": "planning"}


def read_predictions(samples: Sequence[Sample]) -> list[Answer]:
    """Read the replies that the rows of a data file carry; ValueError: a row has no text `pred`."""
    for sample in samples:
        if not isinstance(sample.meta.get("pred"), str):
            raise ValueError(
                f"{sample.source or sample.id}: expected a reply under `pred`, got"
                f" {sample.meta.get('pred')!r:.40}; predictions are DriveBench rows with `pred`"
            )
    return [answer_of(sample, sample.meta["pred"]) for sample in samples]


def write_predictions(
    samples: Sequence[Sample], answers: Sequence[Answer], root: Path, path: Path
) -> None:
    """Write one run's answers, in the order of the samples, as rows of the public evaluator.

    The rows' image paths start from `root`, where an image is below it.
    """
    rows = [_row(s, a.reply, root) for s, a in zip(samples, answers, strict=True)]
    write_json(path, rows)


def _row(sample: Sample, reply: str, root: Path) -> dict[str, Any]:
    said = sample.meta.get("question_type") or _KINDS.get(sample.capability or "")
    row = {
        "id": sample.id,
        "scene_token": sample.scene,
        "frame_token": sample.frame,
        "question_type": task_of(sample) or said,
        "question": sample.question,
        "answer": sample.answer,
        "tag": sample.meta.get("tag"),
        "image_path": {camera: _below(root, file) for camera, file in sample.images.items()},
        "template": sample.template,
        "pred": reply,
    }
    return {key: value for key, value in row.items() if value is not None}


def _below(root: Path, file: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)
