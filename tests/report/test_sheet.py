from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageChops

from datafiles import bomb, picture, row, six, write
from drivekd.data.formats.readers import read
from drivekd.report.sheet import contact_sheet


def drawn(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def test_tags_are_drawn_where_they_are(tmp_path: Path) -> None:
    """The same picture with and without a tag differs around the tag's place and nowhere else."""
    picture(tmp_path / "a.jpg", 1)
    sheets = []
    for place in ("0.5000,0.2500", "800.0,225.0", "5000,5000"):
        path = write(tmp_path / "a.json", [row(f"<image>What is <c1,CAM_FRONT,{place}>?")])
        sheets.append(drawn(contact_sheet(read(path), tmp_path / "s.png")))
    fraction, pixel, none = (sheet.crop((0, 110, 400, 400)) for sheet in sheets)
    assert ImageChops.difference(fraction, pixel).getbbox() is None
    left, top, right, bottom = ImageChops.difference(fraction, none).getbbox() or (0, 0, 0, 0)
    x, y = 20 + 0.5 * 192, 0.25 * 192 - 6
    assert left < x < right and top < y < bottom and bottom - top < 40


def test_a_tag_is_drawn_on_the_camera_it_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [six("Is <c1,CAM_BACK,0.1,0.9> it?")])
    (sample,) = read(path)
    for seed, file in enumerate(sample.images.values()):
        picture(file, seed)
    with_tag = drawn(contact_sheet([sample], tmp_path / "s.png"))
    plain = read(write(tmp_path / "b.json", [six("Is <c1,CAM_BACK,9000,9> it?")]))
    without = drawn(contact_sheet(plain, tmp_path / "t.png"))
    box = (0, 110, with_tag.width, with_tag.height)
    left, _, right, _ = ImageChops.difference(with_tag.crop(box), without.crop(box)).getbbox() or (
        0, 0, 0, 0,
    )  # fmt: skip
    assert 20 + 3 * 198 < left < right < 20 + 4 * 198


def test_one_sample_of_each_kind_and_pictures_that_are_gone(tmp_path: Path) -> None:
    rows = [row(template=f"t{n // 2}", question_type=("a", "b")[n % 2]) for n in range(20)]
    path = write(tmp_path / "a.json", [row("no pictures", images=[]), *rows])
    few = drawn(contact_sheet(read(path), tmp_path / "s.png", 3))
    many = drawn(contact_sheet(read(path), tmp_path / "t.png", 12))
    assert (few.height - 20) * 4 == (many.height - 20)  # one of a and b; four of each
    with pytest.raises(ValueError, match="pictures"):
        contact_sheet([], tmp_path / "u.png")


def test_a_picture_of_too_many_pixels_is_an_empty_frame(tmp_path: Path) -> None:
    bomb(tmp_path / "a.jpg")
    samples = list(read(write(tmp_path / "a.json", [row()])))
    with_bomb = drawn(contact_sheet(samples, tmp_path / "s.png"))
    (tmp_path / "a.jpg").unlink()
    without = drawn(contact_sheet(samples, tmp_path / "s.png"))  # an older sheet is replaced
    assert ImageChops.difference(with_bomb, without).getbbox() is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.json", "is a PNG picture, .*a.json is not"),
        ("data.png", "data.png exists and is no PNG picture"),
        ("folder.png", "folder.png exists and is no PNG picture"),
    ],
)
def test_a_sheet_takes_the_place_of_pictures_only(tmp_path: Path, name: str, said: str) -> None:
    samples = list(read(write(tmp_path / "a.json", [row()])))
    before = (tmp_path / "a.json").read_bytes()
    (tmp_path / "data.png").hardlink_to(tmp_path / "a.json")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=said):
        contact_sheet(samples, tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == before


@pytest.mark.real_data
def test_real_pictures(tmp_path: Path, real_data: Path) -> None:
    path = contact_sheet(read(real_data / "drivelm/test_eval.json"), tmp_path / "s.png", 3)
    assert drawn(path).width == 1222
