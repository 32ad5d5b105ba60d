"""`drivekd bench` from end to end: table, last line, floors, quality, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.deploy.stream_server import PIECES, streaming

from drivekd.cli import app
from drivekd.deploy.bench import live, machine, opening, random_weights
from drivekd.deploy.bench.bench import bench, table
from drivekd.deploy.bench.opening import Settings
from drivekd.models.vlm import ASSETS

pytestmark = pytest.mark.usefixtures("no_debug")
STUDENT = "world:student_base"
rates_of = machine.rates
GIVEN = machine.Rates(bytes_per_s=1e10, flops_per_s=1e11)


@pytest.fixture(autouse=True)
def given_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring them takes as long as everything else."""
    monkeypatch.setattr(machine, "rates", lambda device, dtype: GIVEN)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        app.main(["bench", *arguments])
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err  # type: ignore[return-value]


def test_the_last_line_holds_the_figures(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    scores = tmp_path / "scores.json"
    score = {"n": 3, "accuracy": 47.25, "low": None, "high": None, "scenes": 1}
    scores.write_text(
        json.dumps({"capabilities": {"planning": score}, "average": None, "templates": {}})
    )
    given = ("--cameras", "1", "--cameras", "3", "--batch", "1", "--batch", "2")
    code, out, _ = run(
        capsys,
        *("--model", STUDENT, *given, "--repeats", "2", "--new-tokens", "5"),
        *("--scores", str(scores)),
    )
    assert code == 0
    lines = out.splitlines()
    found = json.loads(lines[-1])
    rows = found["rows"]
    assert [(r["cameras"], r["batch"]) for r in rows] == [(1, 1), (1, 2), (3, 1), (3, 2)]
    assert found["cameras"] == 3
    main = rows[2]
    assert found["ttft_s"] == main["ttft_s"]["median"]
    assert found["tpot_s"] == main["tpot_s"]["median"]
    assert found["tokens_per_s"] == pytest.approx(1 / found["tpot_s"], rel=1e-4)
    two = rows[3]["tpot_s"]  # of a batch at a time: between the slowest and the fastest
    assert 1.99 / two["max"] < rows[3]["tokens_per_s"] < 2.01 / two["min"]
    assert found["images_per_s"] == pytest.approx(3 / found["ttft_s"], rel=1e-4)
    assert found["peak_memory_mb"] == main["peak"]["process"] > 100
    for row in rows:
        assert row["new_tokens"] == 5
        assert row["repeats"] == 2
        assert row["visual_tokens"] == 16 * row["cameras"]
        first, whole = row["ttft_s"], row["latency_s"]
        assert 0 < row["prefill_s"]["median"] < first["median"] < whole["median"] <= whole["p99"]
        least = row["floor"]
        assert least["prefill_s"] == pytest.approx(least["prefill_flops"] / 1e11, rel=1e-4)
        for name, measured in (("prefill", row["prefill_s"]), ("decode", row["tpot_s"])):
            over = measured["median"] / least[f"{name}_s"]
            assert row["over_floor"][name] == pytest.approx(over, rel=1e-4)
    assert found["cold"]["ttft_s"] > 0
    assert found["cold"]["load_s"] > 0
    assert found["scores"] == {"planning": 47.25}
    assert found["dtype"] == "float32"
    assert found["hardware"]
    assert "torch" in found["versions"]
    assert found["commit"] is None or len(found["commit"]) >= 12
    assert lines[0].startswith("cameras batch")
    assert "quality: planning 47.2 %" in out


def test_random_weights_of_a_published_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut one, for time: a layer of decoder and tower, narrow inside, a small vocabulary."""
    usual = random_weights.config_of

    def cut(source: str) -> Any:
        config = usual(source)
        cuts = {"num_hidden_layers": 1, "depth": 1, "fullatt_block_indexes": [0]}
        for part in (config.text_config, config.vision_config):
            for name, value in (cuts | {"intermediate_size": 64}).items():
                if hasattr(part, name):
                    setattr(part, name, value)
        config.text_config.layer_types = config.text_config.layer_types[:1]
        config.text_config.vocab_size = 1024
        return config

    monkeypatch.setattr(random_weights, "config_of", cut)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    for name in ("InternVL3-1B-hf", "Qwen/Qwen2.5-VL-3B-Instruct"):
        found = bench(
            Settings(
                config_only=name,
                cameras=(1,),
                new_tokens=2,
                warmup=0,
                repeats=1,
                dtype="bfloat16",
            )
        )
        assert found["random_weights"]
        assert found["dtype"] == "bfloat16"
        assert 200 < found["rows"][0]["visual_tokens"] <= 256
        assert found["parameters"] > 5e6
        assert "weights are random" in table(found)
    assert torch.equal(state, torch.get_rng_state())


def test_a_server_is_timed_from_outside(capsys: pytest.CaptureFixture[str]) -> None:
    with streaming(first=0.05, pause=0.01) as streamer:
        given = ("--engine", "server", "--url", streamer.url, "--model", "m")
        code, out, _ = run(capsys, *given, "--cameras", "2", "--repeats", "2")
        assert code == 0
        found = json.loads(out.splitlines()[-1])
        assert found["ttft_s"] >= 0.05
        assert found["tokens_per_s"] < 100
        assert found["rows"][0]["new_tokens"] == len(PIECES)
        assert found["peak_memory_mb"] is None
        assert len(streamer.bodies) == 1 + 1 + 2  # cold, warm-up, two that count
        streamer.fault = "cut"
        code, out, err = run(capsys, *given, "--cameras", "1")
    assert code == 1
    assert err.startswith("drivekd: error: m at ")
    assert "ended in the middle of the answer" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "either a model or the name"),
        (("--model", STUDENT, "--config-only", "InternVL3-1B-hf"), "either a model or the name"),
        (("--config-only", "InternVL9"), "expected one of OpenGVLab/InternVL3-1B-hf"),
        (("--model", STUDENT, "--dtype", "int3"), "float32"),
        (("--model", STUDENT, "--engine", "server"), "needs a url"),
        (("--model", STUDENT, "--url", "http://h/v1"), "no other engine takes one"),
        (
            ("--config-only", "InternVL3-1B-hf", "--engine", "server", "--url", "http://h"),
            "name at",
        ),
        (("--model", "m", "--engine", "server", "--url", "ftp://h"), "expected an address"),
        (("--model", "/nowhere/at/all"), "cannot be read"),
        (("--model", STUDENT, "--device", "cuda:7"), "no GPU"),
        (("--model", STUDENT, "--scores", "/nowhere.json"), "expected scores.json"),
        (("--model", STUDENT, "--cameras", "7"), "equal to 6"),
        (("--model", STUDENT, "--stream", "0"), "more than 0"),
    ],
    ids=str,
)
def test_mistakes_end_in_one_line(
    capsys: pytest.CaptureFixture[str], given: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    if "cuda:7" in given and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, _, err = run(capsys, *given)
    assert code == 2
    assert err.startswith("drivekd: error: ")
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer_config.json"])
def test_a_folder_without_a_processor_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ASSETS / "student_base", folder)
    (folder / name).unlink()
    code, _, err = run(capsys, "--model", str(folder))
    assert code == 2
    assert f"has no {name}" in err


def test_a_model_larger_than_memory_is_refused_before_it_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("loaded")

    monkeypatch.setattr(machine, "free_memory", lambda device: 20_000_000_000)
    monkeypatch.setattr(random_weights, "filled", never)
    monkeypatch.setattr(opening.vlms, "load", never)
    code, _, err = run(capsys, "--config-only", "InternVL3-14B-hf", "--dtype", "bfloat16")
    assert code == 2
    assert "(weights 30.2, cache 0.4" in err
    assert "cpu has 20.0 GB free" in err
    monkeypatch.setattr(machine, "free_memory", lambda device: 1_000_000)
    code, _, err = run(capsys, "--model", STUDENT)
    assert code == 2
    assert "needs about" in err


def test_free_memory_and_its_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_GROUP", tmp_path)
    whole = machine.free_memory("cpu")
    assert 1e8 < whole < 1e13
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert machine.free_memory("cpu") > 1e8
    (tmp_path / "memory.max").write_text("5000\n")
    assert machine.free_memory("cpu") == 4000


@pytest.mark.system
def test_frames_of_a_world_as_they_come(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "ANSWERS", 4)
    monkeypatch.setattr(live, "TRIAL", 3)
    monkeypatch.setattr(live, "SCENES", 2)
    given = ("--model", STUDENT, "--stream", "20", "--new-tokens", "3")
    code, out, _ = run(capsys, *given, "--world", str(tmp_path / "w"))
    assert code == 0
    found = json.loads(out.splitlines()[-1])
    seen = found["stream"]
    assert (seen["answers"], seen["scenes"]) == (4, 2)
    assert seen["frames"] == 4 + seen["dropped"]
    assert seen["highest_hz"] > 0
    assert 0 < found["ttft_s"] < seen["latency_s"]["max"]
    assert found["tokens_per_s"] == pytest.approx(1 / found["tpot_s"], rel=1e-4)
    assert found["peak_memory_mb"] > 100
    assert "from frame to answer" in out
    assert (tmp_path / "w" / "questions.jsonl").is_file()


def test_rates_are_those_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_BYTES", 1 << 20)
    monkeypatch.setattr(machine, "_SIDE", {"cpu": 256})
    found = rates_of("cpu", torch.bfloat16)
    assert 1e8 < found.bytes_per_s < 1e13
    assert 1e8 < found.flops_per_s < 1e16


def test_a_device_that_runs_out_of_memory_is_told_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("drivekd.deploy.bench.engine.Stamps.put", full)
    code, _, err = run(capsys, "--model", STUDENT, "--cameras", "2", "--repeats", "1")
    assert code == 1
    assert "the device's memory is not enough" in err
    assert err.count("\n") == 1
