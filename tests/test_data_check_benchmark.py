"""The benchmark of the data check runs, and what it asserts of itself holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_small_run(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "DRIVEKD_REAL_DATA"}
    source = str(ROOT / "src")
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/data_check.py"), "--rows=3000", "--pictures=60"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["rows"] == 3000 and figures["pictures"] == 66
    assert figures["rows_per_cpu_second"] > 0 and 0 < figures["peak_mb"] < 300
    written = json.loads((tmp_path / "results/data_check_quick.json").read_text())
    assert written["rows"] == 3000 and {"commit", "date", "hardware"} <= set(written)
