"""Questions about pictures that have nothing to do with driving, drawn here with exact answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from drivekd.data.formats.readers import read
from drivekd.data.sample import Sample
from drivekd.distill.order import stream
from drivekd.files.writing import atomic_file

SIDE = 192  # of a picture [px]
COLOURS = {
    "red": (208, 44, 44),
    "green": (40, 150, 70),
    "blue": (44, 84, 208),
    "yellow": (232, 196, 40),
    "black": (24, 24, 24),
}
SHAPES = ("circle", "square", "triangle")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
PLACES = tuple(
    f"{row} {column}"
    for row in ("upper", "middle", "lower")
    for column in ("left", "centre", "right")
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One shape on the picture, in a cell of a 3×3 grid."""

    shape: str
    colour: str
    cell: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


def draw_general(folder: Path, pictures: int, seed: int) -> list[Sample]:
    """Draw pictures of coloured shapes into a folder, and write four questions about each.

    Equal seeds give equal files. Questions are about number, colour, place and a list of what is
    there; answers are sentences, so that they have more than one token [ours].
    """
    rows = []
    for number in range(pictures):
        random = stream(seed, "general", number)
        figures = _figures(random)
        path = folder / f"{number}.png"
        with atomic_file(path) as draft:
            _drawn(figures, random).save(draft, format="PNG")
        rows += [
            {
                "id": f"general{number}{kind}",
                "messages": [
                    {"role": "user", "content": f"<image>\n{question}"},
                    {"role": "assistant", "content": answer},
                ],
                "images": [path.name],
                "template": kind,
                "scene": f"general{number}",
            }
            for kind, question, answer in asked(figures, random)
        ]
    path = folder / "questions.jsonl"
    with atomic_file(path) as draft:
        draft.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return list(read(path))


def _figures(random: np.random.Generator) -> list[Figure]:
    count = int(random.integers(3, 7))
    cells = random.permutation(len(PLACES))[:count]
    return [
        Figure(str(random.choice(SHAPES)), str(random.choice(list(COLOURS))), int(cell))
        for cell in cells
    ]


def asked(figures: Sequence[Figure], random: np.random.Generator) -> list[tuple[str, str, str]]:
    """Kind, question and answer of everything that is asked about a picture."""
    one = figures[int(random.integers(len(figures)))]
    same = sum(figure.name == one.name for figure in figures)
    shapes = Counter(figure.shape for figure in figures)
    counts = [_counted(shapes[shape], shape) for shape in SHAPES if shapes[shape]]
    listed = ", ".join(counts[:-1]) + f" and {counts[-1]}" if len(counts) > 1 else counts[0]
    there = "is" if same == 1 else "are"
    return [
        (
            "count",
            f"How many {one.name}s are there?",
            f"There {there} {_counted(same, one.name)} in the picture.",
        ),
        (
            "colour",
            f"What colour is the {one.shape} in the {PLACES[one.cell]}?",
            f"The {one.shape} in the {PLACES[one.cell]} is {one.colour}.",
        ),
        (
            "place",
            f"What is in the {PLACES[one.cell]} of the picture?",
            f"In the {PLACES[one.cell]} of the picture is a {one.name}.",
        ),
        (
            "list",
            "Which shapes does the picture show, and how many?",
            f"The picture shows {listed}.",
        ),
    ]


def _counted(count: int, name: str) -> str:
    return f"{NUMBERS[count]} {name}{'' if count == 1 else 's'}"


def _drawn(figures: Sequence[Figure], random: np.random.Generator) -> Image.Image:
    light = tuple(int(value) for value in random.integers(215, 250, 3))
    picture = Image.new("RGB", (SIDE, SIDE), light)
    draw = ImageDraw.Draw(picture)
    cell = SIDE // 3
    for figure in figures:
        radius = int(random.integers(cell // 4, cell // 2 - 3))
        x = cell * (figure.cell % 3) + cell // 2
        y = cell * (figure.cell // 3) + cell // 2
        colour, box = COLOURS[figure.colour], (x - radius, y - radius, x + radius, y + radius)
        if figure.shape == "circle":
            draw.ellipse(box, fill=colour)
        elif figure.shape == "square":
            draw.rectangle(box, fill=colour)
        else:
            draw.polygon(((x, y - radius), (box[0], y + radius), (box[2], y + radius)), fill=colour)
    return picture
