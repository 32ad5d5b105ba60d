"""What a model is asked when its speed is measured: a driving question about drawn pictures."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from drivekd.data.sample import CAMERAS, IMAGE_PLACEHOLDER, Message, Sample

#: of nuScenes pictures [px]
SIZE = (1600, 900)
QUESTION = (
    "Given the pictures of all cameras, what should the ego vehicle do next, and which objects "
    "does that depend on?"
)


def request(folder: Path, cameras: int) -> Sample:
    """The question about the first so many cameras, whose pictures are drawn into a folder.

    Raises:
        ValueError: there are not so many cameras.
    """
    if not 1 <= cameras <= len(CAMERAS):
        raise ValueError(f"cameras is {cameras}, expected 1 to {len(CAMERAS)}")
    images = {name: folder / f"{name}.jpg" for name in CAMERAS[:cameras]}
    for number, path in enumerate(images.values()):
        if not path.is_file():
            _draw(number).save(path, quality=90)
    return asked(images, QUESTION)


def asked(images: dict[str, Path], question: str) -> Sample:
    """A question behind its pictures, each with the name of its camera."""
    labels = "".join(f"{name}: {IMAGE_PLACEHOLDER}\n" for name in images)
    return Sample("bench", (Message("user", labels + question),), images, source="bench")


def _draw(number: int) -> Image.Image:
    """A road under a sky with a row of boxes on it; no two cameras see the same."""
    width, height = SIZE
    picture = Image.new("RGB", SIZE, (120 + 15 * number, 160, 220))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, height // 2, width, height), fill=(90, 90, 90 + 10 * number))
    pen.polygon(
        [
            (width // 2 - 40, height // 2),
            (width // 2 + 40, height // 2),
            (width, height),
            (0, height),
        ],
        fill=(60, 60, 60),
    )
    for k in range(12):
        x, y = (k * 353 + number * 97) % (width - 160), height // 2 - 60 + (k * 71) % 300
        colour = tuple((k * step + number * 40) % 256 for step in (37, 91, 151))
        pen.rectangle((x, y, x + 60 + 8 * k, y + 40 + 5 * k), fill=colour, outline=(0, 0, 0))
    return picture
