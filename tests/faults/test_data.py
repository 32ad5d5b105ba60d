"""Data that is damaged, odd or hostile: a run says what is wrong before its first step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import runs
from drivekd.distill.train import train

pytestmark = pytest.mark.faults

Damage = Callable[[Path], object]
Row = dict[str, Any]


def first_picture(data: Path) -> Path:
    return data.parent / json.loads(data.read_text().splitlines()[0])["images"][0]


def refused(data: Path, out: Path) -> str:
    """What a run says about its data; it must say so before anything is trained."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        train(runs.recipe(data, out, capabilities={}), student=runs.tiny_student())
    assert not list(out.glob("*checkpoint*")) and not (out / "final").exists()
    assert not (out / "log.jsonl").exists() or not (out / "log.jsonl").read_text()
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.unlink(), id="missing"),
        pytest.param(lambda path: path.write_bytes(b""), id="zero bytes"),
        pytest.param(lambda path: path.write_bytes(b"no picture"), id="no picture"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-60]), id="truncated"),
        pytest.param(lambda path: (path.unlink(), path.mkdir()), id="folder"),
    ],
)
def test_a_picture_that_cannot_be_read(tmp_path: Path, damage: Damage) -> None:
    data = runs.write_data(tmp_path / "data")
    path = first_picture(data)
    damage(path)
    said = refused(data, tmp_path / "run")
    assert str(path) in said


def odd_cmyk(picture: Image.Image, path: Path) -> None:
    picture.convert("CMYK").save(path.with_suffix(".tif"))


def odd_16_bit(picture: Image.Image, path: Path) -> None:
    grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(path.with_suffix(".png"))


def odd_turned(picture: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90° clockwise
    picture.transpose(Image.Transpose.ROTATE_90).save(path.with_suffix(".png"), exif=exif)


def odd_animated(picture: Image.Image, path: Path) -> None:
    other = Image.new("RGB", picture.size)
    picture.save(path.with_suffix(".png"), save_all=True, append_images=[other])


@pytest.mark.parametrize("save", [odd_cmyk, odd_16_bit, odd_turned, odd_animated])
def test_a_picture_of_an_odd_kind_counts_as_what_it_shows(
    tmp_path: Path, save: Callable[[Image.Image, Path], None]
) -> None:
    finals = []
    for kind in ("plain", "odd"):
        data = runs.write_data(tmp_path / kind)
        path = first_picture(data)
        with Image.open(path) as opened:
            picture = opened.convert("L" if save is odd_16_bit else "RGB").convert("RGB")
        path.unlink()
        if kind == "odd":
            save(picture, path)
        else:
            picture.save(path.with_suffix(".png"))
        new = next(path.parent.glob(f"{path.stem}.*"))
        data.write_text(data.read_text().replace(path.name, new.name))
        recipe = runs.recipe(data, tmp_path / f"run_{kind}", capabilities={})
        finals.append(train(recipe, student=runs.tiny_student()) / "model.safetensors")
    assert finals[0].read_bytes() == finals[1].read_bytes()


@pytest.mark.parametrize(
    "path", ["../secret.png", "/etc/passwd", "a/../../secret.png", "https://example.com/a.png"]
)
def test_a_path_that_leaves_the_data(tmp_path: Path, path: str) -> None:
    data = runs.write_data(tmp_path / "data")
    Image.new("RGB", (48, 48)).save(tmp_path / "secret.png")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[6]["images"][1] = path
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = refused(data, tmp_path / "run")
    assert f"{data}, row 7" in said and path in said


def test_broken_json_names_file_line_and_column(tmp_path: Path) -> None:
    data = runs.write_data(tmp_path / "data")
    lines = data.read_text().splitlines()
    lines[3] = lines[3].replace('"images":', '"images"')
    data.write_text("\n".join(lines))
    column = lines[3].index('"images"') + len('"images"') + 2
    assert f"{data}, row 4, column {column}: " in refused(data, tmp_path / "run")


def no_answer(row: Row) -> None:
    del row["messages"][1]


def too_many_placeholders(row: Row) -> None:
    row["messages"][0]["content"] = "<image>" + row["messages"][0]["content"]


def too_long(row: Row) -> None:
    row["messages"][0]["content"] += " and then" * 5000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (no_answer, "no answer"),
        (too_many_placeholders, "3 <image> in the user turns but 2 images"),
        (too_long, "max_position_embeddings"),
    ],
)
def test_a_sample_that_cannot_be_trained_on(
    tmp_path: Path, change: Callable[[Row], None], words: str
) -> None:
    data = runs.write_data(tmp_path / "data")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    change(rows[5])
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = refused(data, tmp_path / "run")
    assert words in said
    assert f"{data}, row 6" in said
