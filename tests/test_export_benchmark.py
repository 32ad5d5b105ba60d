"""The benchmark of export formats, on one scene: what it writes, refuses, scores and times."""

from __future__ import annotations

import json
from types import ModuleType

import pytest
from tests.scripts import script

from drivekd.evaluate.answers.answer import Answer


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("export")


def test_it_scores_and_times_what_can_be_written(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = ("float32", "bfloat16", "internvl-chat")
    monkeypatch.setattr(bench, "FORMATS", {name: bench.FORMATS[name] for name in some})
    settings = bench.Settings(model="world:student_base", scenes=1, rounds=1, timed=1, tokens=2)
    found = bench.run(settings)
    assert list(found["formats"]) == ["float32", "bfloat16"]
    assert "ends in a norm" in found["refused"]["internvl-chat"]
    plain, half = found["formats"].values()
    assert (plain["equal"], plain["speed"]) == (100.0, 1.0)
    assert half["mb"] < 0.6 * plain["mb"]
    assert half["tokens_per_s"] > 0
    assert found["questions"] > 5
    json.dumps(found)


def test_equal_replies_are_counted_beside_right_ones(bench: ModuleType) -> None:
    def answer(kind: str, reply: str) -> Answer:
        return Answer(kind, kind, None, None, "?", "yes", reply, reply == "yes")

    kinds = ("perception", "reasoning", "planning")
    plain = [answer(kind, "yes") for kind in kinds]
    other = [answer("perception", "yes"), answer("reasoning", "no"), answer("planning", "yes")]
    found = bench.scored(other, plain)
    assert (found["average"], found["equal"]) == (66.67, 66.67)
    assert found["capabilities"]["reasoning"] == 0.0
