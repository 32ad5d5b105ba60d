"""World data sets on disk: bytes, interruptions, refusals, and what the disk may do to us."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from drivekd.cli.app import main
from drivekd.data.formats.readers import read
from drivekd.data.sample import CAMERAS
from drivekd.world import make as making
from drivekd.world.make import make
from drivekd.world.questions import TEMPLATES

FEW = 9


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def first(folder: Path, scenes: int) -> dict[str, bytes]:
    """The pictures and truths of a data set's first scenes."""
    wanted = {str(number) for number in range(scenes)}
    found = contents(folder)
    return {
        n: b for n, b in found.items() if n.count("/") and n.split("/")[1].split(".")[0] in wanted
    }


def test_interrupted_and_in_parallel_gives_the_same_bytes(world: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "6").write_text("in the way")
    with pytest.raises(FileExistsError, match=r"File exists: .*images/6"):
        make(tmp_path, FEW, "train", workers=2)  # a worker's error is the same clear one
    assert not (tmp_path / "questions.jsonl").exists()
    (tmp_path / "images" / "6").unlink()
    make(tmp_path, 3, "train", workers=1)
    (tmp_path / "truth" / "1.json").unlink()
    (tmp_path / "truth" / "2.json").unlink()
    (tmp_path / "truth" / ".2.json.partial").write_text('{"frame": {')  # cut off
    (tmp_path / "images" / "1" / "CAM_BACK.png").write_bytes(b"half a pict")
    (tmp_path / "images" / "2" / "CAM_FRONT.png").unlink()
    make(tmp_path, FEW, "train", workers=1)
    assert first(tmp_path, FEW) == first(world, FEW)
    rows = (world / "questions.jsonl").read_text().splitlines(keepends=True)
    again = (tmp_path / "questions.jsonl").read_text()
    assert "".join(rows).startswith(again)
    assert not list(tmp_path.rglob("*.partial"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert len(before) == 6 * FEW
    make(tmp_path, FEW, "train", workers=1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == before


def test_rows_are_read_like_any_data_of_the_format(world: Path) -> None:
    samples = list(islice(read(world / "questions.jsonl"), 600))
    assert len({s.id for s in samples}) == len(samples)
    prefixes = {s.question.rpartition("<image>\n")[0] for s in samples}
    assert len(prefixes) == 1  # the pictures come first, so that questions of a scene pack
    for sample in samples[:: len(samples) // 20]:
        assert tuple(sample.images) == CAMERAS
        assert sample.scene == sample.frame == f"w{sample.id[1:].split('-')[0]}"
        assert sample.template in TEMPLATES
        assert sample.answer
        assert len({sample.question, *sample.paraphrases}) == 3  # in all the template's wordings
        for picture in sample.images.values():
            with Image.open(picture) as opened:
                assert (opened.size, opened.mode) == ((96, 96), "RGB")
    dense = list(islice(read(world / "dense.jsonl"), 400))
    assert {s.capability for s in dense} == {"perception"}
    assert len(dense) > 15 * len({s.scene for s in dense})


def test_truth_is_strict_json(world: Path) -> None:
    def refuse(number: str) -> None:
        raise AssertionError(number)

    gaps = []
    for path in (world / "truth").iterdir():
        truth = json.loads(path.read_text(), parse_constant=refuse)
        gaps += [outcome["gap"] for outcome in truth["outcomes"].values()]
    assert None in gaps  # nothing ahead


def test_first_and_size(tmp_path: Path, world: Path) -> None:
    make(tmp_path / "a", 1, "train", first=4, workers=1)
    moved = contents(tmp_path / "a")
    assert moved["truth/4.json"] == (world / "truth" / "4.json").read_bytes()
    make(tmp_path / "b", 1, "train", size=64, workers=1)
    with Image.open(tmp_path / "b" / "images" / "0" / "CAM_FRONT.png") as picture:
        assert picture.size == (64, 64)


# --- refusals -----------------------------------------------------------------------------------


def test_a_folder_made_with_other_settings_is_refused(tmp_path: Path) -> None:
    make(tmp_path, 1, "val", workers=1)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="made with another split: choose another folder"):
        make(tmp_path, 1, "train", workers=1)
    with pytest.raises(ValueError, match="made with another size"):
        make(tmp_path, 1, "val", size=64, workers=1)
    assert contents(tmp_path) == before


def test_what_does_not_exist_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "w"
    with pytest.raises(ValueError, match="split 'trian' is unknown: choose one of train, "):
        making.make.__wrapped__(out, 1, "trian")
    for scenes, start in ((0, 0), (1, -1), (2, 999_999)):
        with pytest.raises(ValueError, match=f"got {scenes} from {start} on: choose fewer"):
            make(out, scenes, "train", first=start)
    with pytest.raises(ValueError, match="picture size"):
        make(out, 1, "train", size=8)
    assert not out.exists()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    make(tmp_path, 1, "val", workers=1)
    truth = tmp_path / "truth" / "2000000.json"
    truth.write_text(truth.read_text()[:100])
    with pytest.raises(ValueError, match=r"2000000\.json is damaged.*delete it and run again"):
        make(tmp_path, 1, "val", workers=1)
    (tmp_path / "world.json").write_text("[]")
    with pytest.raises(ValueError, match=r"world\.json is damaged"):
        make(tmp_path, 1, "val", workers=1)


# --- the machine --------------------------------------------------------------------------------


def test_no_place_to_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Not a directory: .*file/w"):
        make(tmp_path / "file" / "w", 1, "val", workers=1)


def test_a_full_disk_leaves_nothing_that_looks_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: Path
) -> None:
    out, writes = tmp_path / "w", []
    opened = Path.open

    class Full:
        """A file that takes a few bytes and then none."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def writelines(self, pieces: Any) -> None:
            self.file.write("".join(pieces)[:50])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_until_full(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        file = opened(path, mode, *rest, **named)
        if mode != "w":
            return file
        writes.append(path)
        return Full(file) if len(writes) >= 3 else file  # world.json, the first truth, then full

    monkeypatch.setattr(Path, "open", open_until_full)
    with pytest.raises(OSError, match="No space left on device; complete scenes are") as refused:
        make(out, 3, "train", workers=1)
    assert refused.value.errno == errno.ENOSPC
    assert str(out) in str(refused.value)
    monkeypatch.undo()
    assert [path.name for path in (out / "truth").iterdir()] == ["0.json"]
    assert not list(out.rglob("*.partial"))
    make(out, 3, "train", workers=1)
    assert first(out, 3) == first(world, 3)


def test_without_libx11(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    making._renderer.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(OSError, match=r"install Debian's package libx11-6$"):
        make(tmp_path, 1, "val", workers=1)
    command = ["world", "make", "--out", str(tmp_path), "--scenes", "1", "--split", "val"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--workers", "1"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("install Debian's package libx11-6\n")
    assert not list((tmp_path / "truth").iterdir())
    making._renderer.cache_clear()


def test_ctrl_c_ends_cleanly(tmp_path: Path, world: Path) -> None:
    command = [sys.executable, "-m", "drivekd", "world", "make", "--out", str(tmp_path)]
    command += ["--scenes", "500", "--workers", "2", "--split", "train"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 120
    while not list(tmp_path.glob("truth/*.json")) and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers get it too
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "interrupted" in said.splitlines()[-1]
    done = [path.stem for path in tmp_path.glob("truth/*.json")]
    assert done
    assert not list(tmp_path.rglob("*.partial"))
    for name in done:
        truth = json.loads((tmp_path / "truth" / f"{name}.json").read_text())
        assert truth["frame"]["seed"] == int(name)
