"""Drawn questions: answers checked against the pixels, equal seeds, equal files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drivekd.data.sample import Sample
from drivekd.study.general import COLOURS, NUMBERS, PLACES, SIDE, draw_general

PICTURES = 12


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return draw_general(tmp_path_factory.mktemp("general"), PICTURES, seed=3)


def seen_at(sample: Sample, place: str) -> str | None:
    """The colour in the middle of a cell, None where it is the ground's."""
    (path,) = sample.images.values()
    pixels = np.asarray(Image.open(path))
    cell = PLACES.index(place)
    middle = pixels[SIDE // 3 * (cell // 3) + SIDE // 6, SIDE // 3 * (cell % 3) + SIDE // 6]
    names = [name for name, colour in COLOURS.items() if (middle == colour).all()]
    return names[0] if names else None


def test_every_picture_gets_four_kinds_of_questions(samples: list[Sample]) -> None:
    assert len(samples) == 4 * PICTURES
    assert {s.template for s in samples} == {"count", "colour", "place", "list"}
    assert len({s.scene for s in samples}) == PICTURES
    assert all(s.capability is None and len(s.images) == 1 for s in samples)


def test_colours_and_places_are_those_of_the_pixels(samples: list[Sample]) -> None:
    for sample in samples:
        place = next((p for p in PLACES if p in sample.question), None)
        if place is not None:
            colour = seen_at(sample, place)
            assert colour is not None and sample.answer is not None and colour in sample.answer


def test_listed_shapes_are_as_many_as_cells_hold(samples: list[Sample]) -> None:
    for sample in samples:
        if sample.template == "list":
            words = re.findall("|".join(NUMBERS), sample.answer or "")
            here = sum(seen_at(sample, place) is not None for place in PLACES)
            assert sum(NUMBERS.index(word) for word in words) == here


def test_counted_figures_are_at_most_those_of_their_colour(samples: list[Sample]) -> None:
    for sample in samples:
        if sample.template == "count":
            colour = sample.question.split()[2]
            number = NUMBERS.index((sample.answer or "").split()[2])
            assert 1 <= number <= sum(seen_at(sample, place) == colour for place in PLACES)


def test_equal_seeds_give_equal_files(tmp_path: Path, samples: list[Sample]) -> None:
    again = draw_general(tmp_path / "again", 2, seed=3)
    other = draw_general(tmp_path / "other", 2, seed=4)
    assert [s.messages for s in again] == [s.messages for s in samples[: len(again)]]
    one, same, different = (
        next(iter(s[0].images.values())).read_bytes() for s in (samples, again, other)
    )
    assert one == same != different
