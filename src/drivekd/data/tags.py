"""Object tags in text, `<c1,CAM_FRONT,0.4678,0.6772>`: read, distinguished by unit, converted.

DriveLM writes places in pixels of its 1600×900 pictures, DriveBench and Drive-KD as fractions of
width and height with four decimals [public benchmark]. No file says which it uses.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

#: width and height of nuScenes pictures, in which DriveLM counts [px]
PICTURE = (1600, 900)

Unit = Literal["pixel", "fraction"]
_EXTENT: dict[Unit, tuple[int, int]] = {"pixel": PICTURE, "fraction": (1, 1)}


@dataclass(frozen=True, slots=True)
class Tag:
    """An object named in text: `<c1,CAM_FRONT,0.4700,0.6800>`; x, y in the text's own unit."""

    name: str
    camera: str
    x: float
    y: float

    @property
    def unit(self) -> Unit | None:
        """The unit in which x and y are a place in the picture beyond doubt, None for neither.

        Both up to 1 are fractions; both above 1 and inside the picture are pixels. One of each,
        `<c1,CAM_FRONT,4.32,0.85>`, is a broken fraction or a pixel at the edge: neither is sure.
        """
        if 0 <= self.x <= 1 and 0 <= self.y <= 1:
            return "fraction"
        if 1 < self.x <= PICTURE[0] and 1 < self.y <= PICTURE[1]:
            return "pixel"
        return None

    @property
    def place(self) -> tuple[float, float] | None:
        """Where it is, as fractions of the picture; None where `unit` is."""
        if self.unit is None:
            return None
        width, height = _EXTENT[self.unit]
        return self.x / width, self.y / height

    def inside(self, unit: Unit) -> bool:
        """Whether x and y, read in this unit, are a place in the picture."""
        width, height = _EXTENT[unit]
        return 0 <= self.x <= width and 0 <= self.y <= height


_NUMBER = r"([-+]?\d{1,30}(?:\.\d{1,30})?(?:[eE][-+]?\d{1,3})?)"
_TAG = re.compile(
    rf"<\s{{0,9}}([A-Za-z]{{1,30}}\d{{0,9}})\s{{0,9}},\s{{0,9}}(\w{{1,60}})\s{{0,9}},\s{{0,9}}"
    rf"{_NUMBER}\s{{0,9}},\s{{0,9}}{_NUMBER}\s{{0,9}}>"
)


def read_tags(text: str) -> list[Tag]:
    """Return the object tags of a text in order, repeated ones included."""
    if "<" not in text:
        return []
    return [Tag(name, camera, float(x), float(y)) for name, camera, x, y in _TAG.findall(text)]


def main_unit(tags: Iterable[Tag]) -> Unit | None:
    """Return the unit that most of the tags are in beyond doubt, None where none is."""
    units = Counter(tag.unit for tag in tags if tag.unit is not None)
    return max(sorted(units), key=units.__getitem__, default=None)


def in_unit(text: str, unit: Unit) -> str:
    """Convert a text's tags to this unit: fractions with four decimals, pixels with one.

    Tags that are in this unit already, or in none beyond doubt, stay as they are.
    """

    def replaced(match: re.Match[str]) -> str:
        tag = Tag(match[1], match[2], float(match[3]), float(match[4]))
        if tag.unit is None or tag.unit == unit:
            return match[0]
        if unit == "fraction":
            place = f"{tag.x / PICTURE[0]:.4f},{tag.y / PICTURE[1]:.4f}"
        else:
            place = f"{tag.x * PICTURE[0]:.1f},{tag.y * PICTURE[1]:.1f}"
        return f"<{tag.name},{tag.camera},{place}>"

    return _TAG.sub(replaced, text)
