"""Whitening, region tokens and pointing: what makes a tiny model look where it is asked to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from world_models import grounding
from world_models.tower import CELLS, visual_tokens

from drivekd.data.cameras import prompt
from drivekd.data.sample import CAMERAS, Message, Sample
from drivekd.distill.teachers.attention import capture, install
from drivekd.models.batch import Batch, collate, forward, rows_of
from drivekd.models.encode import IGNORE, encode
from drivekd.models.features import FeatureCache
from drivekd.models.tiny import tiny_vlm
from drivekd.models.vlm import Vlm, decoder_layers, vision_parts

SIDE = 48


@pytest.fixture
def vlm() -> Vlm:
    """Sixteen visual tokens for each camera, as many as there are region tokens."""
    return tiny_vlm(
        text_hidden=32,
        text_layers=2,
        vision_hidden=32,
        vision_layers=1,
        image_size=SIDE,
        patch_size=6,
        initializer_range=0.1,
    )


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (3, 6, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def scenes(pictures: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> list[list[Sample]]:
    folder = tmp_path_factory.mktemp("pictures")
    return [
        [question(folder, s, views, region) for region in (3, 40, 77)]
        for s, views in enumerate(pictures)
    ]


def question(folder: Path, scene: int, views: np.ndarray, region: int) -> Sample:
    images = {}
    for camera, pixels in zip(CAMERAS, views, strict=True):
        images[camera] = folder / f"{scene}_{camera}.png"
        Image.fromarray(pixels).save(images[camera])
    turns = (
        Message("user", prompt(f"colour <r{region}>", CAMERAS)),
        Message("assistant", ("red", "blue", "grey")[scene]),
    )
    return Sample(f"{scene}/{region}", turns, images, source="test:1")


def tokens_of(vlm: Vlm, pictures: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return visual_tokens(vlm, pictures)


@pytest.mark.parametrize("power", [0.0, 0.75, 1.0])
def test_whitening_through_the_projector(vlm: Vlm, pictures: np.ndarray, power: float) -> None:
    before = tokens_of(vlm, pictures)
    grounding.whiten(vlm, before, power)
    after = tokens_of(vlm, pictures).flatten(0, 1).double()
    assert float(after.square().mean().sqrt()) == pytest.approx(grounding.TOKEN_SCALE, rel=1e-3)
    assert float(after.mean(0).abs().max()) < 1e-3
    old = torch.linalg.eigvalsh(torch.cov(before.flatten(0, 1).double().T))
    new = torch.linalg.eigvalsh(torch.cov(after.T))
    assert old.min() > 1e-6 * old.max()  # nothing is clamped, so the powers are exact
    expected = old ** (1 - power)
    torch.testing.assert_close(new / new.sum(), expected / expected.sum(), rtol=2e-2, atol=1e-5)


def test_region_tokens_start_as_their_cells(vlm: Vlm) -> None:
    tokens = torch.randn(5, CELLS, 32) + torch.randn(CELLS, 32)
    grounding.plant_regions(vlm, tokens)
    ids = [vlm.tokenizer.convert_tokens_to_ids(f"<r{cell}>") for cell in range(CELLS)]
    weight = vlm.model.get_input_embeddings().weight.detach()
    for cell, token in enumerate(ids):
        mean = sum(tokens[scene, cell] for scene in range(5)) / 5
        scaled = mean * grounding.TOKEN_SCALE / mean.square().mean().sqrt()
        torch.testing.assert_close(weight[token], scaled)
    others = torch.ones(len(weight), dtype=torch.bool)
    others[ids] = False
    assert float(weight[others].std()) == pytest.approx(grounding.TEXT_SCALE, rel=0.05)


def test_pointing_reads_the_own_cell() -> None:
    n, regions = 7, torch.tensor([50, 51, 52])
    ids = torch.zeros(2, n, dtype=torch.long)
    ids[0, 5], ids[0, 6], ids[1, 6] = 52, 50, 51
    is_image = torch.zeros(2, n, dtype=torch.bool)
    is_image[0, [1, 3, 4]] = is_image[1, [0, 2, 5]] = True
    everything = torch.ones(2, n, dtype=torch.bool)
    batch = Batch(
        input_ids=ids,
        position_ids=torch.arange(n).expand(2, n),
        attention_mask=everything[:, None, None].expand(2, 1, n, n),
        labels=torch.full((2, n), IGNORE),
        is_image=is_image,
        valid=everything,
        images=((), ()),
        row=torch.arange(2),
        members=everything,
        samples=(),
        places=(),
    )
    maps = torch.arange(2.0 * n * n).reshape(2, n, n)
    on_cell = grounding.pointing(batch, maps, regions)
    assert on_cell.tolist() == [maps[0, 5, 4], maps[0, 6, 1], maps[1, 6, 2]]


def test_the_answer_follows_the_region_token(vlm: Vlm, scenes: list[list[Sample]]) -> None:
    sample = scenes[1][2]
    made, whole = grounding.one_hop(vlm, sample), encode(vlm, sample)
    answer = vlm.tokenizer.encode("blue", add_special_tokens=False)
    start = len(made.input_ids) - len(answer)
    assert made.input_ids[start:].tolist() == answer == made.labels[start:].tolist()
    assert bool((made.labels[:start] == IGNORE).all())
    assert int(made.input_ids[start - 1]) == vlm.tokenizer.convert_tokens_to_ids("<r77>")
    assert torch.equal(made.input_ids[: made.prefix], whole.input_ids[: whole.prefix])
    assert int(made.is_image.sum()) == CELLS == int(made.is_image[: made.prefix].sum())


def on_cells(vlm: Vlm, scenes: Sequence[Sequence[Sample]], cache: FeatureCache) -> float:
    install(vlm.model)
    asked = [grounding.one_hop(vlm, sample) for scene in scenes for sample in scene]
    batch = collate(vlm, asked, rows_of(asked))
    with torch.no_grad(), capture(decoder_layers(vlm), {0: None}) as maps:
        forward(vlm, batch, cache)
    return float(grounding.pointing(batch, maps[0], grounding.region_ids(vlm)).mean())


def test_alignment_turns_attention_to_the_cell(
    vlm: Vlm, pictures: np.ndarray, scenes: list[list[Sample]]
) -> None:
    grounding.whiten(vlm, tokens_of(vlm, pictures))
    grounding.plant_regions(vlm, tokens_of(vlm, pictures))
    cache = FeatureCache()
    before = on_cells(vlm, scenes, cache)
    eyes = [p.clone() for part in vision_parts(vlm) for p in part.parameters()]
    found = grounding.align(vlm, scenes, cache, steps=25, rows=2, learning_rate=1e-2)
    after = on_cells(vlm, scenes, cache)
    assert after > 3 * before
    assert found.on_cell > 2 * before
    assert np.isfinite(found.loss)
    kept = [p for part in vision_parts(vlm) for p in part.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(eyes, kept, strict=True))
