"""What one streaming pass keeps, beside whole states and eager attention of every sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.runs import CAPABILITIES, measured, tiny_student, write_data

from drivekd.data.formats.readers import read
from drivekd.data.paraphrases import paraphrased
from drivekd.data.sample import Message, Sample
from drivekd.distill.teachers.teacher import freeze
from drivekd.models.batch import IGNORE, collate, embed
from drivekd.models.encode import encode
from drivekd.models.vlm import Vlm, decoder_layers, language_model, lm_head
from drivekd.study.curves import unit
from drivekd.study.forward import Reading, read_margins, read_row
from drivekd.study.panels import panels

LAYERS = 4
READINGS: tuple[Reading, ...] = ("usual", "token_wise", "pooled")


def teacher(family: str = "internvl") -> Vlm:
    return tiny_student(seed=3, family=family, text_layers=LAYERS, initializer_range=0.2)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    return list(read(write_data(tmp_path)))


def whole(vlm: Vlm, sample: Sample, reading: Reading) -> dict[str, np.ndarray]:
    """One sample alone, eager, everything kept; then the formulas in double precision."""
    vlm.model.set_attn_implementation("eager")
    encoded = encode(vlm, sample)
    batch = collate(vlm, [encoded])
    paths = list(batch.images[0])
    n = len(encoded.input_ids)
    mask = torch.zeros(n, n).masked_fill(~torch.ones(n, n).tril().bool(), -torch.inf)
    inputs: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        for layer in decoder_layers(vlm)
    ]
    with torch.no_grad():
        ran: Any = language_model(vlm)(
            **embed(vlm, batch.input_ids, batch.is_image, paths, None),
            attention_mask=mask[None, None],
            position_ids=batch.position_ids,
            output_hidden_states=True,
            output_attentions=True,
            use_cache=False,
        )
        answers = (encoded.labels != IGNORE).nonzero().squeeze(1)
        logits = lm_head(vlm)(ran.last_hidden_state[0, answers - 1]).double()
    for hook in hooks:
        hook.remove()
    states = torch.cat([*inputs, ran.last_hidden_state]).double().numpy()
    if vlm.family.name != "qwen3_vl":  # whose deepstack adds to states between two layers
        assert (states == torch.cat(ran.hidden_states).double().numpy()).all()
    maps = torch.cat(ran.attentions).double().mean(dim=1).numpy()
    image = encoded.is_image.numpy()
    behind = np.arange(n) >= encoded.prefix
    rows = {"own": behind, "asking": behind & (np.arange(n) < int(answers[0]))}
    best = logits.softmax(dim=1).topk(2, dim=1).values
    return {
        "margins": (best[:, 0] - best[:, 1]).numpy()[:-1],
        **formulas(states, maps, image, rows, reading),
    }


def formulas(
    states: np.ndarray,
    maps: np.ndarray,
    image: np.ndarray,
    some: dict[str, np.ndarray],
    reading: Reading,
) -> dict[str, np.ndarray]:
    tokens = unit(states) if reading == "token_wise" else states
    text, vision = tokens[:, ~image].mean(axis=1), tokens[:, image].mean(axis=1)
    adjacent = (unit(states[1:]) * unit(states[:-1])).sum(axis=2).mean(axis=1)
    if reading == "pooled":
        mean = unit(states.mean(axis=1))
        adjacent = (mean[1:] * mean[:-1]).sum(axis=1)
    pairs = (unit(text) * unit(vision)).sum(axis=1)
    if reading == "token_wise":
        pairs = (text * vision).sum(axis=1)
    profile = profile_of(maps, ~image, image, reading)
    return {
        "adjacent": adjacent,
        "vision_text": pairs,
        "hidden": text[1:],
        "own_hidden": tokens[1:, some["own"]].mean(axis=1),
        "own_attention": profile_of(maps, some["own"], image, reading),
        "asking": profile_of(maps, some["asking"], image, reading),
        "grid": profile.reshape(len(profile), 2, -1).mean(axis=1),
        "share": maps[:, ~image][:, :, image].sum(axis=2).mean(axis=1),
    }


def profile_of(
    maps: np.ndarray, rows: np.ndarray, image: np.ndarray, reading: Reading
) -> np.ndarray:
    seen = maps[:, rows][:, :, image]
    if reading == "token_wise":
        seen = seen[:, seen[0].sum(axis=1) > 0]
        seen = seen / seen.sum(axis=2, keepdims=True)
    found: np.ndarray = seen.mean(axis=1)
    return found


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("family", ["internvl", "qwen2_5_vl", "qwen3_vl"])
def test_a_shared_row_gives_what_single_samples_give_in_full(
    samples: list[Sample], family: str, reading: Reading
) -> None:
    vlm = freeze(teacher(family))
    encoded = [encode(vlm, sample) for sample in samples[:3]]
    found = read_row(vlm, encoded, reading=reading)
    apart = read_margins(vlm, encoded)
    plain = teacher(family)
    for sample, seen, margins in zip(samples, found, apart, strict=False):
        expected = whole(plain, sample, reading)
        for name, value in expected.items():
            got = getattr(seen, name)
            assert got.shape == value.shape, name
            assert np.abs(got - value).max() < 1e-6 * max(1, np.abs(value).max()), name
        assert margins == pytest.approx(seen.margins, abs=1e-6)


def with_wordings(samples: list[Sample]) -> list[Sample]:
    """Every second question in two more wordings."""
    words = ("Please tell: {}", "{} Answer shortly.")
    return [
        replace(s, paraphrases=tuple(w.format(s.question) for w in words)) if i % 2 == 0 else s
        for i, s in enumerate(samples)
    ]


def test_streamed_curves_are_those_of_all_features_at_once(samples: list[Sample]) -> None:
    samples = with_wordings(samples)
    sums = measured(freeze(teacher()), samples)
    curves = panels(sums, LAYERS, seed=0, draws=3).curves
    plain = teacher()
    kept = [[whole(plain, each, "usual") for each in paraphrased(s)] for s in samples]
    expected = dict(brute_force(samples, kept))
    assert set(curves) == set(expected)
    for name, value in expected.items():
        assert np.allclose(curves[name].mean, value, atol=1e-6, equal_nan=True), name


def brute_force(samples: list[Sample], kept: list[list[Any]]) -> Iterator[tuple[str, np.ndarray]]:
    first = [each[0] for each in kept]
    for name in ("adjacent", "vision_text", "share"):
        yield name, np.mean([each[name] for each in first], axis=0)
    for capability in CAPABILITIES:
        own = [i for i, s in enumerate(samples) if s.capability == capability]
        for kind, feature in (("attention", "grid"), ("hidden", "hidden")):
            cosines = [
                cosine(first[i][feature], first[j][feature]) for i, j in combinations(own, 2)
            ]
            yield f"intra/{kind}/{capability}", np.mean(cosines, axis=0)
    for group in ("all", *CAPABILITIES):
        own = [i for i, s in enumerate(samples) if group in ("all", s.capability)]
        for kind in ("attention", "hidden"):
            spreads = [spread(kept[i], f"own_{kind}") for i in own if len(kept[i]) > 1]
            if len(spreads) > 1:
                yield f"dispersion/{kind}/{group}", np.mean(spreads, axis=0)
    places: list[list[float]] = [[] for _ in range(10)]
    for each in first:
        for j, margin in enumerate(each["margins"]):
            places[10 * j // len(each["margins"])].append(margin)
    yield "margin/driving", np.array([np.mean(p) if p else np.nan for p in places])


def cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    found: np.ndarray = (unit(one) * unit(other)).sum(axis=1)
    return found


def spread(wordings: list[Any], kind: str) -> np.ndarray:
    pairs = [1 - cosine(a[kind], b[kind]) for a, b in combinations(wordings, 2)]
    found: np.ndarray = np.mean(pairs, axis=0)
    return found


def test_a_question_without_pictures_has_no_attention_to_them(samples: list[Sample]) -> None:
    vlm = freeze(teacher())
    plain = Sample("text", (Message("user", "Which colour?"), Message("assistant", "red 1")), {})
    (seen,) = read_row(vlm, [encode(vlm, plain)])
    assert seen.vision_text is None and seen.own_attention is None and seen.share is None
    assert seen.hidden.shape == (LAYERS, 32) and len(seen.margins) > 1
    sums = measured(vlm, [samples[0], plain, samples[1]])
    assert (sums.count("adjacent"), sums.count("vision_text")) == (3, 2)


def test_images_of_another_grid_are_brought_to_one() -> None:
    from drivekd.study.forward import _on_grid

    large = np.arange(16.0).reshape(1, 16)
    small = np.array([[1.0, 2.0, 3.0, 4.0]])
    found = _on_grid(np.concatenate([small, large], axis=1), ((2, 2), (4, 4)), None)
    averaged = large.reshape(2, 2, 2, 2).mean(axis=(1, 3)).ravel()
    assert found[0] == pytest.approx((small[0] + averaged) / 2)


def test_states_that_are_not_finite_name_the_samples(samples: list[Sample]) -> None:
    vlm = freeze(teacher())
    broken: Any = vlm.model.get_submodule("model.language_model.layers.1.mlp.down_proj")
    with torch.no_grad():
        broken.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"finite .*'s0q0'"):
        read_row(vlm, [encode(vlm, samples[0])])


def test_logits_that_are_not_finite_name_the_samples(samples: list[Sample]) -> None:
    from drivekd.study.forward import read_margins

    vlm = freeze(teacher())
    head: Any = vlm.model.get_submodule("lm_head")
    with torch.no_grad():
        head.weight[0, 0] = torch.nan
    encoded = [encode(vlm, samples[0])]
    for run in (read_row, read_margins):
        with pytest.raises(ValueError, match=r"logits .*finite .*'s0q0'"):
            run(vlm, encoded)


def test_hooks_and_taps_are_gone_afterwards(samples: list[Sample]) -> None:
    vlm = freeze(teacher())
    encoded = [encode(vlm, samples[0])]
    once, again = read_row(vlm, encoded)[0], read_row(vlm, encoded)[0]
    assert (once.hidden == again.hidden).all()
    layers: Any = vlm.model.get_submodule("model.language_model.layers")
    assert not any(layer._forward_pre_hooks or layer.self_attn._forward_hooks for layer in layers)
