"""What makes a tiny stock VLM look where a question points, all of it in stock parameters.

Three steps between vision pre-training and questions: partial whitening of the visual tokens
(their position drowns their content), region tokens that start as the mean visual token of their
cell and learn in the first layer to attend to it, and questions about cells whose answer follows
directly after the region token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from drivekd.data.sample import Sample
from drivekd.distill.teachers.attention import capture, install
from drivekd.files.progress import track
from drivekd.models.batch import Batch, Encoded, answer_loss, collate, encode, forward, rows_of
from drivekd.models.encode import IGNORE
from drivekd.models.features import FeatureCache
from drivekd.models.tiny import REGION_TOKENS
from drivekd.models.vlm import Vlm, decoder_layers, vision_parts

TOKEN_SCALE = 0.5  # root mean square of visual and region tokens
TEXT_SCALE = 0.2  # standard deviation of all other input embeddings at the start


def whiten(vlm: Vlm, tokens: Float[Tensor, "s c d"], power: float = 0.75) -> None:
    """Fold a partial whitening of the visual tokens into the projector's last linear map.

    x ← s · Σ^(-power/2) (x - mean), Σ the covariance over scenes and cells, s such that the root
    mean square becomes `TOKEN_SCALE`; power 0 only centres and scales, 1 whitens fully [ours].
    """
    flat = tokens.flatten(0, 1).double()
    mean = flat.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((flat - mean).T))
    scale = values.clamp_min(1e-6 * values.max()) ** (-power / 2)
    change = vectors @ torch.diag(scale) @ vectors.T
    size = ((flat - mean) @ change).square().mean().sqrt()
    change = change * TOKEN_SCALE / size
    linears = [m for m in vision_parts(vlm)[1].modules() if isinstance(m, nn.Linear)]
    last = linears[-1]
    with torch.no_grad():
        last.bias.copy_((change @ (last.bias.double() - mean)).to(last.bias))
        last.weight.copy_((change @ last.weight.double()).to(last.weight))


def plant_regions(vlm: Vlm, tokens: Float[Tensor, "s c d"], seed: int = 0) -> None:
    """Start each region token as the mean visual token of its cell, over scenes.

    Args:
        vlm: its input embeddings are overwritten.
        tokens: whitened visual tokens.
        seed: of the other embeddings.
    """
    ids = region_ids(vlm)
    weight: Any = vlm.model.get_input_embeddings().weight
    means = tokens.mean(0)
    means = means * TOKEN_SCALE / means.square().mean(-1, keepdim=True).sqrt()
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=drawn) * TEXT_SCALE)
        weight[ids] = means.to(weight)


def region_ids(vlm: Vlm) -> Int[Tensor, " cells"]:
    """Ids of the region tokens, in the order of the cells."""
    return torch.tensor(vlm.tokenizer.convert_tokens_to_ids(list(REGION_TOKENS)))


@dataclass(frozen=True, slots=True)
class Grounding:
    """How well a model points and reads: mean attention on the right cell, loss of the answers."""

    on_cell: float
    loss: float


def one_hop(vlm: Vlm, sample: Sample) -> Encoded:
    """A question about a cell whose answer follows its region token directly, without a turn.

    With any token in between, a tiny model learns nothing at first [ours].
    """
    whole = encode(vlm, sample)
    asked = vlm.tokenizer.encode(sample.question, add_special_tokens=False)
    answer = vlm.tokenizer.encode(sample.answer or "", add_special_tokens=False)
    own = torch.tensor([*asked, *answer])
    labels = torch.tensor([IGNORE] * len(asked) + answer)
    head, prefix = whole.input_ids[: whole.prefix], whole.prefix
    return Encoded(
        input_ids=torch.cat([head, own]),
        labels=torch.cat([torch.full((prefix,), IGNORE), labels]),
        is_image=torch.cat([whole.is_image[:prefix], torch.zeros(len(own), dtype=torch.bool)]),
        prefix=prefix,
        images=whole.images,
        grids=whole.grids,
        sample=sample,
    )


def pointing(
    batch: Batch, attention: Float[Tensor, "b n n"], regions: Int[Tensor, " cells"]
) -> Float[Tensor, " m"]:
    """Attention of every region token in the questions to the visual token of its own cell."""
    where = (batch.input_ids[:, :, None] == regions).nonzero()  # (row, position, cell)
    images = batch.is_image.nonzero()[:, 1].reshape(len(batch.input_ids), -1)
    row, position, cell = where.unbind(1)
    return attention[row, position, images[row, cell]]


def align(
    vlm: Vlm,
    scenes: Sequence[Sequence[Sample]],
    cache: FeatureCache,
    *,
    steps: int,
    rows: int = 4,
    answers: bool = True,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> Grounding:
    """Teach the decoder to point, and unless `answers` is off to read what it points at.

    The loss is the answers' cross-entropy plus -log of the first layer's head-mean attention from
    each region token to its cell [ours]. Vision stays as it is.

    Args:
        vlm: trained in place.
        scenes: questions about cells, grouped by scene.
        cache: visual tokens.
        steps: optimizer steps.
        rows: scenes per step.
        answers: also learn to answer.
        learning_rate: the highest of the one-cycle schedule.
        seed: of the draw of scenes.
    """
    install(vlm.model)
    for part in vision_parts(vlm):
        part.requires_grad_(False)
    parameters = [p for p in vlm.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.1
    )
    regions, rng = region_ids(vlm).to(vlm.device), np.random.default_rng([seed, 37])
    history: list[tuple[float, float]] = []
    for _ in track(range(steps), steps, "alignment"):
        chosen = rng.integers(len(scenes), size=rows)
        encoded = [one_hop(vlm, s) for i in chosen for s in scenes[i]]
        batch = collate(vlm, encoded, rows_of(encoded))
        with capture(decoder_layers(vlm), {0: None}) as maps:
            hidden = forward(vlm, batch, cache)
        on_cell = pointing(batch, maps[0], regions)
        loss = -(on_cell + 1e-6).log().mean()
        read = answer_loss(vlm, hidden, batch).mean()
        optimizer.zero_grad()
        (loss + read if answers else loss).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        history.append((on_cell.mean().item(), read.item()))
    on, losses = zip(*history[-max(steps // 20, 1) :], strict=True)
    return Grounding(float(np.mean(on)), float(np.mean(losses)))
