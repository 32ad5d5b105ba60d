"""Asks an OpenAI-compatible chat server: bounded concurrency, retries that end, tokens counted.

    async with ChatEndpoint("https://api.deepseek.com/v1", "deepseek-chat",
                            key_env="DEEPSEEK_API_KEY") as chat:
        reply = await chat.complete([{"role": "user", "content": "Hello"}], temperature=0.0)

`complete` may be awaited by any number of tasks of one event loop; `concurrency` of them talk to
the server at a time. A message's content is text, or the protocol's list of text and image parts.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import httpx
import tenacity

#: statuses that may pass; any other one would come again
RETRIED = frozenset({408, 409, 429, *range(500, 600)})
#: statuses about the endpoint itself (key, payment, address), not about one request
HOPELESS = frozenset({401, 402, 403, 404, 405})
#: finish reasons of a model that said all it had to say, or all it was allowed to
_ENDS = ("stop", "length")
#: longest first wait before another try, drawn below it and doubled each time [s]
FIRST_WAIT = 0.5
#: most characters of an error's message, a server's own words among them
_LONGEST_MESSAGE = 500

Kind = Literal["transport", "endpoint", "request", "reply"]


class ChatError(RuntimeError):
    """One request came to nothing; the message is one line and names the server.

    Attributes:
        kind: "transport" (tries used up, a later run may fare better), "endpoint" (no request will
            fare better: key, payment, address), "request" (refused for what it asks), "reply"
            (answered, but not with a chat reply).
    """

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(" ".join(message.split()))
        self.kind = kind


class _Again(Exception):  # noqa: N818 - never leaves this file
    """A try failed in a way that may pass."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class ChatReply:
    """What a server said; tokens are None where it does not count them."""

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None


@dataclass(slots=True)
class Usage:
    """Requests made so far: tries, replies with text, and their tokens."""

    requests: int = 0
    replies: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(slots=True)
class ChatEndpoint:
    """A server, a model on it, and how patiently it is asked.

    Attributes:
        url: up to and without `/chat/completions`, such as `http://127.0.0.1:8000/v1`.
        model: as the server names it.
        key_env: the environment variable that holds the key; None sends no key.
        timeout: longest time of one try, however slowly the bytes come [s].
        concurrency: requests at a time.
        tries: how often one request is made in all.
        longest_wait: cap on a wait between tries, whatever Retry-After says [s].
        usage: counts, kept up to date.
    """

    url: str
    model: str
    key_env: str | None = None
    timeout: float = 120.0
    concurrency: int = 8
    tries: int = 6
    longest_wait: float = 60.0
    usage: Usage = field(default_factory=Usage)
    _client: httpx.AsyncClient | None = field(default=None, repr=False)
    _gate: asyncio.Semaphore | None = field(default=None, repr=False)
    _key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        self.url = checked_url(self.url)
        if not self.model:
            raise ValueError(f"{self.url}: which model? Give its name as the server knows it")
        if self.concurrency < 1 or self.tries < 1 or self.timeout <= 0:
            raise ValueError(
                f"concurrency {self.concurrency}, tries {self.tries}, timeout {self.timeout} s:"
                " expected at least 1, at least 1 and more than 0"
            )

    async def __aenter__(self) -> ChatEndpoint:
        self._key = read_key(self.key_env)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=self.concurrency)
        self._client = httpx.AsyncClient(headers=headers, limits=limits, timeout=self.timeout)
        self._gate = asyncio.Semaphore(self.concurrency)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.aclose()
        self._client = self._gate = None
        self._key = ""

    async def complete(
        self,
        messages: Sequence[Mapping[str, Any]],
        before_try: Callable[[], None] | None = None,
        *,
        empty: bool = False,
        **params: Any,
    ) -> ChatReply:
        """Return one reply to a conversation.

        Args:
            messages: of the conversation.
            before_try: called before each try; what it raises ends the tries and is passed on.
            empty: a reply without text is one too, see `read_reply`.
            params: go into the request as they are.

        Raises:
            ChatError: see its kinds. Only statuses 408, 409, 429 and 5xx, time-outs and broken
                connections are tried again.
        """
        assert self._gate is not None, "use `async with`"
        body = {"model": self.model, "messages": list(messages), "stream": False, **params}
        content = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.tries),
            wait=self._wait,
            retry=tenacity.retry_if_exception_type(_Again),
            reraise=True,
        )
        async with self._gate:
            try:
                return await retrying(self._once, content, before_try, empty)
            except _Again as error:
                tries = "1 try" if self.tries == 1 else f"{self.tries} tries"
                raise self._error("transport", f"{error}, after {tries}") from None

    async def _once(
        self, content: bytes, before_try: Callable[[], None] | None, empty: bool
    ) -> ChatReply:
        assert self._client is not None
        if before_try is not None:
            before_try()
        self.usage.requests += 1
        try:
            async with asyncio.timeout(self.timeout):
                answer = await self._client.post(
                    f"{self.url}/chat/completions",
                    content=content,
                    headers={"Content-Type": "application/json"},
                )
        except (TimeoutError, httpx.TimeoutException):
            raise _Again(f"no complete reply within {self.timeout:g} s") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _Again(f"{type(error).__name__}: {error}") from None
        if answer.status_code in RETRIED:
            wait = retry_after(answer.headers.get("Retry-After"))
            raise _Again(f"status {answer.status_code}", wait)
        if not answer.is_success:
            kind: Kind = "endpoint" if answer.status_code in HOPELESS else "request"
            raise self._error(kind, f"status {answer.status_code}: {answer.text}")
        return self._read(answer, empty)

    def _read(self, answer: httpx.Response, empty: bool) -> ChatReply:
        kind = answer.headers.get("Content-Type", "none")
        try:
            reply = read_reply(json.loads(answer.content), empty)
        except (ValueError, RecursionError) as error:
            raise self._error("reply", f"no chat reply ({kind}): {error}") from None
        self.usage.replies += 1
        self.usage.prompt_tokens += reply.prompt_tokens or 0
        self.usage.completion_tokens += reply.completion_tokens or 0
        return reply

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        wait = error.wait if isinstance(error, _Again) else None
        if wait is None:
            wait = tenacity.wait_random_exponential(FIRST_WAIT, self.longest_wait)(state)
        return min(wait, self.longest_wait)

    def _error(self, kind: Kind, why: str) -> ChatError:
        """An error that names the server; a server that repeats the key is not quoted with it."""
        return safe_error(kind, f"{self.model} at {self.url}: {why}", self._key)


def safe_error(kind: Kind, text: str, key: str) -> ChatError:
    """An error whose text holds no part of a key, whoever wrote it."""
    # Before the text is cut: half a key is a secret too. As it is, and as JSON may escape it.
    for form in {key, json.dumps(key)[1:-1], key.replace("/", "\\/")} - {""}:
        text = text.replace(form, "[key]")
    return ChatError(kind, text[:_LONGEST_MESSAGE])


async def together(workers: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run workers side by side; the first error stops them all and is passed on."""
    tasks = [asyncio.create_task(worker) for worker in workers]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def checked_url(url: str) -> str:
    """Return the address without a last slash and without `/chat/completions`.

    Raises:
        ValueError: no http(s) address, or one that carries a user, a password, a query or a
            fragment; an address that may hold a secret is not quoted.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        parsed = httpx.URL()
    refused = bool(parsed.userinfo) or any(sign in str(url) for sign in "?#")
    if parsed.scheme in ("http", "https") and parsed.host and not refused:
        return url.rstrip("/").removesuffix("/chat/completions").rstrip("/")
    expected = "expected an address such as http://127.0.0.1:8000/v1"
    if refused or "@" in str(url):
        raise ValueError(
            f"an address with a password, a query or a fragment, not shown here: {expected}; a key"
            " belongs in an environment variable, which you name"
        )
    raise ValueError(f"{url!r:.100}: {expected}")


def read_key(name: str | None) -> str:
    """Read the key from an environment variable; "" without a variable's name.

    Raises:
        ValueError: the variable is not set, or holds what no header can carry.
    """
    if name is None:
        return ""
    key = os.environ.get(name, "").strip()
    if not key:
        raise ValueError(f"environment variable {name} is not set: it should hold the server's key")
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"environment variable {name} holds characters that no key has")
    return key


def retry_after(header: str | None, now: datetime | None = None) -> float | None:
    """Read the seconds of a Retry-After header, a number or a date; None if it is neither."""
    if header is None:
        return None
    if re.fullmatch(r"\s*\d{1,9}(\.\d{1,9})?\s*", header, re.ASCII):
        return float(header)
    try:
        then = parsedate_to_datetime(header)
    except ValueError:
        return None
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return max(0.0, (then - (now or datetime.now(UTC))).total_seconds())


def read_reply(body: Any, empty: bool = False) -> ChatReply:
    """Read the first choice of a parsed response.

    Args:
        body: of the response.
        empty: take a choice without text as a reply where its finish_reason says that the model
            itself came to an end ("stop") or used up its tokens ("length").

    Raises:
        ValueError: it is no chat completion with text.
    """
    try:
        choice = body["choices"][0]
        text = choice["message"]["content"]
        reason = choice.get("finish_reason")
    except (AttributeError, KeyError, IndexError, TypeError):
        raise ValueError(f"expected choices[0].message.content, got {body!r}") from None
    if text is None and empty:
        text = ""
    if not isinstance(text, str) or not (text.strip() or (empty and reason in _ENDS)):
        raise ValueError(f"the reply has no text (finish_reason {reason!r})")
    usage = body.get("usage")
    counted = usage if isinstance(usage, dict) else {}
    return ChatReply(
        text=text,
        prompt_tokens=_count(counted.get("prompt_tokens")),
        completion_tokens=_count(counted.get("completion_tokens")),
        finish_reason=reason if isinstance(reason, str) else None,
    )


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None
