from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from drivekd.report.figures import Line, Mark, attention_strip, curves, data_uri, tile

GREY = Image.new("RGB", (160, 90), (120, 120, 120))


def test_brightest_token_is_where_the_attention_is() -> None:
    heat = np.zeros((5, 3), dtype=np.float32)
    heat[4, 0] = 0.2
    drawn = np.asarray(tile(GREY, heat, peak=0.2, size=150)).astype(float)
    cells = drawn.reshape(5, 30, 3, 50, 3).mean(axis=(1, 3))
    colourful = cells.max(axis=-1) - cells.min(axis=-1)
    assert colourful.argmax() == 4 * 3 + 0
    assert np.sort(colourful.ravel())[-2] < 2  # no attention, no colour


def test_no_attention_at_all_is_drawn_without_colour() -> None:
    drawn = np.asarray(tile(GREY, np.zeros((2, 2), dtype=np.float32), peak=0.0))
    assert drawn.std() == 0


def test_tile_is_square_as_the_model_sees_it() -> None:
    assert tile(GREY).size == (192, 192)


def test_mark_is_where_the_tag_says() -> None:
    plain, marked = tile(GREY), tile(GREY, marks=[Mark("", 0.75, 0.25)])
    rows, columns = np.nonzero((np.asarray(plain) != np.asarray(marked)).any(axis=-1))
    assert columns.mean() == pytest.approx(0.75 * 192, abs=1.5)
    assert rows.mean() == pytest.approx(0.25 * 192, abs=1.5)


def test_strip_shows_every_camera() -> None:
    maps = {"CAM_FRONT": np.full((4, 4), 0.01), "CAM_BACK": np.full((4, 4), 0.02)}
    drawn = attention_strip(dict.fromkeys(maps, GREY), maps, "a question " * 40, "attention")
    assert drawn.width >= 2 * 256
    assert drawn.height > 256


def test_strip_without_a_map_is_refused() -> None:
    with pytest.raises(ValueError, match="CAM_BACK"):
        attention_strip({"CAM_BACK": GREY}, {"CAM_FRONT": np.zeros((2, 2))}, "", "")


def test_data_uri_is_a_picture() -> None:
    assert data_uri(GREY).startswith("data:image/webp;base64,UklGR")


LINES = [
    Line("a < b", "c1", 0, list(range(1000)), [1 / (i + 1) for i in range(1000)]),
    Line("c", "c2", 1, [3], [0.5]),
]


@pytest.mark.parametrize("log", [False, True])
def test_curves_are_clean_svg(log: bool) -> None:
    svg = curves(LINES, log=log, unit="nats & bits", reference=0.3)
    root = ET.fromstring(svg)
    assert root.tag.endswith("svg")
    assert "width" not in root.attrib
    assert "nats &amp; bits" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg), "a fixed colour is left"
    assert "var(--c1)" in svg
    assert "<style" not in svg
    assert len(svg) < 40_000


def test_curves_are_the_same_every_time_and_ids_their_own() -> None:
    assert curves(LINES) == curves(LINES)
    ids = [set(re.findall(r'id="([^"]+)"', curves(LINES, log=log))) for log in (False, True)]
    assert not ids[0] & ids[1]


def test_log_axis_leaves_out_what_it_cannot_show() -> None:
    svg = curves([Line("a", "c1", 0, [1, 2, 3], [0.0, 1.0, 2.0])], log=True)
    assert "nan" not in svg.lower()
