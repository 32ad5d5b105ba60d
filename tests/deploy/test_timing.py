from __future__ import annotations

import pytest

from drivekd.deploy.bench.timing import Timeline, percentile, spread


def test_first_token_and_time_per_token_of_planted_stamps() -> None:
    times = Timeline(started=10.0, ready=10.5, arrivals=(12.0, 12.25, 12.5, 13.0, 13.5), tokens=5)
    assert times.ttft == 2.0
    assert times.prefill == 1.5
    assert times.latency == 3.5
    assert times.tpot == (3.5 - 2.0) / 4


def test_pieces_of_several_tokens_count_as_the_tokens_they_are() -> None:
    times = Timeline(started=0.0, ready=None, arrivals=(1.0, 3.0), tokens=5)
    assert times.tpot == 0.5
    assert times.prefill is None


def test_an_answer_of_one_token_has_no_time_per_token() -> None:
    assert Timeline(0.0, 0.0, (1.0,), 1).tpot is None
    assert Timeline(0.0, None, (1.0,), 5).tpot is None  # all at once: nothing tells


def test_an_end_without_text_counts_as_the_last_token() -> None:
    times = Timeline(started=0.0, ready=None, arrivals=(1.0, 2.0), tokens=3, ended=3.0)
    assert (times.latency, times.tpot) == (3.0, 1.0)


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1), (1, 1), (50, 50), (90, 90), (99, 99), (100, 100)]
)
def test_percentiles_of_a_hundred(percent: float, expected: int) -> None:
    assert percentile([*range(100, 0, -1)], percent) == expected


def test_the_99th_percentile_of_few_is_the_largest() -> None:
    assert percentile([3.0, 1.0, 2.0], 99) == 3.0
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    found = spread([4.0, 1.0, 3.0, 2.0])
    assert found == {"median": 2.5, "p50": 2.0, "p90": 4.0, "p99": 4.0, "min": 1.0, "max": 4.0}


def test_nothing_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        spread([])
