"""Small copies of the pictures of an evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from datafiles import bomb, picture
from drivekd.report.thumbnails import thumbnails


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "pictures").iterdir()}


def test_copies_are_small_upright_and_made_once(tmp_path: Path) -> None:
    large, turned = tmp_path / "large.jpg", tmp_path / "turned.jpg"
    Image.new("RGB", (1600, 900), "red").save(large)
    exif = Image.Exif()
    exif[0x0112] = 6  # held on its side
    Image.new("RGB", (40, 20), "blue").save(turned, exif=exif)
    out = tmp_path / "e"
    found = thumbnails([large, turned, large], out)
    sizes = {path.name: copy and (copy.width, copy.height) for path, copy in found.items()}
    assert sizes == {"large.jpg": (480, 270), "turned.jpg": (20, 40)}
    for copy in found.values():
        assert copy is not None
        with Image.open(out / copy.name) as image:
            assert image.format == "JPEG" and image.size == (copy.width, copy.height)
    before = files(out)
    assert len(before) == 2 and thumbnails([turned, large], out) == found
    assert files(out) == before


def test_a_changed_picture_and_a_broken_copy_are_copied_again(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.jpg", 1)
    first = thumbnails([path], tmp_path)[path]
    assert first is not None
    (tmp_path / first.name).write_bytes(b"half")
    assert thumbnails([path], tmp_path)[path] == first
    with Image.open(tmp_path / first.name) as image:
        assert image.size == (320, 180)
    second = thumbnails([picture(path, 2)], tmp_path)[path]
    assert second is not None and second.name != first.name


def test_what_is_no_picture_has_no_copy(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    paths = [tmp_path / "gone.jpg", tmp_path / "text.jpg", bomb(tmp_path / "b.png"), tmp_path]
    assert list(thumbnails([*paths, Path("a\0b")], tmp_path).values()) == [None] * 5
    assert not (tmp_path / "pictures").exists()


def test_a_link_does_not_lead_copies_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    (tmp_path / "e/pictures").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="link"):
        thumbnails([picture(tmp_path / "a.jpg", 1)], tmp_path / "e")
