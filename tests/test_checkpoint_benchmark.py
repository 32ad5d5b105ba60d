"""The benchmark of checkpoints writes as many bytes both ways, and says what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.scripts import script


def test_what_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench, plain = script("checkpoint"), []
    monkeypatch.chdir(tmp_path)
    write = bench.write_plainly
    monkeypatch.setattr(
        bench, "write_plainly", lambda *given: (write(*given), plain.append(bench.sizes(given[0])))
    )
    bench.main(["--size", "XS", "--rounds", "1"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"model.safetensors", "optimizer.pt", "trainer_state.json"} <= plain[-1].keys()
    assert line["mb"] == round(sum(plain[-1].values()) / 1e6, 1)
    seconds = line["seconds"]
    for name, arm in (("ratio", "checkpoint"), ("ratio_kept", "kept")):
        assert line[name] == pytest.approx(seconds[arm] / seconds["plain"], rel=0.05)
    written = json.loads((tmp_path / "results/checkpoint_quick.json").read_text())
    assert {"commit", "hardware", "goal", *line} <= written.keys()
    assert [len(each) for each in written["rounds"].values()] == [1, 1, 1]
