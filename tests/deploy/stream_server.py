"""A server of streamed chat completions on loopback, with faults by plan."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PIECES = ("Slow", " down", ",", " a", " person", " crosses", ".")


@dataclass
class Streamer:
    """What it was asked; `fault` says what goes wrong, `pause` [s] how slow it is."""

    url: str = ""
    fault: str = ""
    pause: float = 0.0
    first: float = 0.0
    usage: int | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)


def chunk(text: str | None, finish: str | None = None) -> dict[str, Any]:
    delta = {"role": "assistant"} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    streamer: Streamer

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        plan = self.streamer
        plan.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        plan.headers.append(dict(self.headers))
        with suppress(OSError):  # clients go when they like
            self._answer(plan)

    def _answer(self, plan: Streamer) -> None:
        if plan.fault.startswith("status "):
            _, status, text = plan.fault.split(" ", 2)
            self.send_response(int(status))
            self.end_headers()
            self.wfile.write(text.encode())
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self._say(chunk(None))
        time.sleep(plan.first)
        for number, piece in enumerate(() if plan.fault == "empty" else PIECES):
            if number == 3 and self._broken(plan):
                return
            time.sleep(plan.pause if number else 0)
            self._say(chunk(piece))
        self._say(chunk("", "stop"))
        if plan.usage is not None:
            self._say({"choices": [], "usage": {"completion_tokens": plan.usage}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _broken(self, plan: Streamer) -> bool:
        if plan.fault == "silent":
            plan.gone.wait(20)
        if plan.fault == "comments":
            for _ in range(400):
                self.wfile.write(b": still here\n\n")
                self.wfile.flush()
                time.sleep(0.02)
        if plan.fault == "error":
            self._say({"error": {"message": f"out of memory {plan.headers[-1]['Authorization']}"}})
        if plan.fault == "nonsense":
            self.wfile.write(b"data: <html>busy\n\n")
        return plan.fault in ("cut", "silent", "comments", "error", "nonsense")

    def _say(self, content: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(content)}\n\n".encode())
        self.wfile.flush()


@contextmanager
def streaming(**plan: Any) -> Iterator[Streamer]:
    """The server, in a thread of its own, until the block ends."""
    streamer = Streamer(**plan)
    handler = type("Handler", (_Handler,), {"streamer": streamer})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        streamer.url = f"http://127.0.0.1:{listening.server_port}/v1"
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield streamer
        finally:
            streamer.gone.set()
            listening.shutdown()
            thread.join(30)
