"""Published models, built without weights: parameters as published, windows of the method."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from drivekd import recipe as recipes
from drivekd.distill.trained import trained
from drivekd.method.signals.layers import group_layers, resolve
from drivekd.models import published, tiny
from drivekd.models.vlm import Vlm, decoder_layers

INTERNVL = "OpenGVLab/InternVL3-"


@cache
def built(name: str) -> Vlm:
    return published.skeleton(published.config_of(name), name)


@pytest.mark.parametrize("name", published.PUBLISHED)
def test_as_many_parameters_as_published(name: str) -> None:
    row, vlm = published.PUBLISHED[name], built(name)
    assert all(p.is_meta for p in vlm.model.parameters())
    assert published.parameters(vlm) / 1e9 == pytest.approx(row.billions, rel=0.01)
    assert len(decoder_layers(vlm)) == row.text["num_hidden_layers"]


@pytest.mark.parametrize(
    ("student", "teacher", "width"),
    [
        ("1B", "8B", 5),
        ("1B", "14B", 25),
        ("1B", "38B", 41),
        ("2B", "8B", 1),
        ("2B", "14B", 21),
        ("2B", "38B", 37),
    ],
)
def test_windows_of_the_paper(student: str, teacher: str, width: int) -> None:
    """[METHOD §3] Layers 1 … penultimate of both, grouped."""
    own, theirs = (
        resolve("1..penultimate", len(decoder_layers(built(f"{INTERNVL}{size}-hf"))))
        for size in (student, teacher)
    )
    windows = group_layers(own, theirs)
    assert {len(window) for window in windows.values()} == {width}
    assert (windows[own[0]][0], windows[own[-1]][-1]) == (theirs[0], theirs[-1])


def test_a_deeper_student_is_grouped_proportionally() -> None:
    own, theirs = (
        resolve("1..penultimate", len(decoder_layers(built(f"Qwen/Qwen2.5-VL-{size}-Instruct"))))
        for size in ("3B", "7B")
    )
    assert (len(own), len(theirs)) == (35, 27)
    windows = group_layers(own, theirs, "proportional")
    assert {layer for window in windows.values() for layer in window} == set(theirs)


@pytest.mark.parametrize(
    ("name", "share"),
    # Language model without input embeddings, with its head; tied, with the embeddings.
    [
        (f"{INTERNVL}1B-hf", 0.527),
        (f"{INTERNVL}8B-hf", 0.89),
        ("Qwen/Qwen2.5-VL-3B-Instruct", 0.82),
    ],
)
def test_share_that_is_trained(name: str, share: float) -> None:
    recipe = recipes.parse({"name": "r", "student": name, "output_dir": "o"})
    vlm = built(name)
    _, found = trained(recipe, vlm)
    part = sum(p.numel() for p in found) / published.parameters(vlm)
    assert part == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_skeleton_has_the_shapes_of_its_model(kind: str) -> None:
    made = tiny.tiny_vlm(kind)
    bare = published.skeleton(made.model.config, "tiny")
    assert bare.family == made.family
    shapes = [{n: p.shape for n, p in v.model.named_parameters()} for v in (made, bare)]
    assert shapes[0] == shapes[1]
    assert {p.dtype for p in bare.model.parameters()} == {torch.float32}
