"""One process at a time in a folder of results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from drivekd.files.lock import locked


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path: Path) -> None:
    # Plain Python in the other process: importing torch there takes longer than all other tests.
    code = (
        "import fcntl, os, sys; file = open(sys.argv[1] + '/.lock', 'a+')\n"
        "fcntl.flock(file, fcntl.LOCK_EX); file.write(str(os.getpid())); file.flush()\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        message = f"in use by another run .process {other.pid}."
        with pytest.raises(ValueError, match=message), locked(tmp_path):
            pass
        other.communicate("")
    with locked(tmp_path):
        pass
