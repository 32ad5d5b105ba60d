"""Named streams and the order of the data."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivekd.data.sample import Message, Sample
from drivekd.distill.order import (
    Order,
    Portion,
    padding,
    portions,
    projection_order,
    select,
    stream,
    windows,
)
from drivekd.models.batch import flat, group


def order(rows: int = 5, **changes: Any) -> Order:
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
    assert [len(flat(w.batches)) for w in shown] == [4, 4, 2]
    assert sorted(i for w in shown for i in flat(w.batches)) == list(range(10))
    assert [w.epoch for w in shown] == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_epochs_differ_and_any_step_can_be_the_first() -> None:
    whole = list(windows(order(), 0, 9))
    assert whole[0].batches != whole[3].batches
    assert list(windows(order(), 4, 9)) == whole[4:]


def test_batches_cut_the_same_windows() -> None:
    large = [w.batches for w in windows(order(), 0, 3)]
    small = windows(order(rows_per_batch=1, batches_per_step=2), 0, 3)
    assert [tuple(row for b in w.batches for row in b) for w in small] == [b for (b,) in large]


def test_questions_of_a_visit_are_drawn_anew_each_epoch() -> None:
    many = Order((tuple(range(7)),), 0, 1, 1, questions_per_row=3)
    visits = [flat(w.batches) for w in windows(many, 0, 11)]
    assert all(len(set(visit)) == 3 and list(visit) == sorted(visit) for visit in visits)
    assert set().union(*visits) == set(range(7))


def test_rows_group_equal_keys_in_order() -> None:
    assert group(["b", "a", "b", 7]) == ((0, 2), (1,), (3,))


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


# ------------------------------------------------------------------------------- the mixture

OWNERS = ("p",) * 2 + ("r",) * 7 + ("p",) + ("l",) * 13  # 3 p, 7 r, 13 l
SHARES = {"p": 0.5, "r": 0.3, "l": 0.2}


def mixed(**changes: Any) -> Order:
    rows = tuple((i,) for i in range(len(OWNERS)))
    settings = {"rows_per_batch": 2, "batches_per_step": 2, **changes}
    return Order(rows, 3, portions=portions(OWNERS, SHARES), **settings)


def epochs(found: Order, count: int) -> list[list[int]]:
    """The samples of each epoch, in order."""
    shown: list[list[int]] = []
    for window in windows(found, 0, count * found.steps_per_epoch):
        if window.step % found.steps_per_epoch == 0:
            shown.append([])
        shown[-1] += flat(window.batches)
    return shown


def test_portions_are_the_nearest_whole_numbers() -> None:
    assert {p.name: p.visits for p in portions(OWNERS, SHARES)} == {"p": 11, "r": 7, "l": 5}
    equal = portions("aab", {"b": 7, "a": 7})  # whatever their order: a resumed recipe's may differ
    assert equal == (Portion("a", (0, 1), 2), Portion("b", (2,), 1))


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        (
            {"a": 1, "b": 1, "c": 1},
            "data.mixture.c: 1 of 3: no training sample has it; there are a",
        ),
        ({"a": 1e9, "b": 1}, r"data.mixture.b: 1 of 1e\+09: is less than one of 3 rows"),
    ],
)
def test_shares_that_nothing_can_fill_are_refused(shares: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        portions("aab", shares)


def test_every_epoch_has_the_shares_and_no_row_comes_again_before_all_others() -> None:
    shown = epochs(mixed(), 7)
    for epoch in shown:
        assert Counter(OWNERS[i] for i in epoch) == {"p": 11, "r": 7, "l": 5}
    for name in SHARES:
        own = [i for epoch in shown for i in epoch if OWNERS[i] == name]
        size = OWNERS.count(name)
        whole = [own[k : k + size] for k in range(0, len(own) - size + 1, size)]
        assert all(len(set(turn)) == size for turn in whole)
    assert shown[0] != shown[1]


def test_any_step_of_a_mixture_can_be_the_first_and_processes_do_not_move_it() -> None:
    whole = list(windows(mixed(), 0, 30))
    assert list(windows(mixed(), 17, 30)) == whole[17:]
    two = windows(mixed(batches_per_step=1, processes=2), 0, 30)
    assert [w.batches for w in two] == [w.batches for w in whole]
    single = windows(mixed(rows_per_batch=1, batches_per_step=4), 0, 30)
    assert [flat(w.batches) for w in single] == [flat(w.batches) for w in whole]


def test_a_portion_that_grows_moves_no_draw_of_the_others() -> None:
    """Each capability has a stream of its own."""
    shares = {"p": 0.4, "r": 0.3, "l": 0.3}
    other = replace(mixed(), portions=portions(OWNERS, shares))
    firsts = [[i for i in epochs(found, 1)[0] if OWNERS[i] == "r"] for found in (mixed(), other)]
    assert firsts[0] == firsts[1]


# ------------------------------------------------------------------------------------- lengths


def lengthy(count: int = 211, **changes: Any) -> Order:
    """Rows of one sample each, of 10 to 99 tokens."""
    sizes = tuple((0, int(n)) for n in np.random.default_rng(5).integers(10, 100, count))
    settings = {"rows_per_batch": 3, "batches_per_step": 1, "sizes": sizes, "by_length": True}
    return Order(tuple((i,) for i in range(count)), 3, **{**settings, **changes})


def test_rows_of_like_length_meet_and_each_is_seen_once() -> None:
    found, other = lengthy(), lengthy(by_length=False)
    shown = epochs(found, 2)
    assert [sorted(epoch) for epoch in shown] == [list(range(211))] * 2
    assert shown[0] != shown[1]
    assert 0 < padding(found) < padding(other) / 4


def test_the_longest_comes_first_and_lengths_do_not_fall_from_step_to_step() -> None:
    found = lengthy()
    firsts = [max(found.sizes[i][1] for i in flat(w.batches)) for w in windows(found, 0, 70)]
    assert firsts[0] == max(n for _, n in found.sizes)
    falls = sum(one > other for one, other in pairwise(firsts))
    assert 20 < falls < 48


@pytest.mark.parametrize("count", [7, 9, 11, 17, 195])  # the last pool would be a short step
def test_the_longest_comes_first_whatever_is_left_over(count: int) -> None:
    for seed in range(30):
        sizes = tuple((0, 10 + 7 * i) for i in range(count))
        rows = tuple((i,) for i in range(count))
        found = Order(rows, seed, 4, 1, sizes=sizes, by_length=True)
        first = flat(next(windows(found, 0, 1)).batches)
        assert count - 1 in first


def test_any_step_by_length_can_be_the_first_and_processes_do_not_move_it() -> None:
    whole = list(windows(lengthy(batches_per_step=2), 0, 80))
    assert list(windows(lengthy(batches_per_step=2), 41, 80)) == whole[41:]
    two = windows(lengthy(processes=2), 0, 80)
    assert [w.batches for w in two] == [w.batches for w in whole]
    assert len(whole[35].batches) == 1  # 211 rows: the short window is the epoch's last


def test_padding_counts_what_batches_leave_empty() -> None:
    rows, sizes = ((0, 1), (2,), (3,)), ((4, 1), (4, 2), (0, 5), (0, 6))
    assert padding(Order(rows, 0, 3, 1, sizes=sizes)) == pytest.approx(1 - (7 + 5 + 6) / 21)
    assert padding(Order(rows, 0, 1, 3, sizes=sizes)) == 0


def test_a_mixture_is_grouped_by_length_too() -> None:
    sizes = tuple((0, 10 + 7 * (i % 5)) for i in range(len(OWNERS)))
    found = replace(mixed(), sizes=sizes, by_length=True)
    assert Counter(epochs(found, 1)[0]) == Counter(epochs(mixed(), 1)[0])
    assert padding(found) < padding(replace(found, by_length=False))
