"""The real-data proof itself: who trains on what, and a run of a few steps through every part."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from types import ModuleType

import pytest
from tests.scripts import script

from drivekd.distill.corpus import training_samples


@pytest.fixture(scope="module")
def smoke() -> ModuleType:
    return script("real_smoke")


def in_turn(jobs):
    return {name: job() for name, job in jobs.items()}


def fewer_questions(make, *args, **changes):
    """A recipe of sixteen questions at most: reading all of them takes longer than training."""
    data = {"max_samples": 16, **changes.pop("data", {})}
    return make(*args, data=data, **changes)


@pytest.mark.real_data
def test_scenes_are_split_and_the_benchmark_frame_is_left_out(smoke, real_data, tmp_path):
    parts = smoke.split(real_data)
    assert (len(parts.training), len(parts.held_out)) == (380, 311)
    assert {s.scene for s in parts.training}.isdisjoint(s.scene for s in parts.held_out)
    assert smoke.DRIVEBENCH_FRAME not in {s.frame for s in parts.training}
    trained = training_samples(smoke.recipe(parts, tmp_path, steps=1))
    assert [s.id for s in trained] == [s.id for s in parts.training]
    assert sum(smoke.needs_pictures(parts.training)) > 50


@pytest.mark.real_data
def test_a_few_steps_run_through_every_part(smoke, real_data, tmp_path, monkeypatch):
    whole = smoke.split(real_data)
    frames = sorted({str(s.frame) for s in whole.training})
    two = [s for s in whole.training if s.frame in frames[:2]]
    alike = [s for s, needed in zip(two, smoke.needs_pictures(two), strict=True) if needed]
    single = next(s for s in two if len(s.images) == 1)
    few = replace(
        whole,
        training=(*sorted(alike, key=lambda s: s.question)[:8], single),
        held_out=whole.held_out[:4],
        excluded=(*whole.excluded, *frames[2:]),
    )
    monkeypatch.setattr(smoke, "split", lambda data: few)
    monkeypatch.setattr(smoke, "probes", lambda parts: [alike[0], single])
    monkeypatch.setattr(smoke, "recipe", partial(fewer_questions, smoke.recipe))
    sizes = {"text_hidden": 32, "text_layers": 3}
    settings = smoke.Settings(4, 2, 2, 5, sizes, {**sizes, "text_layers": 4}, overfit_samples=2)
    checks = smoke.run(real_data, tmp_path / "out", settings, do=in_turn)
    assert len(checks) == 7
    for check in checks:
        assert all(math.isfinite(value) for value in check.figures.values()), check
    by_claim = {check.claim: check for check in checks}
    figures = checks[0].figures
    assert figures["after"] < figures["before"]
    assert by_claim["plain transformers reloads the model and generates the same tokens"].holds
    assert all(
        by_claim[f"the attention loss of {name} falls"].figures["first_tenth"] > 0
        for name in smoke.CAPABILITIES
    )


def test_without_data_it_says_what_it_needs(smoke, monkeypatch, capsys):
    monkeypatch.delenv("DRIVEKD_REAL_DATA", raising=False)
    assert smoke.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "DRIVEKD_REAL_DATA" in line


def test_checks_hold_where_they_should(smoke):
    assert smoke.check_overfit([("a", "a")] * 7 + [("a", "b")]).holds
    assert not smoke.check_overfit([("a", "a")] * 6 + [("a", "b")] * 2).holds
    falling = [dict.fromkeys(smoke.CAPABILITIES, float(20 - step)) for step in range(20)]
    assert all(check.holds for check in smoke.check_attention(falling))
    assert not any(check.holds for check in smoke.check_attention(falling[::-1]))
    assert not smoke.check_reload([[1, 2]], [[1, 3]]).holds
    run = {"before": 7.0, "after": 1.0, "after_same_question": 1.0, "held_out": 5.0}
    worse = {**run, "after": 3.6}
    assert [check.holds for check in smoke.check_pictures(run, worse)] == [True, True]
    assert [check.holds for check in smoke.check_pictures(worse, run)] == [False, False]
