"""Pictures made by threads ahead of time are those that are made when they are needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from drivekd.data.pictures import read_image
from drivekd.models import ahead as made_ahead
from drivekd.models.ahead import PER_WORKER, ahead, unseen
from drivekd.models.images import AHEAD, pixels
from drivekd.models.vlm import Vlm

Pictures = Callable[..., Path]


def workers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("pictures")]


def groups(pictures: Pictures, count: int = 7) -> list[tuple[Path, ...]]:
    """Two pictures of two sizes each, one of them shared by all."""
    return [(pictures(f"x{k}", (90, 50)), pictures("shared")) for k in range(count)]


def test_a_picture_alone_is_the_picture_among_others(vlm: Vlm, pictures: Pictures) -> None:
    """`pixels` makes one after the other: no image processor may look at its neighbours."""
    paths = [pictures("a"), pictures("wide", (160, 90)), pictures("b", (90, 50))]
    together = vlm.image_processor(images=[read_image(path) for path in paths], return_tensors="pt")
    for name, value in pixels(vlm, paths).items():
        assert torch.equal(value.cpu(), together[name])


@pytest.mark.parametrize("count", [1, 3])
def test_the_numbers_are_the_same_bits(vlm: Vlm, pictures: Pictures, count: int) -> None:
    items = groups(pictures)
    plain = [pixels(vlm, files) for files in items]
    with ahead(items, lambda files: [(vlm, path) for path in files], count) as coming:
        found = [pixels(vlm, files) for files in coming]
    for one, other in zip(found, plain, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not AHEAD.get()
    assert not workers()


def test_only_what_is_coming_is_kept(vlm: Vlm, pictures: Pictures) -> None:
    items = groups(pictures, 40)
    taken = []

    def wanted(files: tuple[Path, ...]) -> list[tuple[Vlm, Path]]:
        taken.append(files)
        return [(vlm, path) for path in files]

    with ahead(items, wanted, 1) as coming:
        for number, files in enumerate(coming):
            assert files == items[number]
            assert number + 2 <= len(taken) or len(taken) == 40
            assert len(AHEAD.get()) <= PER_WORKER + 2
    assert taken == items


def test_questions_without_pictures_are_not_all_read_at_once() -> None:
    left = iter(range(1000))
    with ahead(left, lambda item: (), 1) as coming:
        assert next(coming) == 0
        assert next(left) <= PER_WORKER


def test_each_picture_is_made_once(
    vlm: Vlm, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    real = made_ahead.processed

    def counted(vlm: Vlm, path: Path) -> dict[str, torch.Tensor]:
        made.append(path)
        return real(vlm, path)

    monkeypatch.setattr(made_ahead, "processed", counted)
    items = groups(pictures)
    with ahead(items, unseen(vlm), 2) as coming:
        for files in coming:
            pixels(vlm, files[:1])
    assert sorted(made) == sorted({path for files in items for path in files})


def test_a_broken_file_is_told_when_its_turn_comes(
    vlm: Vlm, pictures: Pictures, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    items = [*groups(pictures, 2), (broken,), (broken,)]
    done = []

    def work() -> None:
        with ahead(items, lambda files: [(vlm, path) for path in files], 2) as coming:
            done.extend(pixels(vlm, files) for files in coming)

    with pytest.raises(ValueError, match=r"broken\.jpg"):
        work()
    assert len(done) == 2
    assert not workers()


def test_an_interrupt_ends_the_threads(vlm: Vlm, pictures: Pictures) -> None:
    items = groups(pictures)

    def work() -> None:
        with ahead(items, lambda files: [(vlm, path) for path in files], 2) as coming:
            next(coming)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not workers()
    assert not AHEAD.get()


def test_nobody_works_where_nobody_is_asked_to() -> None:
    with ahead([1, 2], lambda item: pytest.fail("asked for pictures"), 0) as coming:
        assert list(coming) == [1, 2]
        assert not workers()
