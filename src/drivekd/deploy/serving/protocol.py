"""OpenAI's chat protocol: requests as read, replies and refusals as its clients expect them."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Finish = Literal["stop", "length"]
_TYPES = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
#: the last event of a stream
DONE = "data: [DONE]\n\n"
#: parameters that have no bearing on the answer
_IGNORED = {"metadata", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "user"}
#: parameters that are not supported, and the value with which nothing is asked of them
_WITHOUT_EFFECT: dict[str, Any] = {
    "frequency_penalty": 0,
    "logit_bias": {},
    "logprobs": False,
    "modalities": ["text"],
    "n": 1,
    "presence_penalty": 0,
    "response_format": {"type": "text"},
    "store": False,
    "tool_choice": "none",
    "tools": [],
    "top_logprobs": 0,
}


class Refused(Exception):  # noqa: N818 - it goes to a client, not to the user of this process
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        message: what was expected, what came and the way out.
        param: the part of the request that it is about, as in `messages[0].content[1]`.
        code: for programs.
        retry_after: when to try again [s].
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """What belongs into the head of the response."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        if self.status in (408, 413):  # whatever still comes is not read
            return {"Connection": "close"}
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}

    @property
    def content(self) -> dict[str, Any]:
        """The error object."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        names = {"param": self.param, "code": self.code}
        return {"error": {"message": self.message, "type": kind, **names}}


def stopping() -> Refused:
    return Refused(503, "the server is stopping", code="stopping", retry_after=5)


class _Part(BaseModel):
    """Knows all its keys; null stands for a key that is not there."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None}


class Text(_Part):
    """Some text of a turn."""

    type: Literal["text"]
    text: str


class ImageUrl(_Part):
    """Where a picture is: in the address itself. Every picture is shown in the same detail."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class Picture(_Part):
    """A picture of a turn."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Turn(_Part):
    """One message: text and pictures in order."""

    role: Literal["system", "developer", "user", "assistant"]
    content: list[Annotated[Text | Picture, Field(discriminator="type")]]

    @model_validator(mode="before")
    @classmethod
    def _as_parts(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("content"), str):
            return data | {"content": [{"type": "text", "text": data["content"]}]}
        return data


class StreamOptions(_Part):
    """What a stream holds besides the text."""

    include_usage: bool = False


class ChatRequest(_Part):
    """The body of a request for a chat completion.

    Attributes:
        model: the name under which the model is served.
        messages: the conversation; the last message is the user's.
        stream: send the text while it is made.
        stream_options: what the stream ends with.
        temperature: 0 takes the most probable token each time; 0 unless given.
        top_p: draw from the fewest most probable tokens that together have this probability.
        seed: of the draws; equal seeds draw alike. Another one each time unless given.
        stop: texts that end the answer.
        max_tokens: longest answer [tokens].
        max_completion_tokens: its newer name.
    """

    model: str
    messages: list[Turn] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    stop: list[Annotated[str, Field(min_length=1)]] = Field([], max_length=4)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _understood(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {}
        for key, value in data.items():
            if key in _IGNORED or (key in _WITHOUT_EFFECT and value == _WITHOUT_EFFECT[key]):
                continue
            if key not in cls.model_fields and value is not None:
                raise _unsupported(key)
            kept[key] = [value] if key == "stop" and isinstance(value, str) else value
        return kept

    @model_validator(mode="after")
    def _one_length(self) -> ChatRequest:
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("max_tokens and max_completion_tokens are one thing: give one")
        return self

    @property
    def length(self) -> int | None:
        """Longest answer [tokens], where one was asked for."""
        return self.max_tokens or self.max_completion_tokens


def read_request(body: bytes) -> ChatRequest:
    """The request in a body.

    Raises:
        Refused: it is no JSON, lacks something, or asks for what this server does not do.
    """
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = _param(first["loc"])
        raise Refused(400, f"{param}: {first['msg']}", param=param, code=first["type"]) from error


def _unsupported(key: str) -> Refused:
    sole = _WITHOUT_EFFECT.get(key)
    leave = "leave it out" if sole is None else f"leave it out, or give {sole!r}"
    return Refused(
        400,
        f"parameter {key[:80]!r} is not supported here: {leave}",
        param=key[:80],
        code="unsupported_parameter",
    )


def _param(place: tuple[int | str, ...]) -> str:
    """`messages[0].content[1].text` of the parts of a place."""
    text = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in place)
    return text.removeprefix(".") or "body"


@dataclass(frozen=True, slots=True)
class ChatReply:
    """One reply: what stays the same in all that is said of it."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, finish: Finish, usage: dict[str, int]) -> dict[str, Any]:
        """All of it at once."""
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return self._object("chat.completion") | {"choices": [choice], "usage": usage}

    def event(self, delta: dict[str, str], finish: Finish | None = None) -> str:
        """A part of it."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event(self._object("chat.completion.chunk") | {"choices": [choice]})

    def usage_event(self, usage: dict[str, int]) -> str:
        """What it took, without text."""
        return event(self._object("chat.completion.chunk") | {"choices": [], "usage": usage})

    def _object(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Tokens of the conversation, pictures included, and of the answer with its last one."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def event(content: dict[str, Any]) -> str:
    """One event of a stream."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
