"""The efficiency table, on planted measurements: what is computed, how far off, what is kept."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.scripts import script

from drivekd.deploy.bench import machine, random_weights
from drivekd.deploy.bench.machine import Rates
from drivekd.deploy.bench.workload import request

NAMES = ("InternVL3-1B-hf", "InternVL3-2B-hf", "Qwen2.5-VL-3B-Instruct", "InternVL3-78B-hf")
BASE, PREFILL, DECODE, PICTURES = 0.5, 1.5, 1.2, 0.25
RATES = Rates(bytes_per_s=1e10, flops_per_s=5e10)


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_weights, "shell", cache(random_weights.shell))
        yield script("efficiency")


def answered(bench: ModuleType, command: list[str]) -> dict[str, Any]:
    """What `drivekd bench` would say of a machine that follows the model exactly."""
    settings = bench.Settings(dtype="bfloat16")
    name = command[command.index("--config-only") + 1]
    vlm = random_weights.shell(name)
    folder = Path(command[-1])
    encoded = bench.encode(vlm, request(folder, 6), add_answer=False)
    load = bench.Load(encoded.grids, len(encoded.input_ids), settings.new_tokens)
    least = bench.cost.floor(vlm, load, 2, RATES)
    counted = bench.cost.memory(vlm, load, 2).total
    prefill, tpot = PREFILL * least.prefill_s, DECODE * least.decode_s
    row = {
        "cameras": 6,
        "peak": {"process": counted / 1e6 + BASE * 1e3, "allocator": None},
        "ttft_s": {"median": PICTURES + prefill},
        "prefill_s": {"median": prefill},
        "tpot_s": {"median": tpot},
        "tokens_per_s": 1 / tpot,
        "prompt_tokens": load.prompt,
        "estimated_memory_mb": counted / 1e6,
        "floor": {},
        "over_floor": {"prefill": PREFILL, "decode": DECODE},
    }
    rates = {"bytes_per_s": RATES.bytes_per_s, "flops_per_s": RATES.flops_per_s}
    rows = [{**row, "cameras": 1, "tokens_per_s": -1.0}, row]
    return {"rows": rows, "rates": rates, "parameters": 7, "load_average": [0.0]}


@pytest.fixture
def asked(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The commands that were run, in place of running them; 10 GB are free."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        said = json.dumps(answered(bench, [*command, str(tmp_path)]))
        return subprocess.CompletedProcess(command, 0, f"table\n{said}\n")

    monkeypatch.setattr(bench.subprocess, "run", run)
    monkeypatch.setattr(machine, "free_memory", lambda device: 10_000_000_000)
    monkeypatch.setattr(bench, "COMMIT", "abc")
    return commands


def test_sizes_that_do_not_fit_are_computed_and_others_kept(
    bench: ModuleType, asked: list[list[str]], tmp_path: Path
) -> None:
    sizes = [name for name in bench.SIZES if name.endswith(NAMES)]
    content = bench.run(bench.Settings(dtype="bfloat16"), sizes, tmp_path / "kept")
    rows = content["rows"]
    assert [name for name, row in rows.items() if row["measured"]] == [*NAMES[:2], NAMES[2]]
    large = rows["InternVL3-78B-hf"]
    assert not large["measured"]
    assert large["memory_gb"] == pytest.approx(BASE + large["counted_gb"])
    assert large["counted_gb"] > 156
    assert large["ttft_s"] == pytest.approx(PICTURES + PREFILL * large["floor"]["prefill_s"])
    assert large["tokens_per_s"] == pytest.approx(1 / (DECODE * large["floor"]["decode_s"]))
    for each in content["errors"].values():  # the machine follows the model
        assert all(abs(error) < 1e-3 for error in each.values())
    ours = content["ratios"]["memory"]["ours"]
    assert ours == pytest.approx(large["memory_gb"] / rows[NAMES[0]]["memory_gb"], abs=0.05)
    assert content["ratios"]["memory"]["paper"] == 41.9
    assert content["ratios"]["tokens_per_s"]["paper"] == 11.4
    text = bench.table(rows)
    assert "| InternVL3-78B-hf | computed |" in text
    assert "4.1, 45.7, 0.45" in text
    json.dumps(content)
    assert len(asked) == 3
    bench.run(bench.Settings(dtype="bfloat16"), sizes, tmp_path / "kept")
    assert len(asked) == 3  # kept
    bench.run(bench.Settings(dtype="bfloat16", new_tokens=8), sizes[:1], tmp_path / "kept")
    assert len(asked) == 4  # settings differ


def test_an_error_of_the_model_is_told(bench: ModuleType, asked: list[list[str]]) -> None:
    rows = {}
    for number, name in enumerate(("a", "b", "c")):
        rates = {"bytes_per_s": 1e10, "flops_per_s": 5e10}
        over = {"prefill": 1.0 + (number == 2), "decode": 1.0}
        rows[name] = {"memory_gb": 3.0, "counted_gb": 2.0, "over_floor": over, "rates": rates}
        rows[name] |= {"ttft_s": 10.0 * over["prefill"], "prefill_s": 10.0 * over["prefill"]}
    vlm = random_weights.shell(NAMES[0])
    load = bench.Load([(16, 16)], 300, 4)
    least = bench.cost.floor(vlm, load, 2, RATES)
    for row in rows.values():
        row |= {"tokens_per_s": 1 / least.decode_s}
        row["ttft_s"] = row["prefill_s"] = row["over_floor"]["prefill"] * least.prefill_s
    found = bench.errors(rows, dict.fromkeys(rows, (vlm, load)), bench.Settings(dtype="bfloat16"))
    assert found["c"]["ttft_s"] == pytest.approx(-0.5)
    assert found["c"]["tokens_per_s"] == 0.0


def test_a_measurement_that_failed_stops_the_table(
    bench: ModuleType, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failed = subprocess.CompletedProcess([], 2, "")
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="exit code 2"):
        bench.run(bench.Settings(dtype="bfloat16"), bench.SIZES[:1], tmp_path)


def test_it_writes_its_result_and_ends_in_one_line(
    bench: ModuleType,
    asked: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = [name for name in bench.SIZES if name.endswith((NAMES[0], NAMES[3]))]
    monkeypatch.setattr(bench.sys, "argv", ["efficiency.py", "--sizes", *sizes])
    assert bench.main() == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {name: each["measured"] for name, each in last.items()} == {
        "InternVL3-1B-hf": True,
        "InternVL3-78B-hf": False,
    }
    written = json.loads((tmp_path / "results" / "efficiency_cpu_quick.json").read_text())
    assert written["rows"].keys() == last.keys()
    assert written["commit"]
