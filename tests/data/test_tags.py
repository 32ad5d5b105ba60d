from __future__ import annotations

import pytest

from drivekd.data.tags import Tag, in_unit, main_unit, read_tags


def test_tags_are_read_in_order() -> None:
    text = "Both <c2,CAM_BACK,0.4700,0.6800><r57> and < c1 , CAM_FRONT , 1069.9 , 3e2 > do."
    assert read_tags(text) == [
        Tag("c2", "CAM_BACK", 0.47, 0.68),
        Tag("c1", "CAM_FRONT", 1069.9, 300.0),
    ]
    assert read_tags("<c1,CAM_FRONT,0.4>, <r9> and <c1,CAM_FRONT,a,b>") == []


@pytest.mark.parametrize(
    ("x", "y", "unit", "as_pixel", "as_fraction"),
    [
        (0.4678, 0.6772, "fraction", True, True),
        (1.0, 0.0, "fraction", True, True),
        (714.3, 503.6, "pixel", True, False),
        (1600.0, 900.0, "pixel", True, False),
        (4.32, 0.85, None, True, False),
        (1600.1, 900.0, None, False, False),
        (-0.1, 0.5, None, False, False),
    ],
)
def test_units(x: float, y: float, unit: str | None, as_pixel: bool, as_fraction: bool) -> None:
    tag = Tag("c1", "CAM_FRONT", x, y)
    assert tag.unit == unit
    assert (tag.inside("pixel"), tag.inside("fraction")) == (as_pixel, as_fraction)


def test_the_unit_of_many() -> None:
    tags = read_tags("<c1,A,0.1,0.2><c2,A,300,200><c3,A,300,200><c4,A,4.32,0.85><c5,A,4.32,0.85>")
    assert main_unit(tags) == "pixel"
    assert main_unit(tags[:1]) == "fraction"
    assert main_unit(tags[3:]) is None


def test_conversion_there_and_back() -> None:
    pixels = "Is <c1,CAM_BACK,1088.3,497.5> behind < c2, CAM_FRONT, 4.32, 0.85 >?"
    fractions = in_unit(pixels, "fraction")
    assert fractions == "Is <c1,CAM_BACK,0.6802,0.5528> behind < c2, CAM_FRONT, 4.32, 0.85 >?"
    assert in_unit(fractions, "fraction") == fractions
    assert in_unit(fractions, "pixel").startswith("Is <c1,CAM_BACK,1088.3,497.5> behind")
    assert in_unit(pixels, "pixel") == pixels
