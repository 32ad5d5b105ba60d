"""Files to pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from drivekd.data.pictures import read_image
from drivekd.models.images import image_size, pixels, token_grid


def test_pixels_are_one_tile_per_file(vlm, pictures):
    paths = [pictures("x"), pictures("wide", (160, 90))]
    got = pixels(vlm, paths)
    if vlm.family.one_size:
        assert got["pixel_values"].shape == (2, 3, 48, 48)
        assert set(got) == {"pixel_values"}
    else:
        grids = got["image_grid_thw"]
        assert int(grids.prod(-1).sum()) == len(got["pixel_values"])
        merged = (grids[:, 1:] // vlm.image_processor.merge_size).tolist()
        assert [tuple(grid) for grid in merged] == [token_grid(vlm, p) for p in paths]


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_broken_files_are_named(vlm, tmp_path, pictures, content):
    path = tmp_path / "broken.jpg"
    whole = pictures("x").read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        pixels(vlm, [path])
    path.unlink()
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        image_size(path)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new("RGB", (6, 4), (200, 10, 10)).convert(mode).save(path)
    assert read_image(path).mode == "RGB"


def test_pictures_stand_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    assert read_image(path).size == image_size(path) == (20, 40)


def test_size_of_a_file_written_anew_is_read_anew(tmp_path):
    path = tmp_path / "x.png"
    for size in ((40, 20), (30, 50)):
        Image.new("RGB", size).save(path)
        assert image_size(path) == size


@pytest.mark.parametrize(("mode", "level"), [("grey", 128), ("black", 0)])
def test_one_colour_has_the_grid_of_the_picture_and_none_of_its_content(vlm, pictures, mode, level):
    paths = [pictures("x"), pictures("wide", (160, 90))]
    real, plain = pixels(vlm, paths), pixels(vlm, paths, mode)
    assert real["pixel_values"].shape == plain["pixel_values"].shape
    processor = vlm.image_processor
    wanted = (level / 255 - np.array(processor.image_mean)) / np.array(processor.image_std)
    values = np.unique(plain["pixel_values"].cpu().numpy().round(4))
    assert np.allclose(np.sort(values), np.sort(wanted), atol=1e-3)


def test_other_shows_the_stand_in_on_the_grid_of_the_original(vlm, pictures):
    path, stand_in = pictures("wide", (160, 90)), pictures("x")
    got = pixels(vlm, [path], "other", {path: stand_in})
    real = pixels(vlm, [path])
    assert got["pixel_values"].shape == real["pixel_values"].shape
    assert not torch.equal(got["pixel_values"], real["pixel_values"])
    with pytest.raises(ValueError, match="stand-in"):
        pixels(vlm, [path], "other", {})
