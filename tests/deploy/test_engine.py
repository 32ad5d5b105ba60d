"""Engines give the tokens of plain generation, as many as were asked for, with a stamp for each."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from drivekd.data.sample import Sample
from drivekd.deploy.bench import engine as engines
from drivekd.deploy.bench.engine import local, refuse_uncompilable
from drivekd.models import tiny
from drivekd.models.generate import generate_ids
from drivekd.models.vlm import Vlm

Shown = Callable[..., Sample]


def test_tokens_of_plain_generation_alone_and_in_a_batch(vlm: Vlm, shown: Shown) -> None:
    sample, own = shown(2), vlm.model.generation_config
    (want,) = generate_ids(vlm, [sample], max_new_tokens=7)
    for batch in (1, 3):
        (reply,) = local(vlm)([sample] * batch, 7)
        assert reply.tokens == (tuple(want),) * batch
    times = reply.timeline
    assert (len(times.arrivals), times.tokens) == (7, 7)
    assert times.ready is not None
    stamps = (times.started, times.ready, *times.arrivals)
    assert all(a < b for a, b in pairwise(stamps))
    assert vlm.model.generation_config is own


def test_answers_end_or_go_on_as_asked(shown: Shown) -> None:
    vlm = tiny.tiny_vlm(initializer_range=0.15, image_size=48)
    (want,) = generate_ids(vlm, [shown(1)], max_new_tokens=5)
    end = want[2]
    vlm.model.generation_config.eos_token_id = [end]
    (reply,) = local(vlm)([shown(1)], 5)
    assert reply.tokens == (tuple(want),)
    (reply,) = local(vlm, to_the_end=True)([shown(1)], 5)
    assert reply.tokens == (tuple(want[: want.index(end) + 1]),)


def test_a_static_cache_with_a_compiled_step_changes_no_token(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend that only traces: what is compiled is what inductor would get."""
    usual, real, compiled = engines.CompileConfig, torch.compile, []
    monkeypatch.setattr(engines, "CompileConfig", lambda **_: usual(backend="eager"))

    def counted(*args: Any, **kwargs: Any) -> Any:
        compiled.append(kwargs.get("backend"))
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, "compile", counted)
    vlm = tiny.tiny_vlm(initializer_range=0.15, image_size=48, text_layers=1)
    want = generate_ids(vlm, [shown(1)], max_new_tokens=5)
    (reply,) = local(vlm, compiled=True)([shown(1)], 5)
    assert reply.tokens == (tuple(want[0]),)
    assert "eager" in compiled


def test_a_compiler_that_fails_is_told_of(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("g++ ended with 1\nand more")

    usual = engines.CompileConfig
    monkeypatch.setattr(engines, "CompileConfig", lambda **_: usual(backend=broken))
    vlm = tiny.tiny_vlm(image_size=48, text_layers=1)
    with pytest.raises(RuntimeError, match=r"compiled.*sdpa") as caught:
        local(vlm, compiled=True)([shown(1)], 3)
    assert "\n" not in str(caught.value)


@pytest.mark.slow  # minutes of C++ compiler
def test_the_real_compiler_too(vlm: Vlm, shown: Shown) -> None:
    want = generate_ids(vlm, [shown(1)], max_new_tokens=5)
    (reply,) = local(vlm, compiled=True)([shown(1)], 5)
    assert reply.tokens == (tuple(want[0]),)


@pytest.mark.parametrize(("device", "lacks"), [("cpu", "C[+][+] compiler"), ("cuda", "Triton")])
def test_what_cannot_be_compiled_is_refused(
    monkeypatch: pytest.MonkeyPatch, device: str, lacks: str
) -> None:
    monkeypatch.setattr(engines.shutil, "which", lambda name: None)
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=lacks):
        refuse_uncompilable(torch.device(device))


def test_prompts_of_unequal_lengths_are_no_batch(shown: Shown) -> None:
    vlm = tiny.tiny_vlm(image_size=48)
    with pytest.raises(ValueError, match="equally long"):
        local(vlm)([shown(1), shown(1, "What else?")], 2)
