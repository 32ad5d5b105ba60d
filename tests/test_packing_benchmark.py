"""The benchmark of packed rows, on made-up frames: what it counts, compares and writes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tests import datafiles
from tests.scripts import script

from drivekd.data.sample import CAMERAS

KINDS = ("perception", "prediction", "planning")


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("packing")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two frames of six cameras; three and five questions about all of them, one about one."""
    folder = tmp_path_factory.mktemp("real")
    frames: dict[str, Any] = {}
    for number, each in enumerate((3, 5)):
        names = {c: f"nuscenes/samples/{c}/{number}__{c}__1.jpg" for c in CAMERAS}
        for seed, name in enumerate(names.values()):
            datafiles.picture(folder / "drivelm" / name, 6 * number + seed)
        asked: dict[str, list[Any]] = {kind: [] for kind in KINDS}
        for k in range(each):
            question = f"What about {'this ' * k}scene?"
            asked[KINDS[k % 3]].append({"Q": question, "A": f"Answer {k} of {number}."})
        asked["perception"].append({"Q": "Is <c1,CAM_BACK,800.0,450.0> parked?", "A": "Yes."})
        paths = {c: f"../{name}" for c, name in names.items()}
        frames[f"f{number}"] = {"image_paths": paths, "QA": asked}
    datafiles.write(folder / "drivelm" / "train_sample.json", {"s": {"key_frames": frames}})
    return folder


@pytest.fixture(scope="module")
def settings(bench: ModuleType) -> Any:
    sizes = {"student": bench.Decoder(3, 32, 64, 4, 2), "teacher": bench.Decoder(4, 32, 64, 4, 2)}
    return bench.Settings(image_size=56, vocabulary=512, rounds=1, **sizes)


def test_what_it_counts_compares_and_measures(bench: ModuleType, data: Path, settings: Any) -> None:
    found = bench.run(data, settings)
    assert (found["questions"], found["prefix_groups"]) == (10, 4)
    cameras = found["six_cameras"]
    assert (cameras["frames"], cameras["questions"]) == (2, [3, 5])
    assert cameras["visual_tokens"] == [6 * 4]
    assert cameras["tokens_of_a_row"][0] < 3 * cameras["tokens_alone"]
    assert 0 < found["relative_error"] <= bench.ERROR
    assert found["same"]
    assert tuple(found["arms"]) == bench.ARMS
    for each in found["arms"].values():
        assert each["questions"] == 5
        assert tuple(each["questions_per_second"]) == tuple(bench.LAYOUTS)
        rates = each["questions_per_second"]
        assert each["speedup"] == pytest.approx(rates["one row"] / rates["alone"], rel=0.02)
        assert each["row_limits"] == (each["fastest"] != "one row")
        assert each["relative_error"]["ce"] <= bench.ERROR
    errors = found["arms"]["distilled"]["relative_error"]
    assert errors.keys() == {"ce", "perception", "reasoning", "planning"}
    assert max(errors.values()) < 1e-3
    json.dumps(found)


def test_it_sees_questions_that_look_at_each_other(
    bench: ModuleType, data: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the comparison: a plain causal mask over the whole row."""
    samples = list(bench.read(data / bench.FILE))
    vlm = bench.model(samples, settings, settings.student, 0)
    encoded = bench.corpus.encode_all(vlm, samples)
    rows, collate = bench.rows_of(encoded), bench.collate

    def leaking(*given: Any) -> Any:
        made = collate(*given)
        return replace(made, attention_mask=torch.ones_like(made.attention_mask).tril())

    monkeypatch.setattr(bench, "collate", leaking)
    assert bench.compared(vlm, encoded, rows) > 100 * bench.ERROR


def test_layouts_hold_every_question_once(bench: ModuleType) -> None:
    for parts, sizes in ((None, [1] * 7), (1, [7]), (2, [3, 4]), (4, [1, 2, 2, 2]), (9, [1] * 7)):
        found = bench.batches(range(7), parts)
        assert [len(each) for each in found] == sizes
        assert [index for each in found for index in each] == list(range(7))


def test_a_difference_is_told_and_the_last_line_is_the_rates(
    bench: ModuleType, data: Path, settings: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIVEKD_REAL_DATA", str(data))
    monkeypatch.setattr(bench, "Settings", lambda **given: settings)
    monkeypatch.setattr(bench, "ERROR", 0.0)
    monkeypatch.setattr(sys, "argv", ["packing.py", "--rounds", "1"])
    assert bench.main() == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert tuple(last) == bench.ARMS
    assert all(rate > 0 for rates in last.values() for rate in rates.values())
    written = json.loads((tmp_path / "results" / "packing_quick.json").read_text())
    assert {"commit", "hardware", "threads", "settings", "six_cameras"} <= written.keys()
    assert not written["same"]


def test_without_data_it_says_what_it_needs(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DRIVEKD_REAL_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["packing.py"])
    assert bench.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "DRIVEKD_REAL_DATA" in line


@pytest.mark.real_data
def test_drivelm_falls_into_32_groups(bench: ModuleType, real_data: Path) -> None:
    """790 questions; 29 to 40 about all cameras of each frame, behind 1,536 visual tokens."""
    samples = list(bench.read(real_data / bench.FILE))
    small = bench.Settings(student=bench.Decoder(1, 16, 16, 2, 1), vocabulary=512)
    encoded = bench.corpus.encode_all(bench.model(samples, small, small.student, 0), samples)
    found = bench.counted(encoded, bench.rows_of(encoded))
    assert (found["questions"], found["prefix_groups"]) == (790, 32)
    assert found["six_cameras"]["visual_tokens"] == [1536]
    assert min(found["six_cameras"]["questions"]) == 29
    assert max(found["six_cameras"]["questions"]) == 40
