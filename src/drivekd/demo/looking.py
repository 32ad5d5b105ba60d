"""Text→vision attention of a model as it begins to answer, camera by camera."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from drivekd.data.sample import Sample
from drivekd.data.tags import read_tags
from drivekd.distill.teachers import attention
from drivekd.evaluate.answers.answer import answer_of
from drivekd.files.progress import track
from drivekd.files.writing import write_json
from drivekd.method.signals.layers import resolve
from drivekd.models.batch import collate, forward
from drivekd.models.encode import Encoded, encode
from drivekd.models.features import FeatureCache
from drivekd.models.generate import evaluating, generate
from drivekd.models.vlm import Vlm, decoder_layers

#: `answer`: the position that predicts the answer's first token. `question`: the mean over the
#: question's own tokens, those behind the last image.
Rows = Literal["answer", "question"]


@dataclass(frozen=True, slots=True)
class View:
    """The attention to show: a layer specification of one layer, and the text rows."""

    layer: str | int = "penultimate"
    rows: Rows = "answer"


#: Views of each capability: the layer from which the method takes its signal. In the first layer
#: the answer's position knows nothing of the question yet, so the question's rows count.
VIEWS: Mapping[str, View] = {
    "perception": View("first", "question"),
    "reasoning": View("penultimate", "answer"),
    "planning": View("penultimate", "answer"),
}


@dataclass(frozen=True, slots=True)
class Look:
    """Attention paid to each camera.

    Attributes:
        maps: camera to shares of attention on its grid of visual tokens [rows, columns]; all
            cameras together sum to `share`.
        layer: counted from 1.
        layers: how many the model has.
        share: attention paid to images at all; the rest goes to text.
    """

    maps: Mapping[str, NDArray[np.float32]]
    layer: int
    layers: int
    share: float


def look(
    vlm: Vlm, sample: Sample, view: View | None = None, *, features: FeatureCache | None = None
) -> Look:
    """Read the head-averaged attention of one layer over the visual tokens of a question.

    One forward pass over the prompt without its answer; the model's text attention is switched to
    the tapped SDPA, whose results are those of plain SDPA bit for bit. `features` holds visual
    tokens already computed.

    Raises:
        ValueError: no images, or a layer specification that is not one layer of this model.
    """
    view = view or View()
    if not sample.images:
        raise ValueError(
            f"sample {sample.id!r} has no images, so there is nothing to look at; give at least one"
        )
    layers = decoder_layers(vlm)
    chosen = resolve(view.layer, len(layers))
    if len(chosen) != 1:
        raise ValueError(
            f"layer {view.layer!r}: expected one layer to draw, got {len(chosen)} of"
            f" {len(layers)}; choose a number, first or penultimate"
        )
    encoded = encode(vlm, sample, add_answer=False)
    rows = _rows(encoded, view.rows).to(vlm.device)
    batch = collate(vlm, [encoded])
    attention.install(vlm.model)
    capture = attention.capture(layers, {chosen[0]: rows})
    with torch.no_grad(), evaluating(vlm.model), capture as maps:
        forward(vlm, batch, features)
    seen = maps[chosen[0]][0].mean(dim=0).cpu()[encoded.is_image].numpy().astype(np.float32)
    by_camera = _split(seen, tuple(sample.images), encoded.grids)
    return Look(by_camera, chosen[0] + 1, len(layers), float(seen.sum()))


def _rows(encoded: Encoded, rows: Rows) -> torch.Tensor:
    last = len(encoded.input_ids) - 1
    if rows == "answer":
        return torch.tensor([last])
    behind = torch.arange(encoded.prefix or 0, last + 1)
    return behind[~encoded.is_image[behind]]


def _split(
    seen: NDArray[np.float32], cameras: Sequence[str], grids: Sequence[tuple[int, int]]
) -> dict[str, NDArray[np.float32]]:
    parts, start = {}, 0
    for camera, (rows, columns) in zip(cameras, grids, strict=True):
        parts[camera] = seen[start : start + rows * columns].reshape(rows, columns)
        start += rows * columns
    assert start == len(seen), "grids do not cover the visual tokens"
    return parts


def attention_cases(
    models: Mapping[str, Vlm | Mapping[str, Vlm]],
    samples: Sequence[Sample],
    folder: Path,
) -> None:
    """Let several models answer and look at the same questions, for the page to draw.

    Writes `cases.json` and `maps.npz`, as drivekd.report.page describes them, into the folder
    `attention/` of a run. Arms are shown in their order; of an arm of several teachers, a mapping
    from capability to model, the teacher of the question's capability answers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cache = FeatureCache()
    cases: list[dict[str, Any]] = []
    arrays: dict[str, NDArray[np.float32]] = {}
    for number, sample in enumerate(track(samples, label="looking")):
        view = VIEWS.get(sample.capability or "", View())
        arms: dict[str, Any] = {}
        for arm, model in models.items():
            vlm = model if isinstance(model, Vlm) else model.get(sample.capability or "")
            if vlm is None:
                continue
            reply = generate(vlm, [sample], features=cache)[0]
            seen = look(vlm, sample, view, features=cache)
            arrays |= {f"{number}/{arm}/{camera}": grid for camera, grid in seen.maps.items()}
            answer = {"reply": reply, "correct": answer_of(sample, reply).correct}
            where = {"layer": seen.layer, "layers": seen.layers, "share": seen.share}
            arms[arm] = answer | where
        cases.append(_case(sample, view, arms, folder.parent))
    np.savez_compressed(folder / "maps.npz", allow_pickle=False, **arrays)
    write_json(folder / "cases.json", cases)


def _case(sample: Sample, view: View, arms: Mapping[str, Any], run: Path) -> dict[str, Any]:
    return {
        "id": sample.id,
        "capability": sample.capability,
        "template": sample.template,
        "question": sample.question,
        "expected": sample.answer,
        "rows": view.rows,
        "images": _relative(sample.images, run),
        "tags": _tags(sample.question),
        "arms": dict(arms),
    }


def write_scenes(samples: Sequence[Sample], path: Path) -> None:
    """Write `scenes.json` of a run: the key frames of samples with their tags and questions."""
    frames: dict[str, list[Sample]] = {}
    for sample in samples:
        frames.setdefault(sample.frame or sample.scene or sample.id, []).append(sample)
    write_json(path, [_scene(frame, group, path.parent) for frame, group in frames.items()])


def _scene(frame: str, samples: Sequence[Sample], run: Path) -> dict[str, Any]:
    images = {camera: path for sample in samples for camera, path in sample.images.items()}
    # Every question numbers its objects anew: the place is what tells one thing from another.
    tags = {(t["camera"], t["x"], t["y"]): t for s in samples for t in _tags(s.question)}
    names = ("capability", "template", "question", "answer")
    questions = [{name: getattr(sample, name) for name in names} for sample in samples]
    return {
        "frame": frame,
        "images": _relative(images, run),
        "tags": list(tags.values()),
        "questions": questions,
    }


def _tags(text: str) -> list[dict[str, Any]]:
    """Return the tags in fractions of the picture, which can be drawn."""
    return [asdict(tag) for tag in read_tags(text) if tag.unit == "fraction"]


def _relative(images: Mapping[str, Path], run: Path) -> dict[str, str]:
    return {
        camera: Path(os.path.relpath(path.resolve(), run.resolve())).as_posix()
        for camera, path in images.items()
    }
