"""A chat server on loopback with faults by plan, and a judge's side of the conversation."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from drivekd.data.sample import Message, Sample
from drivekd.evaluate.answers.answer import Answer

Plan = Callable[[int, dict[str, Any]], str]


@dataclass
class Server:
    """What it was asked, in order of arrival; `plan` may be exchanged while it runs."""

    plan: Plan
    say: Callable[[str], str]
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    busy: int = 0
    busiest: int = 0


def _http(status: str, body: bytes, *more: str, kind: str = "application/json") -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *more]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def completion(text: str) -> bytes:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 100, "completion_tokens": 20}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


def text_of(body: dict[str, Any]) -> str:
    """The text of a request's last message, without its images."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(p.get("text", "") for p in content)


def _response(fault: str, server: Server, body: dict[str, Any]) -> bytes:
    good = completion(server.say(text_of(body)))
    if fault in ("ok", "late"):
        return _http("200 OK", good)
    if fault == "truncated":
        return _http("200 OK", good[:-20])
    if fault == "html":
        return _http("200 OK", b"<html>busy</html>", kind="text/html")
    if fault.startswith("body "):  # "body 200 {}": a status and what is said with it
        _, status, text = fault.split(" ", 2)
        return _http(f"{status} X", text.encode())
    if fault.startswith("429"):
        return _http("429 Too Many", b"{}", f"Retry-After: {fault.partition(' ')[2]}")
    return _http(f"{fault} X", json.dumps({"error": server.headers[-1]}).encode())


async def _serve(
    server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    left = (asyncio.IncompleteReadError, ConnectionError)  # clients go when they like
    with closing(writer), suppress(*left):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(re.search(r"content-length: (\d+)", head, re.IGNORECASE)[1])  # type: ignore[index]
            body = json.loads(await reader.readexactly(length))
            number = len(server.bodies)
            server.bodies.append(body)
            server.headers.append(head)
            server.busy += 1
            server.busiest = max(server.busiest, server.busy)
            try:
                await asyncio.sleep(0)
                fault = server.plan(number, body)
                await _answer(fault, server, body, writer)
            finally:
                server.busy -= 1
            if fault == "cut":
                break


async def _answer(
    fault: str, server: Server, body: dict[str, Any], writer: asyncio.StreamWriter
) -> None:
    if fault == "cut":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
        return
    if fault == "late":
        await asyncio.sleep(0.01)
    if fault == "slow":  # a byte at a time, longer than anybody waits
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        for _ in range(100):
            writer.write(b"{")
            await writer.drain()
            await asyncio.sleep(0.02)
    writer.write(_response(fault, server, body))
    await writer.drain()


@contextmanager
def serving(say: Callable[[str], str], plan: Plan = lambda n, body: "ok") -> Iterator[Server]:
    """The server, in a thread of its own, until the block ends."""
    server, loop, ready = Server(plan, say), asyncio.new_event_loop(), threading.Event()
    stop = asyncio.Event()

    async def main() -> None:
        listening = await asyncio.start_server(
            lambda r, w: _serve(server, r, w), "127.0.0.1", 0, limit=2**20
        )
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
        ready.set()
        await stop.wait()
        listening.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.0002)  # client and server take turns for every message
    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    try:
        assert ready.wait(30)
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
        sys.setswitchinterval(usual)


def fill(prompt: str, share: float = 0.5) -> str:
    """What a judge says that gives every criterion this share of its points."""
    mark = re.findall(r'"mark": "(\w+)"', prompt)[-1]
    rows = re.findall(r"^(\d+)\. ([^\n(:]+) \((\d+) points\):", prompt, re.MULTILINE)
    points = {int(n): (name, int(most) * share) for n, name, most in rows}
    lines = [f"{n}. {name}: {value:g}" for n, (name, value) in points.items()]
    return "\n".join((mark, *lines, f"Total: {sum(value for _, value in points.values()):g}"))


def planned(count: int, reply: str = "Slow down.") -> tuple[list[Answer], list[Sample]]:
    """Planning questions with their answers; the texts differ, and so do the prompts."""
    samples, answers = [], []
    for i in range(count):
        turns = (Message("user", f"What now, {i}?"), Message("assistant", "Brake."))
        samples.append(Sample(f"q{i}", turns, {}, capability="planning", scene="s"))
        answers.append(answered(samples[-1], reply))
    return answers, samples


def answered(sample: Sample, reply: str) -> Answer:
    return Answer(
        id=sample.id,
        capability=sample.capability,
        template=None,
        scene=sample.scene,
        question=sample.question,
        expected=sample.answer or "",
        reply=reply,
        correct=False,
    )
