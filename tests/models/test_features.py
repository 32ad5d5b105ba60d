"""Visual tokens and their cache."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from drivekd.models import tiny
from drivekd.models.features import FeatureCache, feature_bytes, image_features, levels
from drivekd.models.images import token_grid
from drivekd.models.vlm import vision_parts


@pytest.fixture
def paths(pictures):
    return [pictures("x"), pictures("y"), pictures("wide", (96, 48)), pictures("x")]


def frozen(vlm):
    """A model of the same family that a test may change."""
    made = tiny.tiny_vlm(vlm.family.name, vision_hidden=32, image_size=48, vision_layers=1)
    for part in vision_parts(made):
        part.requires_grad_(False)
    return made


def test_cached_tokens_equal_live_ones(vlm, paths):
    with torch.no_grad():
        live = image_features(vlm, paths)
        # Three at a time: what a picture gives does not depend on its neighbours.
        cached = FeatureCache(chunk=3).features(vlm, paths)
    for path, one, two in zip(paths, live, cached, strict=True):
        rows, columns = token_grid(vlm, path)
        assert one.shape == (rows * columns, 64 * levels(vlm))
        assert torch.allclose(one, two, atol=1e-5)


def test_each_picture_runs_once(vlm, paths):
    own, cache, runs = frozen(vlm), FeatureCache(), []
    vision_parts(own)[0].register_forward_hook(lambda *_: runs.append(1))
    for _ in range(3):
        cache.features(own, paths)
    assert len(runs) == 1
    cache.features(own, paths[:1])
    assert len(runs) == 1


def test_a_picture_that_was_replaced_is_seen_anew(vlm, tmp_path):
    """Of the same name and size: raw formats have no others."""
    own, cache, path = frozen(vlm), FeatureCache(), tmp_path / "front.bmp"
    seen = []
    for grey in (40, 200):
        Image.new("RGB", (48, 48), (grey, grey, grey)).save(path)
        seen.append(cache.features(own, [path])[0])
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)
    assert torch.allclose(seen[1], image_features(own, [path])[0], atol=1e-5)


def test_the_memory_foretold_is_the_memory_taken(vlm, paths):
    own = frozen(vlm)
    kept = FeatureCache().features(own, paths)
    foretold = feature_bytes(own, [token_grid(own, path) for path in paths])
    assert foretold == sum(tokens.numel() * tokens.element_size() for tokens in kept)


def test_only_deepstack_adds_to_the_tokens(vlm):
    assert levels(vlm) == (3 if vlm.family.name == "qwen3_vl" else 1)


def test_models_do_not_mix(vlm, paths):
    one, two, cache = frozen(vlm), vlm, FeatureCache()
    with torch.no_grad():
        first, second = (cache.features(m, paths)[0] for m in (one, two))
        assert not torch.allclose(first[:, :64].cpu(), second[:, :64].cpu())
        assert torch.allclose(second, image_features(two, paths)[0], atol=1e-5)


def test_entries_are_dropped_when_the_tower_changes(vlm, paths):
    own, cache = frozen(vlm), FeatureCache()
    before = cache.features(own, paths)[0].clone()
    with torch.no_grad():
        next(vision_parts(own)[-1].parameters()).mul_(1.5)
    after = cache.features(own, paths)[0]
    assert not torch.allclose(before, after)
    assert torch.allclose(after, image_features(own, paths)[0], atol=1e-5)


def test_trained_tower_is_refused(vlm, paths):
    own = frozen(vlm)
    vision_parts(own)[0].requires_grad_(True)
    with pytest.raises(ValueError, match="gradient"):
        FeatureCache().features(own, paths)
    with torch.no_grad():
        FeatureCache().features(own, paths)
    assert image_features(own, paths)[0].requires_grad


def test_grey_and_other(vlm, paths):
    own = frozen(vlm)
    grey = FeatureCache("grey").features(own, paths)
    assert torch.equal(grey[0], grey[1])
    assert len(grey[2]) == len(image_features(own, paths[2:3])[0])
    other = FeatureCache("other", {paths[0]: paths[1]}).features(own, paths[:1])
    assert torch.allclose(other[0], image_features(own, paths[1:2])[0], atol=1e-5)
    assert not torch.allclose(grey[0], other[0])


def test_no_pictures_no_tokens(vlm):
    assert image_features(vlm, []) == []
    assert FeatureCache().features(frozen(vlm), []) == []


def counted(*models):
    """Runs of each model's tower so far."""
    counts = [0] * len(models)

    def count(number):
        counts[number] += 1

    for number, each in enumerate(models):
        vision_parts(each)[0].register_forward_hook(lambda *_, n=number: count(n))
    return counts


def test_of_models_that_are_alike_one_runs_until_it_is_another(vlm, paths):
    one, two, cache = frozen(vlm), frozen(vlm), FeatureCache(alike=True)
    counts = counted(one, two)
    first, second = (cache.features(each, paths) for each in (one, two))
    assert counts == [1, 0]
    assert all(map(torch.equal, first, second))
    with torch.no_grad():
        next(vision_parts(two)[-1].parameters()).mul_(1.5)
    changed = cache.features(two, paths)[0]
    assert counts == [1, 1]
    assert torch.allclose(changed, image_features(two, paths)[0], atol=1e-5)
    assert not torch.allclose(changed, first[0])
    assert torch.equal(cache.features(one, paths)[0], first[0])
    assert counts == [1, 2]  # the one without a cache


def test_the_latest_pictures_are_kept_and_no_others(vlm, pictures):
    one, two = frozen(vlm), frozen(vlm)
    cache, counts = FeatureCache(alike=True, latest=True, chunk=1), counted(one, two)
    a, b, c = (pictures(name) for name in "abc")
    cache.features(one, [a, b, a])
    cache.features(two, [a, b])
    assert counts == [1, 0]
    found = cache.features(two, [c, b])  # together, as without a cache
    assert counts == [1, 1]
    assert all(map(torch.equal, found, image_features(frozen(vlm), [c, b])))
    cache.features(one, [b])  # alone, for its numbers hang on who runs beside it
    assert counts == [2, 1]


def test_the_latest_pictures_in_half_precision_are_others(vlm, paths):
    own, cache = frozen(vlm), FeatureCache(alike=True, latest=True)
    with torch.autocast(own.device.type, torch.bfloat16):
        half, live_half = cache.features(own, paths[:2]), image_features(own, paths[:2])
    whole = cache.features(own, paths[:2])
    assert all(map(torch.equal, half, live_half))
    assert all(map(torch.equal, whole, image_features(own, paths[:2])))
    assert not torch.equal(half[0].float(), whole[0])
