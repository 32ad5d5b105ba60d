"""Draws against transformers' own nucleus, and what they hang on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import TopPLogitsWarper

from drivekd.models.generate import generate_ids
from drivekd.models.sampling import Sampling, choice, drawn

HOT = Sampling(temperature=1.0, seed=3)
NEW = 4


@pytest.mark.parametrize("top_p", [0.05, 0.4, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
def test_shares_of_draws_are_the_probabilities(temperature: float, top_p: float) -> None:
    logits = torch.randn(1, 13) * 2
    kept = (
        TopPLogitsWarper(top_p)(None, logits / temperature) if top_p < 1 else logits / temperature
    )
    expected = kept.softmax(-1)[0]
    count = 20_011  # an even grid of numbers: the shares are the probabilities to 1/count
    numbers = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    got = drawn(logits.expand(count, -1), numbers, Sampling(temperature, top_p))
    shares = torch.bincount(got, minlength=13) / count
    assert (shares - expected).abs().max() < 2 / count
    assert not shares[kept[0] == -torch.inf].any()


def test_the_ends_of_the_numbers_draw_what_can_be_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(2, -1)
    numbers = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert drawn(logits, numbers, HOT).tolist() == [1, 3]


def test_hardly_any_temperature_is_greedy() -> None:
    logits = torch.randn(11, 17)
    numbers = torch.rand(11, dtype=torch.float64)
    for temperature in (1e-3, 1e-30, 1e-300):
        assert torch.equal(drawn(logits, numbers, Sampling(temperature)), logits.argmax(-1))


def test_streams_hang_on_seed_run_and_id_alone() -> None:
    seeds = [
        Sampling(1.0, 1.0, s, r).seed_of(i) for s in (0, 1) for r in (0, 1) for i in ("a", "b")
    ]
    assert len(set(seeds)) == 8
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert (
        Sampling(1.0, 1.0, 0, 0).seed_of("a") == Sampling(0.3, 0.5, 0, 0).seed_of("a") == seeds[0]
    )
    # of this very value: files of answers outlive a release
    assert Sampling(seed=5, run=2).seed_of("q1") == 75304554


def test_a_longer_reply_begins_with_the_shorter_one() -> None:
    logits, device = torch.zeros(1, 97), torch.device("cpu")
    short, long = (choice(HOT, ["a"], steps, device) for steps in (5, 50))
    assert [int(short(logits, i)) for i in range(5)] == [int(long(logits, i)) for i in range(5)]
    assert len({int(long(logits, i)) for i in range(50)}) > 20


def test_a_reply_is_the_same_alone_and_in_any_batch(vlm, mixed) -> None:
    mixed = [replace(s, id=f"{i}") for i, s in enumerate(mixed)]
    found = generate_ids(vlm, mixed, max_new_tokens=NEW, sampling=HOT)
    assert len({tuple(tokens) for tokens in found}) == len(found)
    order = np.random.default_rng(1).permutation(len(mixed))
    for size, places in ((1, order[:4]), (2, order)):
        asked = [mixed[i] for i in places]
        again = generate_ids(vlm, asked, max_new_tokens=NEW, batch_size=size, sampling=HOT)
        assert again == [found[i] for i in places]
    other = replace(HOT, run=1)
    assert generate_ids(vlm, mixed, max_new_tokens=NEW, sampling=other) != found


def test_drawing_leaves_the_global_stream_alone(vlm, mixed) -> None:
    state = torch.random.get_rng_state()
    generate_ids(vlm, mixed[:1], max_new_tokens=2, sampling=HOT)
    assert torch.equal(torch.random.get_rng_state(), state)
