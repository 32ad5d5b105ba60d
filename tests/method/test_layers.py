"""Layer specifications and grouped matching."""

from itertools import pairwise

import pytest

from drivekd.method.signals.layers import group_layers, resolve


@pytest.mark.parametrize(
    ("spec", "num_layers", "expected"),
    [
        ("first", 7, [0]),
        ("penultimate", 7, [5]),
        ("last", 7, [6]),
        (3, 7, [2]),
        ("3", 7, [2]),
        ("all", 3, [0, 1, 2]),
        ("1..penultimate", 5, [0, 1, 2, 3]),
        ("2..penultimate-1", 7, [1, 2, 3, 4]),
        ("first+1 .. last", 4, [1, 2, 3]),
        ("5, 1..2, 2", 5, [0, 1, 4]),
        ("penultimate", 2, [0]),
        ("1..penultimate", 2, [0]),
        (" First ", 2, [0]),
    ],
)
def test_resolve(spec: int | str, num_layers: int, expected: list[int]) -> None:
    assert resolve(spec, num_layers) == expected


@pytest.mark.parametrize(
    ("spec", "num_layers", "says"),
    [
        ("penultimate", 1, "layer 0"),
        (0, 5, "layers 1 to 5"),
        (6, 5, "layers 1 to 5"),
        ("middle", 5, "cannot read 'middle'"),
        ("", 5, "cannot read"),
        ("1..2..3", 5, "more than one"),
        ("4..2", 5, "backwards"),
        ("2..penultimate-1", 3, "backwards"),
        ("-1", 5, "cannot read"),
    ],
)
def test_resolve_refuses(spec: int | str, num_layers: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        resolve(spec, num_layers)


@pytest.mark.parametrize(
    ("student", "teacher", "width"),
    [(24, 28, 5), (24, 48, 25), (24, 64, 41), (28, 28, 1), (28, 48, 21), (28, 64, 37)],
)
def test_windows_of_the_method(student: int, teacher: int, width: int) -> None:
    """METHOD §3 lists the window for every published pair of depths."""
    groups = group_layers(resolve("1..penultimate", student), resolve("1..penultimate", teacher))
    assert [len(group) for group in groups.values()] == [width] * (student - 1)
    assert [group[0] for group in groups.values()] == list(range(student - 1))
    assert groups[student - 2][-1] == teacher - 2


def test_window_with_fewer_teacher_layers_repeats_the_last() -> None:
    assert group_layers([0, 1, 2, 3, 4], [3, 7]) == {0: [3], 1: [7], 2: [7], 3: [7], 4: [7]}


def test_one_layer_each() -> None:
    assert group_layers([5], [11]) == {5: [11]}
    assert group_layers([5], [11], "proportional") == {5: [11]}


@pytest.mark.parametrize("k", range(1, 12))
@pytest.mark.parametrize("m", range(1, 12))
def test_proportional_covers_everything_in_order(k: int, m: int) -> None:
    groups = list(group_layers(list(range(k)), list(range(m)), "proportional").values())
    assert sorted({layer for group in groups for layer in group}) == list(range(m))
    assert all(group == list(range(group[0], group[-1] + 1)) for group in groups)
    assert all(a[0] <= b[0] and a[-1] <= b[-1] for a, b in pairwise(groups))
    for i, group in enumerate(groups, start=1):
        j = (i - 1) * m // k + 1
        assert group[0] == j - 1
        assert group[-1] == max(j, -(-i * m // k)) - 1


@pytest.mark.parametrize(
    ("student", "teacher", "grouping", "says"),
    [
        ([], [0], "window", "student_layers"),
        ([0], [], "window", "teacher_layers"),
        ([0, 0], [0], "window", "distinct"),
        ([-1], [0], "window", "distinct"),
    ],
)
def test_group_layers_refuses(
    student: list[int], teacher: list[int], grouping: str, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        group_layers(student, teacher, grouping)
