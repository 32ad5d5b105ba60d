"""The chat server's endpoints: who may enter, what becomes of a request, how the reply goes out."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from drivekd.deploy.serving.batching import Job, Line, Piece
from drivekd.deploy.serving.limits import Limits
from drivekd.deploy.serving.pictures import write_picture
from drivekd.deploy.serving.protocol import (
    DONE,
    ChatReply,
    ChatRequest,
    Finish,
    Picture,
    Refused,
    event,
    read_request,
    stopping,
    usage,
)
from drivekd.deploy.serving.reply_text import ReplyText
from drivekd.models.encode import Encoded
from drivekd.models.rows import end_tokens
from drivekd.models.sampling import Sampling

T = TypeVar("T")

#: longest time in which a request's body is to arrive [s]
BODY_SECONDS = 60
#: of a body that is too large so many times the limit are read and dropped, so that clients that
#: send before they listen hear why they are refused
_DROPPED = 4


class _Left(Exception):  # noqa: N818 - not an error
    """The client has gone."""


@dataclass(eq=False, slots=True)
class _Call:
    """A request under way: what was asked, the job that answers it, what was heard of it."""

    asked: ChatRequest
    job: Job
    heard: asyncio.Queue[Piece | Refused]

    async def next(self) -> Piece:
        """The next piece of the reply."""
        found = await self.heard.get()
        if isinstance(found, Refused):
            raise found
        return found

    @property
    def usage(self) -> dict[str, int]:
        return usage(len(self.job.encoded.input_ids), len(self.job.reply.tokens))


#: names of this machine to itself
LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(eq=False)
class Door:
    """Lets requests in, one place each, and answers out.

    Attributes:
        line: where requests wait.
        limits: how much is taken.
        key: what clients must know; "" asks for none.
        place: folder for pictures, ours alone.
        local: this machine alone is served.
        draining: nobody enters any more.
        inside: places that are taken.
    """

    line: Line
    limits: Limits
    key: str
    place: Path
    local: bool = True
    draining: bool = False
    inside: int = 0

    def app(self) -> FastAPI:
        """The endpoints."""
        app = FastAPI(openapi_url=None)
        app.add_api_route("/health", self.health, methods=["GET"])
        app.add_api_route("/v1/models", self.models, methods=["GET"])
        app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"])
        app.add_exception_handler(Refused, _refused)
        app.add_exception_handler(404, _no_such_address)
        app.add_exception_handler(405, _no_such_address)
        app.add_exception_handler(500, _broken)
        return app

    async def health(self) -> Response:
        """Whether requests are taken."""
        if self.draining:
            raise stopping()
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        """The one model."""
        self._check_key(request)
        model = {"id": self.line.served.name, "object": "model", "owned_by": "drivekd"}
        return JSONResponse({"object": "list", "data": [model | {"created": 0}]})

    async def chat(self, request: Request) -> Response:
        """A chat completion, whole or as a stream."""
        self._admit(request)
        self.inside += 1
        call: _Call | None = None
        stream = False
        try:
            loop, most = asyncio.get_running_loop(), self.limits.max_body_mb * 10**6
            # No name for the body: it is gone as soon as it is read.
            call = await loop.run_in_executor(
                None, self._prepared, await _body(request, most), loop
            )
            self.line.put(call.job)
            first = await _unless_left(request, call.next())
            if stream := call.asked.stream:
                return _Stream(self._events(call, first), partial(self._leave, call))
            return JSONResponse(await _unless_left(request, self._whole(call, first)))
        except _Left:
            return Response(status_code=499)  # nobody reads it
        finally:
            if not stream:
                self._leave(call)

    def _check_key(self, request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if self.key and not hmac.compare_digest(given, f"Bearer {self.key}".encode()):
            raise Refused(
                401,
                "wrong key, or none: expected the header Authorization: Bearer KEY",
                code="invalid_api_key",
            )

    def _admit(self, request: Request) -> None:
        """Refuse who may not enter, or now cannot, before the body is read."""
        self._check_key(request)
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname
        if not self.key and self.local and host not in LOCAL:
            # A web page whose name leads here could read what it may send as its own.
            raise Refused(403, f"unknown Host: expected one of {', '.join(LOCAL)}")
        # A web page may send anything else to this address without asking for leave.
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, "expected the header Content-Type: application/json")
        if self.draining:
            raise stopping()
        if self.inside >= self.limits.max_batch + self.limits.max_waiting:
            raise Refused(
                429, f"{self.inside} requests wait or run; try again", code="full", retry_after=1
            )

    def _leave(self, call: _Call | None) -> None:
        self.inside -= 1
        if call is not None:
            call.job.gone = True

    def _prepared(self, body: bytes, loop: asyncio.AbstractEventLoop) -> _Call:
        """Read and check a request, in a thread of its own."""
        asked = read_request(body)
        served = self.line.served
        if asked.model != served.name:
            raise Refused(
                404,
                f"there is no model of this name here; expected {served.name!r}",
                param="model",
                code="model_not_found",
            )
        folder = Path(tempfile.mkdtemp(dir=self.place))
        try:
            encoded = served.encoded(asked.messages, self._files(asked, folder))
            heard: asyncio.Queue[Piece | Refused] = asyncio.Queue()

            def tell(what: Piece | Refused) -> None:
                loop.call_soon_threadsafe(heard.put_nowait, what)

            job = self._job(asked, encoded, folder, tell)
            # Its pictures are files by now; a place that waits need not hold them twice.
            return _Call(asked.model_copy(update={"messages": []}), job, heard)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _files(self, asked: ChatRequest, folder: Path) -> list[Path]:
        """The pictures of a request, in order."""
        places = [
            (part.image_url.url, f"messages[{k}].content[{i}].image_url")
            for k, turn in enumerate(asked.messages)
            for i, part in enumerate(turn.content)
            if isinstance(part, Picture)
        ]
        most = self.limits.max_images
        if len(places) > most:
            raise Refused(
                400,
                f"the request has {len(places)} pictures; at most {most} are taken here",
                param="messages",
                code="too_many_images",
            )
        files = [folder / str(number) for number in range(len(places))]
        for (url, param), file in zip(places, files, strict=True):
            write_picture(url, file, self.limits.max_image_pixels, param)
        return files

    def _job(
        self,
        asked: ChatRequest,
        encoded: Encoded,
        folder: Path,
        tell: Callable[[Piece | Refused], object],
    ) -> Job:
        """What the worker is to do; an answer that may not be as long as asked for is refused."""
        served, length = self.line.served, len(encoded.input_ids)
        most = min(self.limits.max_new_tokens, served.context - length)
        if asked.length is not None and asked.length > most:
            raise Refused(
                400,
                f"an answer of {asked.length} tokens to a conversation of {length} is asked for; "
                f"at most {most} are given here",
                param="max_tokens" if asked.max_tokens else "max_completion_tokens",
                code="too_many_tokens",
            )
        ends = frozenset(end_tokens(served.vlm))
        reply = ReplyText(served.decode, ends, asked.stop, asked.length or most)
        seed = secrets.randbits(63) if asked.seed is None else asked.seed
        return Job(encoded, folder, reply, Sampling(asked.temperature, asked.top_p), seed, tell)

    async def _whole(self, call: _Call, piece: Piece) -> dict[str, Any]:
        """The reply from its first piece on."""
        text = piece.text
        while piece.finish is None:
            piece = await call.next()
            text += piece.text
        return ChatReply(call.asked.model).whole(text, piece.finish, call.usage)

    async def _events(self, call: _Call, piece: Piece) -> AsyncIterator[str]:
        """The reply from its first piece on, as a stream."""
        reply = ChatReply(call.asked.model)
        yield reply.event({"role": "assistant", "content": ""})
        finish: Finish | None = None
        try:
            while finish is None:
                if piece.text:
                    yield reply.event({"content": piece.text})
                finish = piece.finish
                piece = await call.next() if finish is None else piece
        except Refused as why:  # the status is out already
            yield event(why.content)
            return
        yield reply.event({}, finish)
        if call.asked.stream_options.include_usage:
            yield reply.usage_event(call.usage)
        yield DONE


class _Stream(StreamingResponse):
    """Events that give their place back, even where none was sent."""

    def __init__(self, events: AsyncIterator[str], leave: Callable[[], None]) -> None:
        super().__init__(
            events, headers={"Cache-Control": "no-store"}, media_type="text/event-stream"
        )
        self._leave = leave

    async def __call__(self, *scope_receive_send: Any) -> None:
        try:
            await super().__call__(*scope_receive_send)
        finally:
            self._leave()


async def _body(request: Request, most: int) -> bytes:
    """The body of a request; one that is too large is not kept."""
    parts: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more and size <= _DROPPED * most:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise _Left
                part = message.get("body", b"")
                more, size = message.get("more_body", False), size + len(part)
                parts = [*parts, part] if size <= most else []
    except TimeoutError:
        raise Refused(408, f"the request was not complete within {BODY_SECONDS} s") from None
    if size > most:
        raise Refused(
            413,
            f"the request is too large: at most {most // 10**6} MB are taken here; send fewer or "
            "smaller pictures",
            code="request_too_large",
        )
    return b"".join(parts)


async def _unless_left(request: Request, work: Awaitable[T]) -> T:
    """Wait for some work unless the client leaves, which ends it."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _Left
        return working.result()
    finally:
        working.cancel()
        watching.cancel()


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse(error.content, error.status, error.headers)


async def _no_such_address(request: Request, error: Exception) -> Response:
    status = int(getattr(error, "status_code", 404))
    there = "POST /v1/chat/completions, GET /v1/models and GET /health"
    return JSONResponse(Refused(status, f"there is {there} here").content, status)


async def _broken(request: Request, error: Exception) -> Response:
    return JSONResponse(Refused(500, "the server failed; its log says why").content, 500)
