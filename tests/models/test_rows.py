"""Rows that run side by side say what each says alone, whoever leaves on the way."""

from __future__ import annotations

import pytest
import torch

from drivekd.models.encode import encode
from drivekd.models.generate import generate_ids
from drivekd.models.rows import begin, end_tokens, follow, keep

NEW = 6


@pytest.fixture(scope="module")
def alone(vlm, mixed):
    return [generate_ids(vlm, [sample], max_new_tokens=NEW)[0] for sample in mixed]


@torch.no_grad()
def continued(vlm, samples, leave):
    """Greedy tokens of rows; `leave[step]` are the numbers of samples that go before that step."""
    rows = begin(vlm, [encode(vlm, sample, add_answer=False) for sample in samples])
    here, said = list(range(len(samples))), [[] for _ in samples]
    for step in range(NEW):
        staying = [k for k, sample in enumerate(here) if sample not in leave.get(step, ())]
        if len(staying) < len(here):
            keep(rows, staying)
            here = [here[k] for k in staying]
        tokens = rows.logits(vlm).argmax(-1)
        for sample, token in zip(here, tokens.tolist(), strict=True):
            said[sample].append(token)
        follow(vlm, rows, tokens)
    return said


@pytest.mark.parametrize("leave", [{}, {1: (0, 3), 4: (5,)}], ids=["all stay", "some leave"])
def test_tokens_are_those_of_each_alone(vlm, mixed, alone, leave):
    gone = {sample: step for step, those in leave.items() for sample in those}
    found = continued(vlm, mixed, leave)
    for number, (said, expected) in enumerate(zip(found, alone, strict=True)):
        length = gone.get(number, NEW)
        assert len(said) == length
        assert said[: len(expected)] == expected[:length]
    # The models are random but not constant, or this would prove little.
    assert len({tuple(tokens) for tokens in alone}) >= 4


def test_ends_are_those_of_the_generation_settings(vlm):
    assert end_tokens(vlm) == [vlm.tokenizer.eos_token_id]
