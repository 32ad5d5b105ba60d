"""Whole data sets corrupted: files in, files out."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drivekd.data.corrupt import video
from drivekd.data.corrupt.corruptions import CORRUPTIONS, View, corrupt
from drivekd.data.corrupt.run import corrupt_data, corruption_of
from drivekd.data.formats.readers import read
from drivekd.files.lock import locked

corrupted = partial(corrupt_data, workers=1)

CAMERAS = ("CAM_FRONT", "CAM_BACK", "CAM_BACK_LEFT")


def row(number: int, cameras: tuple[str, ...] = CAMERAS, **more: Any) -> dict[str, Any]:
    content = "<image>" * len(cameras) + "What?"
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "A ‘car’."}]
    images = [f"images/{number}/{camera}.png" for camera in cameras]
    return {"messages": turns, "images": images, "question_type": "planning"} | more


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four frames of three cameras, with two questions about the first and one about others."""
    folder = tmp_path / "data"
    rng = np.random.default_rng(0)
    for frame in range(4):
        (folder / f"images/{frame}").mkdir(parents=True)
        for camera in CAMERAS:
            pixels = rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"images/{frame}/{camera}.png")
    rows = [row(frame, frame=f"f{frame}", scene="s", weight=frame) for frame in range(4)]
    return write(folder / "a.json", [*rows, row(0, ("CAM_BACK",), frame="f0", id="single")])


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


@pytest.mark.parametrize("name", ["Fog", "FrameLost"])
def test_new_pictures_and_the_same_questions(data: Path, tmp_path: Path, name: str) -> None:
    before = contents(data.parent)
    (questions,) = corrupted(data, tmp_path / "out", name.lower(), 3, seed=5)
    assert questions == tmp_path / "out/a.jsonl"
    assert contents(data.parent) == before
    old, new = list(read(data)), list(read(questions))
    assert len(new) == 5
    for was, now in zip(old, new, strict=True):
        kept = dataclasses.replace(now, images=was.images, source=was.source)
        assert kept == was
        for (camera, clean), (same, path) in zip(
            was.images.items(), now.images.items(), strict=True
        ):
            assert camera == same
            relative = clean.relative_to(data.parent).as_posix()
            assert path == tmp_path / "out" / relative
            view = View(relative, str(was.frame), {"CAM_FRONT": 0, "CAM_BACK": 3}.get(camera, 4))
            assert (pixels(path) == corrupt(pixels(clean), name, 3, 5, view)).all()
    assert len(list((tmp_path / "out").rglob("*.png"))) == 12
    assert not list((tmp_path / "out").rglob(".*.partial"))


@pytest.mark.parametrize("name", ["WaterSplash", "FrameLost", "CameraCrash", "LowLight"])
def test_neither_the_order_of_rows_nor_other_rows_decide_a_picture(
    data: Path, tmp_path: Path, name: str
) -> None:
    rows = json.loads(data.read_text())
    mixed = write(data.with_name("b.json"), rows[::-1])
    part = write(data.with_name("c.json"), rows[2:])
    for path in (data, mixed, part):
        corrupted(path, tmp_path / path.stem, name, 4, seed=1)
    whole = contents(tmp_path / "a/images")
    assert contents(tmp_path / "b/images") == whole
    assert contents(tmp_path / "c/images").items() < whole.items()


def test_nor_does_the_order_where_a_picture_has_two_places(data: Path, tmp_path: Path) -> None:
    files = [f"{number}.png" for number in range(6)]
    for file in files:
        Image.new("RGB", (8, 8), (255, 255, 255)).save(data.parent / file)
    rows = [row(0, CAMERAS * 2) | {"images": images} for images in (files, files[::-1])]
    for order in (1, -1):
        write(data, rows[::order])
        corrupted(data, tmp_path / str(order), "CameraCrash", 3)
    one, other = (
        {n: b for n, b in contents(tmp_path / f).items() if n in files} for f in ("1", "-1")
    )
    assert one == other
    assert len(set(one.values())) == 2


def test_two_processes_write_what_one_writes(data: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        corrupted(data, tmp_path / str(workers), "Snow", workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_all_makes_a_folder_of_each(data: Path, tmp_path: Path) -> None:
    write(data, json.loads(data.read_text())[-1:])
    files = corrupted(data, tmp_path / "out", "all", 4)
    assert [f.parent.name for f in files] == [kind.name for kind in CORRUPTIONS]
    for kind, file in zip(CORRUPTIONS, files, strict=True):
        (sample,) = read(file)
        view = View("images/0/CAM_BACK.png", "f0", 3)
        clean = pixels(data.parent / view.picture)
        assert (pixels(sample.images["CAM_BACK"]) == corrupt(clean, kind.name, 4, 0, view)).all()


def test_a_camera_crashes_in_every_frame(data: Path, tmp_path: Path) -> None:
    (questions,) = corrupted(data, tmp_path / "out", "CameraCrash", 5, seed=3)
    black = {
        camera: {
            not pixels(path).any()
            for s in read(questions)
            for c, path in s.images.items()
            if c == camera
        }
        for camera in CAMERAS
    }
    assert all(len(found) == 1 for found in black.values())
    assert {True} in black.values()


def test_jpeg_stays_jpeg_and_comes_out_upright(data: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    sideways = Image.new("RGB", (40, 24), (200, 30, 30))
    sideways.save(data.parent / "a.JPG", exif=exif)
    sideways.save(data.parent / "b.bmp")
    path = write(data, [row(0) | {"images": ["a.JPG", "b.bmp", "images/1/CAM_BACK.png"]}])
    (questions,) = corrupted(path, tmp_path / "out", "ColorQuant", 2)
    (sample,) = read(questions)
    files = list(sample.images.values())
    assert [file.name for file in files] == ["a.JPG", "b.bmp.png", "CAM_BACK.png"]
    with Image.open(files[0]) as image:
        assert (image.format, image.size) == ("JPEG", (24, 40))
        off = np.asarray(image).astype(int) - (192, 0, 0)
        assert np.abs(off).max() <= 2  # the golden tolerance holds for what is written, too


# ---- resuming, and what is refused ---------------------------------------------------------------


def test_an_interrupted_run_goes_on(data: Path, tmp_path: Path) -> None:
    out, broken = tmp_path / "out", data.parent / "images/2/CAM_BACK.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:200])
    with pytest.raises(ValueError) as raised:
        corrupted(data, out, "Rain")
    said = str(raised.value)
    assert said.startswith(f"{data}, row 3: image {broken}: cannot be read as a picture")
    assert "\n" not in said
    assert not (out / "a.jsonl").exists()
    done = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert 0 < len(done) < 12
    broken.write_bytes(whole)
    corrupted(data, out, "Rain")
    assert len(list(out.rglob("*.png"))) == 12
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    corrupted(data, tmp_path / "at_once", "Rain")
    assert contents(out) == contents(tmp_path / "at_once")


def test_an_unreadable_picture_in_another_process_is_the_same_error(
    data: Path, tmp_path: Path
) -> None:
    (data.parent / "images/0/CAM_FRONT.png").unlink()
    with pytest.raises(ValueError, match=r"a\.json, row 1: .*CAM_FRONT\.png"):
        corrupted(data, tmp_path / "out", "NoImage", workers=2)


@pytest.mark.parametrize("spelling", [".", "images/..", "../data"])
def test_never_in_place(data: Path, spelling: str) -> None:
    before = contents(data.parent)
    with pytest.raises(ValueError, match="is the folder of the data itself"):
        corrupted(data, data.parent / spelling, "Fog")
    assert contents(data.parent) == before


def test_never_in_place_through_a_link_or_an_earlier_result(data: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(data.parent)
    with pytest.raises(ValueError, match="is the folder of the data itself"):
        corrupted(data, tmp_path / "link", "Fog")
    (questions,) = corrupted(data, tmp_path / "fog", "Fog", 1)
    with pytest.raises(ValueError, match="is the folder of the data itself"):
        corrupted(questions, tmp_path / "fog", "Fog", 1)


@pytest.mark.parametrize("change", [{"name": "Snow"}, {"severity": 2}, {"seed": 1}])
def test_other_settings_need_another_folder(
    data: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {"name": "Brightness", "severity": 1, "seed": 0}
    corrupted(data, tmp_path / "out", **settings)
    with pytest.raises(ValueError, match="Brightness"):
        corrupted(data, tmp_path / "out", **(settings | change))


def test_pictures_of_another_data_set_need_another_folder(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data.parent, tmp_path / "copy")
    corrupted(data, tmp_path / "out", "Fog")
    with pytest.raises(ValueError, match="was made with other settings"):
        corrupted(tmp_path / "copy" / data.name, tmp_path / "out", "Fog")


def test_a_folder_with_other_files_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out .*thesis\.txt"):
        corrupted(data, tmp_path / "out", "Fog")
    with locked(tmp_path / "busy"), pytest.raises(ValueError, match="busy"):
        corrupted(data, tmp_path / "busy", "Fog")


def test_a_picture_outside_the_datas_folder_is_refused(data: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    write(data, [row(0) | {"images": ["../secret.png", *row(0)["images"][1:]]}])
    with pytest.raises(ValueError, match=r"row 1: .*\.\./secret\.png"):
        corrupted(data, tmp_path / "out", "Fog")
    assert not (tmp_path / "out").exists()


def test_two_pictures_never_become_one(data: Path, tmp_path: Path) -> None:
    for name in ("a.bmp", "a.bmp.png"):
        Image.new("RGB", (8, 8)).save(data.parent / name)
    write(data, [row(0, CAMERAS[:2]) | {"images": ["a.bmp.png", "a.bmp"]}])
    with pytest.raises(ValueError, match=r"row 1: .*a\.bmp\.png"):
        corrupted(data, tmp_path / "out", "Fog")
    assert not (tmp_path / "out").exists()


def test_questions_without_pictures_are_refused(data: Path, tmp_path: Path) -> None:
    write(data, [row(0, ())])
    with pytest.raises(ValueError, match=r"a\.json .*no pictures"):
        corrupted(data, tmp_path / "out", "Fog")
    assert not (tmp_path / "out").exists()


def test_without_ffmpeg_nothing_is_begun(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ValueError, match=r"drivekd\[video\]"):
        corrupted(data, tmp_path / "out", "all")
    assert not (tmp_path / "out").exists()


def test_a_failing_ffmpeg_is_said_with_the_picture(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "ffmpeg_path", lambda: "/bin/false")
    with pytest.raises(RuntimeError, match=r"row 1: .*CAM_BACK\.png: ffmpeg"):
        corrupted(data, tmp_path / "out", "H.265")


def test_a_full_disk_leaves_no_half_picture(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Image.Image, path: Path, *_: Any, **__: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match=r"out .*No space left"):
        corrupted(data, tmp_path / "out", "Fog")
    assert list(contents(tmp_path / "out")) == ["corruption.json"]


@pytest.mark.real_data
def test_real_pictures_keep_their_size(real_data: Path, tmp_path: Path) -> None:
    sample = next(iter(read(real_data / "drivelm/test_eval.json")))
    camera, file = next(iter(sample.images.items()))
    relative = file.relative_to(real_data / "drivelm").as_posix()
    path = write(tmp_path / "one.json", [row(0, (camera,)) | {"images": [relative]}])
    (questions,) = corrupted(path, tmp_path / "out", "MotionBlur", root=real_data / "drivelm")
    (made,) = next(iter(read(questions))).images.values()
    assert made == tmp_path / "out" / relative
    assert pixels(made).shape == (900, 1600, 3)
    assert np.abs(pixels(made).astype(int) - pixels(file)).mean() > 0.5


def test_corrupted_data_tell_their_corruption(tmp_path: Path) -> None:
    root = tmp_path / "clean"
    (root / "images" / "1").mkdir(parents=True)
    for camera in CAMERAS:
        Image.new("RGB", (32, 18), (90, 90, 90)).save(root / "images" / "1" / f"{camera}.png")
    data = write(root / "val.json", [row(1)])
    assert corruption_of(data) is None
    [written] = corrupted(data, tmp_path / "fog", "fog", 3)
    assert corruption_of(written) == {"name": "Fog", "severity": 3}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"corruption": "Mist", "severity": 1}', "\xff"])
def test_a_broken_note_of_a_corruption_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "corruption.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"corruption\.json: "):
        corruption_of(tmp_path / "val.jsonl")
