"""The streaming client against a real server on loopback: what it sends, times, and gives up on."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest
from tests.deploy.stream_server import PIECES, streaming

from drivekd.data.sample import Sample
from drivekd.deploy.bench.server import BrokenStreamError, events, server
from drivekd.evaluate.chat import ChatError

Shown = Callable[..., Sample]
KEY = "sk-abc/def-123456"


def test_pieces_are_stamped_when_they_come(shown: Shown) -> None:
    with streaming(first=0.2, pause=0.05) as streamer, server(streamer.url, "m") as engine:
        (reply,) = engine([shown(2)], 16)
    times = reply.timeline
    assert times.tokens == len(times.arrivals) == len(PIECES)
    assert times.ttft >= 0.2
    assert times.latency >= 0.2 + 6 * 0.05
    assert times.ttft < times.latency - 2 * 0.05  # when it came, not when all had come
    assert times.tpot == (times.latency - times.ttft) / 6
    assert times.ready is None
    (body,) = streamer.bodies
    assert (body["model"], body["max_tokens"], body["stream"]) == ("m", 16, True)
    kinds = [part["type"] for part in body["messages"][0]["content"]]
    assert kinds == ["text", "image_url", "text", "image_url", "text"]
    sent = body["messages"][0]["content"][1]["image_url"]["url"]
    head, _, data = sent.partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == next(iter(shown(2).images.values())).read_bytes()
    assert "Authorization" not in streamer.headers[0]


def test_tokens_as_the_server_counts_them_and_requests_side_by_side(shown: Shown) -> None:
    with streaming(usage=14, first=0.6) as streamer, server(streamer.url, "m") as engine:
        replies = engine([shown(1)] * 3, 16)
        ends = [each.timeline.arrivals[-1] for each in replies]
        starts = [each.timeline.started for each in replies]
    assert [each.timeline.tokens for each in replies] == [14] * 3
    assert max(ends) - min(starts) < 3 * 0.6  # one behind another takes at least that
    assert len(streamer.bodies) == 3


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ("silent", "transport", "nothing for 0.3 s, after 3 pieces"),
        ("comments", "transport", "nothing for 0.3 s, after 3 pieces"),
        ("cut", "reply", "ended in the middle of the answer, after 3 pieces"),
        ("error", "reply", "out of memory.*after 3 pieces"),
        ("nonsense", "reply", "expected JSON in the stream.*after 3 pieces"),
        ("empty", "reply", "the answer has no text"),
        ("status 401 no such key", "endpoint", "status 401: no such key"),
        ("status 400 too many images", "request", "status 400: too many images"),
    ],
)
def test_a_server_that_fails_is_told_of_in_one_line(
    shown: Shown, monkeypatch: pytest.MonkeyPatch, fault: str, kind: str, said: str
) -> None:
    monkeypatch.setenv("KEY", KEY)
    with (
        streaming(fault=fault) as streamer,
        server(streamer.url, "m", "KEY", patience=0.3) as engine,
        pytest.raises(ChatError, match=said) as caught,
    ):
        engine([shown(1)], 16)
    assert caught.value.kind == kind
    assert streamer.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert streamer.url in str(caught.value)
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_slow_server_is_no_fault(shown: Shown) -> None:
    with (
        streaming(first=0.3, pause=0.2) as streamer,
        server(streamer.url, "m", patience=1.0) as engine,
    ):
        (reply,) = engine([shown(1)], 16)
    assert reply.timeline.latency > 1.0


def test_a_server_that_is_not_there(shown: Shown) -> None:
    with streaming() as streamer:
        url = streamer.url
    with server(url, "m") as engine, pytest.raises(ChatError, match="after 0 pieces") as caught:
        engine([shown(1)], 4)
    assert caught.value.kind == "transport"


@pytest.mark.parametrize(
    "line", ["[]", "3", '{"choices": ["x"]}', '{"choices": [{"delta": {"content"'], ids=str
)
def test_chunks_that_are_none(line: str) -> None:
    with pytest.raises(BrokenStreamError):
        list(events([f"data: {line}"]))


def test_thoughts_are_tokens_and_a_finish_reason_ends_a_stream_without_its_mark() -> None:
    lines = [
        'data: {"choices": [{"delta": {"reasoning_content": "hm"}}]}',
        "",
        'data: {"choices": [{"delta": {"content": "No."}, "finish_reason": "stop"}]}',
    ]
    assert [each.text for each in events(lines)] == ["hm", "No."]
