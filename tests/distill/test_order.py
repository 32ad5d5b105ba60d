"""Named streams and the order of the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drivekd.data.sample import Message, Sample
from drivekd.distill.order import Order, group_rows, projection_order, select, stream, windows


def order(rows: int = 5, **changes: int | None) -> Order:
    settings = {"seed": 3, "rows_per_batch": 2, "batches_per_step": 1, **changes}
    return Order(tuple((2 * i, 2 * i + 1) for i in range(rows)), **settings)


def test_streams_are_named_and_repeatable() -> None:
    draws = [stream(0, "data", 1).integers(2**60) for _ in range(2)]
    assert draws[0] == draws[1]
    others = [(1, "data", 1), (0, "projection", 1), (0, "data", 2), (0, "data")]
    assert len({int(stream(*key).integers(2**60)) for key in others} | {int(draws[0])}) == 5


def test_an_epoch_shows_everything_once_and_its_last_window_is_short() -> None:
    shown = list(windows(order(), 0, 3))
    assert [len(w.batches) for w in shown] == [1, 1, 1]
    assert [sum(map(len, w.batches)) for w in shown] == [4, 4, 2]
    assert sorted(i for w in shown for batch in w.batches for i in batch) == list(range(10))
    assert [w.epoch for w in shown] == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_epochs_differ_and_any_step_can_be_the_first() -> None:
    whole = list(windows(order(), 0, 9))
    assert whole[0].batches != whole[3].batches
    assert list(windows(order(), 4, 9)) == whole[4:]


def test_batches_cut_the_same_windows() -> None:
    large = [w.batches for w in windows(order(), 0, 3)]
    small = windows(order(rows_per_batch=1, batches_per_step=2), 0, 3)
    assert [tuple(i for b in w.batches for i in b) for w in small] == [b for (b,) in large]


def test_questions_of_a_visit_are_drawn_anew_each_epoch() -> None:
    many = Order((tuple(range(7)),), 0, 1, 1, questions_per_row=3)
    visits = [w.batches[0] for w in windows(many, 0, 11)]
    assert all(len(set(visit)) == 3 and list(visit) == sorted(visit) for visit in visits)
    assert set().union(*visits) == set(range(7))


def test_rows_group_equal_keys_in_order() -> None:
    assert group_rows(["b", "a", "b", 7]) == ((0, 2), (1,), (3,))


def test_a_seed_draws_scenes() -> None:
    samples = [
        Sample(f"{s}{q}", (Message("user", "?"),), {"image_0": Path("x")}, scene=f"scene{s}")
        for s in range(11)
        for q in range(3)
    ]
    drawn = select(samples, seed=0, max_scenes=5, max_samples=None)
    assert len(drawn) == 15
    assert len({s.scene for s in drawn}) == 5
    assert [s.id for s in drawn] == [s.id for s in samples if s in drawn]
    assert drawn != select(samples, seed=1, max_scenes=5, max_samples=None)
    assert len(select(samples, seed=0, max_scenes=None, max_samples=7)) == 7


def test_projection_orders_are_permutations_of_every_kind() -> None:
    seen = {tuple(projection_order(0, (step, 0), 3)) for step in range(60)}
    assert len(seen) == 6
    assert np.array_equal(sorted(next(iter(seen))), range(3))
