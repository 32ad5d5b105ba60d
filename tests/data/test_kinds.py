"""Kinds of questions, told by their wording."""

from __future__ import annotations

import pytest

from drivekd.data.kinds import KINDS, Kind, kind_of


@pytest.mark.parametrize("kind", KINDS, ids=[kind.words for kind in KINDS])
def test_no_kind_stands_in_the_way_of_another(kind: Kind) -> None:
    assert kind_of(f"What {kind.words.upper()} it?") == kind


def test_a_traffic_signal_is_no_traffic_sign() -> None:
    asked = "What is the traffic signal that the ego vehicle should pay attention to?"
    assert getattr(kind_of(asked), "capability", None) == "planning"
    assert kind_of("Hello?") is None
