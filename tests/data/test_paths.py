"""From the text of an image path to a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivekd.data.formats.rows import RowError
from drivekd.data.paths import resolve

SAMPLE = "samples/CAM_BACK/x__CAM_BACK__1.jpg"


def test_an_absolute_path_inside_is_taken_as_it_stands(tmp_path: Path) -> None:
    """Also where it has a folder of nuScenes in it, and another file would fit from there on."""
    file = tmp_path / "archive" / SAMPLE
    for place in (file, tmp_path / "nuscenes" / SAMPLE):
        place.parent.mkdir(parents=True)
        place.touch()
    assert resolve(str(file), tmp_path, "row 1") == file
    assert resolve(f"archive/{SAMPLE}", tmp_path, "row 1") == file
    file.unlink()
    assert resolve(str(file), tmp_path, "row 1") == tmp_path / "nuscenes" / SAMPLE


def test_a_colon_makes_no_url(tmp_path: Path) -> None:
    assert resolve("seq1:0001/a.jpg", tmp_path, "row 1") == tmp_path / "seq1:0001/a.jpg"


@pytest.mark.parametrize(
    "text", ["https://a.b/c.jpg", "S3://b/c.jpg", "data:image/png;base64,AA", "file:/etc/x.jpg"]
)
def test_urls(tmp_path: Path, text: str) -> None:
    with pytest.raises(RowError, match=r"row 1: .*URL") as caught:
        resolve(text, tmp_path, "row 1")
    assert caught.value.check == "image_path"
