"""Files are told apart by their bytes, and read once while they stay as they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drivekd.files import identity as identities


def test_bytes_count_and_neither_names_nor_times(tmp_path: Path) -> None:
    one, same, other = (tmp_path / name / "front.png" for name in ("one", "same", "other"))
    for path, content in ((one, b"abc"), (same, b"abc"), (other, b"abd")):
        path.parent.mkdir()
        path.write_bytes(content)
    os.utime(same, (1, 1))
    found = identities.identities([one, same, other, one])
    assert list(found) == [one, same, other]
    assert found[one] == found[same] != found[other]


def test_a_file_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"abc")
    before, about = identities.identity(path), path.stat()
    path.write_bytes(b"abd")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert identities.identity(path) != before


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opened = tmp_path / "a.png", []
    path.write_bytes(b"abc")
    read = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a: (opened.append(self), read(self, *a))[1])
    assert identities.identity(path) == identities.identity(path)
    assert opened == [path]


def test_a_missing_file_is_left_to_whoever_opens_it(tmp_path: Path) -> None:
    assert identities.identity(tmp_path / "none.png") == "missing"
