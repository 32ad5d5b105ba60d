"""Pre-training of a vision tower on dense labels: what each image cell shows, and which one it is.

The path is the real one (tower, pixel shuffle, projector); only the linear heads on the merged
cells are thrown away afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from drivekd.data.sample import CAMERAS
from drivekd.files.progress import track
from drivekd.models.vlm import Vlm, vision_parts
from drivekd.world.sight import ATTRIBUTES, GRID

CELLS = len(CAMERAS) * GRID * GRID
_NOTHING_WEIGHT = 0.3  # empty cells are many


@dataclass(frozen=True, slots=True)
class Seen:
    """Pictures of scenes with dense labels."""

    pictures: NDArray[np.uint8]  # [scenes, cameras, H, W, 3]
    labels: NDArray[np.int8]  # [scenes, cells, attributes], 0 = nothing to say


def read_seen(folder: Path, scenes: int | None = None) -> Seen:
    """Read the pictures and dense labels of a world data set, in the order of its seeds.

    Raises:
        ValueError: if the folder holds no scenes.
    """
    truths = sorted((folder / "truth").glob("*.json"), key=lambda p: int(p.stem))[:scenes]
    if not truths:
        raise ValueError(f"{folder}: no scenes; expected a folder written by `drivekd world make`")
    pictures, labels = [], []
    for path in track(truths, len(truths), "reading pictures"):
        views = folder / "images" / path.stem
        pictures.append([np.asarray(Image.open(views / f"{camera}.png")) for camera in CAMERAS])
        labels.append(json.loads(path.read_text())["cells"])
    shape = (len(truths), CELLS, len(ATTRIBUTES))
    return Seen(np.array(pictures, np.uint8), np.array(labels, np.int8).reshape(shape))


class Heads(nn.Module):
    """Linear read-outs of a visual token: one per attribute, and the index of its own cell."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = {name: len(values) + 1 for name, values in ATTRIBUTES.items()} | {"cell": CELLS}
        self.read = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})

    def forward(self, tokens: Float[Tensor, "s c d"]) -> dict[str, Tensor]:
        return {name: head(tokens) for name, head in self.read.items()}


def dense_loss(
    read: dict[str, Tensor], labels: Int[Tensor, "s c a"]
) -> tuple[Tensor, dict[str, float]]:
    """Sum of the mean cross-entropies of all attributes, and the accuracy of each.

    `kind` counts empty cells too, at a lower weight; the other attributes count where they apply.
    """
    device = labels.device
    total = torch.zeros((), device=device)
    accuracy = {}
    for i, name in enumerate(ATTRIBUTES):
        truth, logits = labels[..., i].reshape(-1), read[name].flatten(0, 1)
        if name == "kind":
            weight = torch.ones(logits.shape[-1], device=device)
            weight[0] = _NOTHING_WEIGHT
            total = total + functional.cross_entropy(logits, truth, weight)
        elif bool((truth > 0).any()):
            total = total + functional.cross_entropy(logits, truth.where(truth > 0, -100))
        said = truth > 0
        if bool(said.any()):
            accuracy[name] = float((logits.argmax(-1) == truth)[said].float().mean())
    own = torch.arange(CELLS, device=device).repeat(len(labels))
    logits = read["cell"].flatten(0, 1)
    accuracy["cell"] = float((logits.argmax(-1) == own).float().mean())
    return total + functional.cross_entropy(logits, own), accuracy


def visual_tokens(vlm: Vlm, pictures: NDArray[np.uint8]) -> Float[Tensor, "s c d"]:
    """Visual tokens of whole scenes [scenes, cells, width], with gradient where enabled."""
    processor = vlm.image_processor
    colours = processor.image_mean, processor.image_std
    mean, std = (torch.tensor(x, device=vlm.device) for x in colours)
    flat = torch.from_numpy(pictures).to(vlm.device).flatten(0, 1).float() / 255
    model: Any = vlm.model.get_submodule("model")
    output = model.get_image_features(pixel_values=((flat - mean) / std).permute(0, 3, 1, 2))
    tokens = getattr(output, "pooler_output", output)
    tokens = tokens if isinstance(tokens, Tensor) else torch.stack(list(tokens))
    return tokens.reshape(len(pictures), CELLS, -1)


def _jitter(pictures: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Shift by up to 2 px and change the brightness by up to a fifth; labels stay as they are."""
    dy, dx = rng.integers(-2, 3, size=2)
    moved = np.roll(pictures, (int(dy), int(dx)), axis=(2, 3)).astype(np.float32)
    gain = rng.uniform(0.8, 1.2, size=(len(pictures), 1, 1, 1, 1)).astype(np.float32)
    bright: NDArray[np.uint8] = np.clip(moved * gain, 0, 255).astype(np.uint8)
    return bright


def train_tower(
    vlm: Vlm,
    seen: Seen,
    *,
    steps: int,
    batch: int = 16,
    learning_rate: float = 1.5e-3,
    projector_only: bool = False,
    seed: int = 0,
) -> dict[str, float]:
    """Train tower and projector (or the projector alone) to tell what each cell shows.

    Returns:
        accuracies over the last fiftieth of the steps, per attribute and for the own cell.
    """
    tower, projector = vision_parts(vlm)
    heads = Heads(vlm.model.config.text_config.hidden_size).to(vlm.device)
    trained: Sequence[nn.Module] = (
        (projector, heads) if projector_only else (tower, projector, heads)
    )
    parameters = [p for module in trained for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.05
    )
    rng, last = np.random.default_rng([seed, 31]), []
    tower.requires_grad_(not projector_only)
    for step in track(range(steps), steps, "vision tower"):
        chosen = rng.integers(len(seen.pictures), size=batch)
        tokens = visual_tokens(vlm, _jitter(seen.pictures[chosen], rng))
        labels = torch.from_numpy(seen.labels[chosen]).long().to(vlm.device)
        loss, accuracy = dense_loss(heads(tokens), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step >= steps - max(steps // 50, 1):
            last.append(accuracy)
    return {k: float(np.mean([a[k] for a in last if k in a])) for k in last[-1]}
