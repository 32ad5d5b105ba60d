"""The benchmark of the pre-study's pass: both arms do the same pass, and it says what it does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tests.scripts import script


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("prestudy")


def test_both_arms_run_the_same_pass(bench: ModuleType, tmp_path: Path) -> None:
    size = bench.step.SIZES["XS"]
    sample = bench.step.write_sample(size, tmp_path)
    plain = bench.make_pass("forward", size, sample)()
    (seen,) = bench.make_pass("prestudy", size, sample)()
    assert plain.shape == (1, size.tokens, size.teacher.hidden)
    assert seen.hidden.shape == (size.teacher.layers, size.teacher.hidden)
    assert seen.own_attention.shape == (size.teacher.layers, 64 * size.pictures)
    # The last feature is the mean of the plain pass's states at text positions.
    model = bench.step.model(size.teacher, 1)
    (encoded,) = (bench.encode(model, s) for s in bench.read(sample))
    mean = plain[0, ~encoded.is_image].mean(dim=0)
    assert np.allclose(seen.hidden[-1], mean.double().numpy(), atol=1e-5)
    assert torch.isfinite(plain).all()


def test_the_last_line_names_both_arms(
    bench: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prestudy.py", "--size", "XS", "--rounds", "1"])
    bench.main()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert tuple(last) == bench.ARMS
    assert all(set(row) == {"seconds", "peak_mb"} for row in last.values())
    written = json.loads((tmp_path / "results" / "prestudy_cost_quick.json").read_text())
    assert written["arms"]["forward"]["seconds_over_forward"] == 1
    assert {"commit", "hardware", "threads", "size", "load_average"} <= written.keys()
