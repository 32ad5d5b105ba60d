"""What a client asks for, read from the body of its request."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from drivekd.deploy.serving.refusal import Refused

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
