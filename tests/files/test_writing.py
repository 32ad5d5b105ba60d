from __future__ import annotations

import errno
from pathlib import Path

import pytest

from drivekd.files.writing import atomic_folder, draft_of, filling, new_rows, writing


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    path = Path("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught, writing(path):
        path.write_text("x" * 100)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == "/dev/full"


def test_an_error_that_names_a_file_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, writing(tmp_path / "new" / "a"):
        (tmp_path / "other").read_text()
    assert caught.value.filename == str(tmp_path / "other")
    assert (tmp_path / "new").is_dir()


def test_a_file_of_rows_that_fails_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_rows(tmp_path / "a.json") as rows:
        rows.add(1 / 0)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_told_by_its_own_name(tmp_path: Path) -> None:
    """Not by the name that it has meanwhile."""
    path = tmp_path / ("x" * 250 + ".json")  # with something before and behind it too long
    with pytest.raises(OSError, match="name too long") as caught, new_rows(path):
        pass
    assert caught.value.filename == str(path)


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError) as caught, new_rows(tmp_path / "file" / "a.json"):
        pass
    assert caught.value.filename == str(tmp_path / "file")
    with pytest.raises(FileExistsError) as caught, filling(tmp_path / "file", "pictures"):
        (tmp_path / "file").mkdir()
    assert "once there is room" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_is_there_as_a_whole_and_takes_the_place_of_the_earlier_one(
    tmp_path: Path,
) -> None:
    out = tmp_path / "new" / "out"
    with atomic_folder(out) as draft:
        (draft / "inner").mkdir()
        (draft / "inner/a").write_text("first")
        assert not out.exists()
    draft_of(out).mkdir()  # what a killed process left
    (draft_of(out) / "half").write_text("")
    with pytest.raises(ZeroDivisionError), atomic_folder(out) as draft:
        (draft / "b").write_text(str(1 / 0))
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "inner/a").read_text() == "first"
    with atomic_folder(out) as draft:
        (draft / "b").write_text("second")
    assert [path.name for path in out.iterdir()] == ["b"]
