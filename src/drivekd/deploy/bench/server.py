"""Any OpenAI-compatible server as an engine, timed from outside by the pieces that it streams."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from drivekd.data.sample import Sample
from drivekd.deploy.bench.engine import Engine, Reply
from drivekd.deploy.bench.timing import Timeline
from drivekd.evaluate.answers.remote import messages
from drivekd.evaluate.chat import HOPELESS, ChatError, Kind, checked_url, read_key, safe_error

#: how long a server may say nothing at all [s]
PATIENCE = 120.0


class BrokenStreamError(ValueError):
    """What was streamed is no chat completion, or ends too early."""


@dataclass(frozen=True, slots=True)
class Event:
    """What one line of a stream says.

    Attributes:
        text: a piece of the answer, or "".
        tokens: how long the answer was, where the server counts.
        last: nothing of the answer comes after it.
    """

    text: str = ""
    tokens: int | None = None
    last: bool = False


@contextmanager
def server(
    url: str, model: str, key_env: str | None = None, patience: float = PATIENCE
) -> Iterator[Engine]:
    """An engine of a server; a batch is so many requests at a time.

    Args:
        url: up to and without `/chat/completions`, such as `http://127.0.0.1:8000/v1`.
        model: as the server names it.
        key_env: the environment variable that holds the key; None sends no key.
        patience: how long it may say nothing before it counts as stopped [s].

    Raises:
        ValueError: no address, or no key in that variable.
    """
    place, key = checked_url(url), read_key(key_env)
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    def failed(kind: Kind, why: str) -> ChatError:
        return safe_error(kind, f"{model} at {place}: {why}", key)

    with httpx.Client(headers=headers, timeout=patience) as client:

        def ask(sample: Sample, new_tokens: int) -> Reply:
            body = {"model": model, "messages": messages(sample), "max_tokens": new_tokens}
            body |= {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
            started = time.perf_counter()
            arrivals: list[float] = []
            try:
                with client.stream("POST", f"{place}/chat/completions", json=body) as answer:
                    if answer.status_code != 200:
                        said = answer.read().decode("utf-8", "replace")
                        kind: Kind = "endpoint" if answer.status_code in HOPELESS else "request"
                        raise failed(kind, f"status {answer.status_code}: {said}")
                    lines = _patient(answer.iter_lines(), patience)
                    tokens, ended = _counted(events(lines), arrivals)
            except BrokenStreamError as error:
                raise failed("reply", f"{error}, after {len(arrivals)} pieces") from None
            except httpx.TimeoutException:
                why = f"it said nothing for {patience:g} s, after {len(arrivals)} pieces"
                raise failed("transport", why) from None
            except httpx.HTTPError as error:
                why = f"{error or type(error).__name__}, after {len(arrivals)} pieces"
                raise failed("transport", why) from None
            tokens = max(tokens, len(arrivals))
            return Reply(Timeline(started, None, tuple(arrivals), tokens, ended))

        def respond(samples: Sequence[Sample], new_tokens: int) -> list[Reply]:
            with ThreadPoolExecutor(len(samples)) as pool:
                return list(pool.map(ask, samples, [new_tokens] * len(samples)))

        yield respond


def _counted(stream: Iterable[Event], arrivals: list[float]) -> tuple[int, float | None]:
    """Note when pieces come; return how many tokens the server counted, and when the end came.

    The count is 0 where the server gives none, the end None where it came with the last piece.
    """
    tokens, ended = 0, None
    for event in stream:
        if event.text:
            arrivals.append(time.perf_counter())
        elif event.last:
            ended = time.perf_counter()
        tokens = event.tokens or tokens
    if not arrivals:
        raise BrokenStreamError("the answer has no text")
    return tokens, ended


def _patient(lines: Iterable[str], patience: float) -> Iterator[str]:
    """The lines, until a server keeps a stream open but says nothing in it for too long."""
    said = time.monotonic()
    for line in lines:
        if line.startswith("data:"):
            said = time.monotonic()
        elif time.monotonic() - said > patience:
            raise httpx.ReadTimeout("comments only")
        yield line


def events(lines: Iterable[str]) -> Iterator[Event]:
    """What the lines of a stream of server-sent events say, to its end.

    Raises:
        BrokenStreamError: a line is no chunk of a chat completion, the server reports an error, or
            the stream ends before the answer does.
    """
    ended = False
    for line in lines:
        if not line.startswith("data:"):  # an empty line, a comment to keep the line open
            continue
        content = line.removeprefix("data:").strip()
        if content == "[DONE]":
            return
        event = _event(content)
        ended = ended or event.last
        yield event
    if not ended:
        raise BrokenStreamError("the stream ended in the middle of the answer")


def _event(content: str) -> Event:
    try:
        chunk = json.loads(content)
    except ValueError:
        raise BrokenStreamError(f"expected JSON in the stream, got {content!r}") from None
    if not isinstance(chunk, dict) or "error" in chunk:
        raise BrokenStreamError(f"the server reports {content}")
    usage, choices = chunk.get("usage"), chunk.get("choices")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    counted = tokens if type(tokens) is int and tokens > 0 else None
    choice = choices[0] if isinstance(choices, list) and choices else {}
    if not isinstance(choice, dict):
        raise BrokenStreamError(f"expected a chunk of a chat completion, got {content!r}")
    delta = choice.get("delta") or {}
    # Some servers stream what a model thinks apart from what it answers: these are tokens too.
    texts = [delta.get(name) for name in ("content", "reasoning_content", "reasoning")]
    text = "".join(text for text in texts if isinstance(text, str))
    return Event(text, counted, choice.get("finish_reason") is not None)
