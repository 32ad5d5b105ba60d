"""Planted signals are found, noise is called weak, the paper's curves give the paper's choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.runs import CAPABILITIES, measured, tiny_student, write_data

from drivekd.data.formats.readers import read
from drivekd.distill.teachers.teacher import freeze
from drivekd.report.prestudy import published
from drivekd.study.curves import Curve, unit
from drivekd.study.panels import panels
from drivekd.study.recommend import Advice, advise, find, looks_at_images, named, paper_choice
from drivekd.study.sums import Sums

DEPTH = 5


def test_the_rules_make_the_papers_choice_of_the_papers_curves() -> None:
    intra = published()["intra"]
    found = {name: find(np.array(intra[name])) for name in CAPABILITIES}
    assert found["perception"] is not None and found["perception"].shape == "highest"
    assert found["perception"].layers == (1,)
    assert found["reasoning"] is not None and found["reasoning"].shape == "even"
    assert found["reasoning"].layers == tuple(range(1, 28))
    assert found["planning"] is not None and found["planning"].shape == "peak"
    assert found["planning"].layers == (27,)
    assert found["planning"].margin == pytest.approx(0.885 - 0.842)


@pytest.mark.parametrize("layer", range(1, DEPTH + 1))
def test_a_layer_that_stands_out_is_found(layer: int) -> None:
    curve = np.full(DEPTH, 0.4)
    curve[layer - 1] = 0.8
    found = find(curve)
    assert found is not None and found.layers == (layer,)
    assert found.margin == pytest.approx(0.4)


def test_of_two_peaks_the_more_prominent_one_counts() -> None:
    found = find(np.array([0.95, 0.8, 0.9, 0.7, 0.85, 0.6]))
    # layer 3 rises .1 above its higher valley (.8), layer 5 .15 above its own (.7)
    assert found is not None and found.layers == (5,)
    assert found.margin == pytest.approx(0.15)


def test_a_peak_far_below_the_highest_layer_is_noise() -> None:
    found = find(np.array([0.95, 0.1, 0.2, 0.1, 0.1]))
    assert found is not None and found.layers == (1,)


@pytest.mark.parametrize(
    ("curve", "shape"),
    [
        ([0.99, 0.97, 0.95, 0.2], "even"),  # the last layer does not count
        ([0.99, 0.97, 0.93, 0.2], "highest"),  # range .06
        ([0.91, 0.89, 0.88, 0.2], "highest"),  # even but low
    ],
)
def test_even_means_high_and_within_a_narrow_range(curve: list[float], shape: str) -> None:
    found = find(np.array(curve))
    assert found is not None and found.shape == shape


def test_a_layer_that_hardly_looks_at_images_takes_no_part() -> None:
    part = looks_at_images(np.array([0.001, 0.4, 0.3, 0.05, 0.0]))
    assert part.tolist() == [False, True, True, True, False]
    found = find(np.array([1.0, 0.5, 0.6, 0.5, 1.0]), part)
    assert found is not None and found.layers == (3,)
    assert find(np.full(3, np.nan)) is None


# ------------------------------------------------------------------------- planted statistics


def planted(signal: dict[str, int], scenes: int = 12, noise: float = 3.0) -> tuple[Advice, ...]:
    """Features of random directions; in one layer of each capability a common one is added."""
    random, sums = np.random.default_rng(1), Sums()
    common = random.normal(size=20)
    for scene in range(scenes):
        name = f"scene{scene}"
        sums["adjacent"].add(name, np.zeros(DEPTH))
        sums["share"].add(name, np.full(DEPTH, 0.5))
        for capability in CAPABILITIES:
            for kind in ("attention", "hidden"):
                for _ in range(3):
                    feature = random.normal(size=(DEPTH, 20))
                    if capability in signal:
                        feature[signal[capability] - 1] += noise * common
                    sums[f"intra/{kind}/{capability}"].add(name, unit(feature))
        for kind, spread in (("attention", 0.01), ("hidden", 0.2)):
            sums[f"dispersion/{kind}/all"].add(name, random.normal(spread, 0.001, DEPTH))
    return panels(sums, DEPTH, seed=0, draws=200).advice


def test_the_planted_layer_of_each_capability_is_recommended() -> None:
    layers = {"perception": 3, "reasoning": 1, "planning": 5}
    for each in planted(layers):
        assert each.layers == (layers[each.capability],)
        assert each.signal == "text_to_vision" and not each.weak and each.sure == 1.0


def test_without_a_signal_the_evidence_is_weak_and_the_papers_choice_stands() -> None:
    for each in planted({}):
        assert each.weak and (each.signal, each.layers) == paper_choice(each.capability, DEPTH)
        assert "evidence is weak" in each.reason or each.paper == "the paper chooses the same"


def curve_of(values: list[float], scenes: int = 5) -> Curve:
    return Curve(np.tile(values, (20, 1)), n=9, scenes=scenes)


FLAT = [0.5] * DEPTH
PEAK = [0.5, 0.5, 0.9, 0.5, 0.5]
STEADY = (0.01, 0.2)


@pytest.mark.parametrize(
    ("attention", "hidden", "signal"),
    [
        (0.02, 0.2, "text_to_vision"),
        (0.02, 0.001, "text_to_vision"),
        (0.2, 0.01, "text_to_vision"),
        (0.4, 0.5, "text_to_vision"),
        (0.4, 0.05, "hidden"),
    ],
)
def test_hidden_states_only_where_attention_is_unsteady_and_they_are_steadier(
    attention: float, hidden: float, signal: str
) -> None:
    peaks = curve_of(PEAK), curve_of([0.5, 0.9, 0.5, 0.5, 0.5])
    found = advise("perception", *peaks, curve_of(FLAT), (attention, hidden), DEPTH)
    assert found is not None and found.signal == signal
    assert found.layers == ((2,) if signal == "hidden" else (3,))
    assert f"attention differs by {attention:.3f}, hidden states by {hidden:.3f}" in found.reason
    assert "text_to_vision of first; consistency there 0.500, 0.400 lower" in found.paper


@pytest.mark.parametrize(("scenes", "layers"), [(1, (4,)), (4, (4,)), (5, (3,))])
def test_few_scenes_are_weak_evidence(scenes: int, layers: tuple[int, ...]) -> None:
    found = advise("planning", curve_of(PEAK, scenes), None, curve_of(FLAT), STEADY, DEPTH)
    assert found is not None and found.layers == layers
    assert found.weak == (() if scenes == 5 else ("fewer than 5 scenes",))


def test_a_capability_without_data_has_the_papers_choice_or_none() -> None:
    found = advise("reasoning", None, None, None, None, DEPTH)
    assert found is not None and found.layers == (1, 2, 3, 4) and found.weak == ("not enough data",)
    assert advise("parking", None, None, None, None, DEPTH) is None


def test_a_capability_that_the_paper_does_not_know_gets_what_was_measured() -> None:
    found = advise("parking", curve_of(FLAT), None, curve_of(FLAT), STEADY, DEPTH)
    assert found is not None and found.layers == (1,) and found.weak
    assert found.paper == "the paper has no such capability"


@pytest.mark.parametrize(
    ("layers", "depth", "student", "spec"),
    [
        ((1,), 28, 24, "first"),
        ((27,), 28, 24, "penultimate"),
        ((28,), 28, None, "last"),
        ((1, 2, 3), 4, None, "1..penultimate"),
        ((14,), 28, 24, "12"),
        ((3,), 28, 2, "1"),
        ((5,), 28, None, "5"),
        ((25,), 28, None, "last-3"),
        ((1,), 2, 9, "first"),
    ],
)
def test_layers_are_named_for_another_depth(
    layers: tuple[int, ...], depth: int, student: int | None, spec: str
) -> None:
    assert named(layers, depth, student) == spec


# --------------------------------------------------------------------------- a toy transformer


def toy(layer: int) -> Any:
    """A transformer in which one layer's words look at the same places, whatever they are.

    In all other layers queries and keys are large and random: where words look there is decided by
    their own and the pictures' content, another in every scene.
    """
    vlm = tiny_student(seed=5, text_layers=DEPTH, initializer_range=0.2)
    layers: Any = vlm.model.get_submodule("model.language_model.layers")
    with torch.no_grad():
        for number, each in enumerate(layers, start=1):
            attention = each.self_attn
            for part in (attention.q_proj, attention.k_proj):
                if number == layer:
                    part.weight.zero_()
                    part.bias.fill_(0.3)
                else:
                    part.weight.mul_(8)
    return freeze(vlm)


@pytest.mark.parametrize("layer", [3, 4])
def test_the_layer_that_carries_the_signal_in_a_toy_transformer_is_recommended(
    tmp_path: Path, layer: int
) -> None:
    sums = measured(toy(layer), list(read(write_data(tmp_path, scenes=6))))
    found = panels(sums, DEPTH, seed=0, draws=100)
    for each in found.advice:
        assert each.measured is not None and each.measured.layers == (layer,), each
        assert each.layers == (layer,) and each.sure == 1.0
