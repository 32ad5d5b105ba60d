"""Pre-training of the vision tower: its loss, and that it learns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from world_models import tower

from drivekd.models.tiny import tiny_vlm
from drivekd.models.vlm import Vlm, vision_parts
from drivekd.world.sight import ATTRIBUTES

SCENES = 4


def small() -> Vlm:
    """Sixteen visual tokens for each camera."""
    return tiny_vlm(
        text_hidden=32,
        text_layers=1,
        vision_hidden=32,
        vision_layers=1,
        image_size=48,
        patch_size=6,
    )


@pytest.fixture
def seen() -> tower.Seen:
    rng = np.random.default_rng(3)
    pictures = rng.integers(0, 256, (SCENES, 6, 48, 48, 3), dtype=np.uint8)
    sizes = [len(values) + 1 for values in ATTRIBUTES.values()]
    labels = [rng.integers(0, size, (SCENES, tower.CELLS)) for size in sizes]
    return tower.Seen(pictures, np.stack(labels, -1).astype(np.int8))


def nll(logits: Tensor, truth: int) -> float:
    """-log softmax, one number at a time."""
    values = logits.detach().double().tolist()
    return math.log(sum(math.exp(v) for v in values)) - values[truth]


def test_the_loss_is_a_plain_loop(seen: tower.Seen) -> None:
    labels = torch.from_numpy(seen.labels[:2]).long()
    light = list(ATTRIBUTES).index("light")
    labels[..., light] = 0  # no scene has one: it must be left out, not become 0 / 0
    read = tower.Heads(8)(torch.randn(2, tower.CELLS, 8))
    expected = 0.0
    for i, name in enumerate(ATTRIBUTES):
        total = weight = 0.0
        for scene in range(2):
            for cell in range(tower.CELLS):
                truth = int(labels[scene, cell, i])
                share = 1.0 if truth > 0 else (0.3 if name == "kind" else 0.0)
                total += share * nll(read[name][scene, cell], truth)
                weight += share
        expected += total / weight if weight else 0.0
    own = [nll(read["cell"][s, c], c) for s in range(2) for c in range(tower.CELLS)]
    with torch.no_grad():
        loss, accuracy = tower.dense_loss(read, labels)
    assert float(loss) == pytest.approx(expected + float(np.mean(own)), rel=1e-5)
    kinds = labels[..., 0]
    right = (read["kind"].argmax(-1) == kinds)[kinds > 0].float().mean()
    assert accuracy["kind"] == pytest.approx(float(right))
    assert "light" not in accuracy


@pytest.mark.parametrize("projector_only", [False, True])
def test_the_loss_falls(
    seen: tower.Seen, monkeypatch: pytest.MonkeyPatch, projector_only: bool
) -> None:
    vlm, losses, plain = small(), [], tower.dense_loss

    def watched(read: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        loss, accuracy = plain(read, labels)
        losses.append(loss.item())
        return loss, accuracy

    monkeypatch.setattr(tower, "dense_loss", watched)
    before = [[p.clone() for p in part.parameters()] for part in vision_parts(vlm)]
    accuracy = tower.train_tower(
        vlm, seen, steps=12, batch=4, learning_rate=5e-3, projector_only=projector_only
    )
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.2
    assert set(accuracy) == {*ATTRIBUTES, "cell"}
    moved = [
        any(not torch.equal(p, q) for p, q in zip(part.parameters(), old, strict=True))
        for part, old in zip(vision_parts(vlm), before, strict=True)
    ]
    assert moved == [not projector_only, True]
