from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from drivekd.evaluate import chat
from drivekd.evaluate.chat import ChatEndpoint, ChatError, ChatReply, read_reply, retry_after
from evaluate.chat_server import Plan, Server, serving


def ask(server: Server, **more: Any) -> ChatReply:
    async def once() -> ChatReply:
        async with ChatEndpoint(server.url, "m", **more) as endpoint:
            return await endpoint.complete([{"role": "user", "content": "hello"}], temperature=0)

    return asyncio.run(once())


def first(*faults: str) -> Plan:
    return lambda n, body: faults[n] if n < len(faults) else "ok"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "FIRST_WAIT", 0.001)


def test_a_reply_with_its_tokens_and_parameters() -> None:
    with serving(str.upper) as server:
        reply = ask(server)
    assert reply == ChatReply("HELLO", 100, 20, "stop")
    assert server.bodies[0]["temperature"] == 0 and server.bodies[0]["model"] == "m"


@pytest.mark.parametrize("fault", ["408", "409", "429 0", "500", "503", "cut"])
def test_what_may_pass_is_tried_again(fault: str) -> None:
    with serving(str.upper, first(fault, fault)) as server:
        assert ask(server).text == "HELLO"
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("400", "request"),
        ("401", "endpoint"),
        ("404", "endpoint"),
        ("302", "request"),
        ("html", "reply"),
        ("truncated", "reply"),
    ],
)
def test_what_would_come_again_is_not(fault: str, kind: str) -> None:
    with serving(str.upper, first(*[fault] * 9)) as server, pytest.raises(ChatError) as caught:
        ask(server)
    assert caught.value.kind == kind and len(server.bodies) == 1
    assert "\n" not in str(caught.value) and server.url in str(caught.value)


def test_retry_after_is_waited_for_and_capped() -> None:
    with serving(str.upper, first("429 1")) as server:
        started = time.monotonic()
        ask(server)
        assert time.monotonic() - started >= 1
    with serving(str.upper, first("429 3600")) as server:
        ask(server, longest_wait=0.01)
    assert len(server.bodies) == 2


def test_retry_after_as_a_number_a_date_or_nonsense() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert retry_after("7", now) == 7
    assert retry_after("Thu, 01 Jan 2026 00:00:30 GMT", now) == 30
    assert retry_after("Wed, 31 Dec 2025 00:00:00 GMT", now) == 0
    assert [retry_after(bad, now) for bad in (None, "", "soon", "-3", "nan", "inf")] == [None] * 6


def test_a_slow_loris_runs_into_the_time_of_a_whole_try() -> None:
    with serving(str.upper, first("slow", "slow")) as server, pytest.raises(ChatError) as caught:
        ask(server, timeout=0.2, tries=2)
    assert caught.value.kind == "transport"
    assert "no complete reply within 0.2 s, after 2 tries" in str(caught.value)


def test_no_more_requests_at_a_time_than_allowed() -> None:
    async def many(url: str) -> None:
        async with ChatEndpoint(url, "m", concurrency=3) as endpoint:
            turns = [{"role": "user", "content": "x"}]
            await asyncio.gather(*(endpoint.complete(turns) for _ in range(30)))
            assert endpoint.usage.requests == 30 and endpoint.usage.completion_tokens == 600

    with serving(str.upper, lambda n, body: "late") as server:
        asyncio.run(many(server.url))
    assert server.busiest == 3


def test_the_key_is_sent_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("A_KEY", "sk-secret")
    caplog.set_level(0)
    with serving(str.upper, first("401")) as server, pytest.raises(ChatError) as caught:
        ask(server, key_env="A_KEY")
    assert "Bearer sk-secret" in server.headers[0]
    assert "[key]" in str(caught.value)  # this server repeats the request's headers
    shown = f"{caught.value!r} {caplog.text} {ChatEndpoint(server.url, 'm', key_env='A_KEY')!r}"
    assert "sk-secret" not in shown


@pytest.mark.parametrize("status", ["200", "400"])
@pytest.mark.parametrize("key", ["sk-secret0123456789", "a/b+c0123456789"])
def test_no_part_of_the_key_is_left_where_a_body_is_cut(
    monkeypatch: pytest.MonkeyPatch, status: str, key: str
) -> None:
    monkeypatch.setenv("A_KEY", key)
    for place in (180, 284, 374, 437):
        for form in {key, key.replace("/", "\\/")}:
            text = '{"error": "' + "." * place + form + '"}'
            plan = first(f"body {status} {text}")
            with serving(str.upper, plan) as server, pytest.raises(ChatError) as caught:
                ask(server, key_env="A_KEY")
            said = str(caught.value)
            assert key[:4] not in said and form[:4] not in said and len(said) <= 500


def test_before_each_try_somebody_is_asked_who_may_end_it() -> None:
    tries: list[str] = []

    def before_try() -> None:
        if len(tries) == 2:
            raise LookupError("enough")
        tries.append("one")

    async def once(url: str) -> None:
        async with ChatEndpoint(url, "m", tries=5) as endpoint:
            await endpoint.complete([{"role": "user", "content": "x"}], before_try)

    with serving(str.upper, first(*["503"] * 5)) as server, pytest.raises(LookupError):
        asyncio.run(once(server.url))
    assert len(server.bodies) == 2


def test_a_key_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    with serving(str.upper) as server, pytest.raises(ValueError, match="A_KEY"):
        ask(server, key_env="A_KEY")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x/v1",
        "x/v1",
        "http://u:hidden@x/v1",
        "ftp://u:hidden@x:notaport/v1",
        "u:hidden@x/v1",
        "http://x/v1?key=hidden",
        "http://x:notaport/v1?key=hidden",
        "http://x/v1?",
        "http://x/v1#hidden",
        "http://x:notaport/v1#hidden",
    ],
)
def test_addresses_that_are_refused_and_not_quoted_where_they_may_hold_a_secret(url: str) -> None:
    with pytest.raises(ValueError, match="address") as caught:
        ChatEndpoint(url, "m")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://h/v1", "http://h/v1/", "http://h/v1/chat/completions"])
def test_addresses_of_one_server(url: str) -> None:
    assert ChatEndpoint(url, "m").url == "http://h/v1"


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        None,
        "text",
        {"choices": []},
        {"choices": [{"message": {"content": None}}]},
        {"choices": [{"message": {"content": " "}}]},
        {"choices": [{"text": "old protocol"}]},
    ],
)
def test_bodies_that_are_no_reply(body: Any) -> None:
    with pytest.raises(ValueError):
        read_reply(body)


@pytest.mark.parametrize(
    ("text", "reason", "taken"),
    [
        ("", "stop", True),
        (None, "stop", True),
        (" ", "length", True),
        ("", "content_filter", False),
        (None, "tool_calls", False),
        ("", None, False),
        (7, "stop", False),
    ],
)
def test_a_reply_without_text_is_one_where_the_model_ended_it(
    text: Any, reason: str | None, taken: bool
) -> None:
    body = {"choices": [{"message": {"content": text}, "finish_reason": reason}]}
    with pytest.raises(ValueError):
        read_reply(body)
    if taken:
        assert read_reply(body, empty=True) == ChatReply(text or "", finish_reason=reason)
    else:
        with pytest.raises(ValueError, match=r"no text \(finish_reason"):
            read_reply(body, empty=True)
