"""Who judges: a chat server, any text model of transformers, or a script for tests and dry runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from drivekd.evaluate.chat import ChatEndpoint, ChatReply

Messages = Sequence[Mapping[str, Any]]


@runtime_checkable
class Judge(Protocol):
    """Replies to a conversation.

    Attributes:
        identity: all that its replies depend on besides the conversation; part of the cache's key.
        concurrency: conversations at a time.
        longest: most tokens of a reply.
        wants_json: whether `form`, a JSON schema, is to be given.
    """

    @property
    def identity(self) -> Mapping[str, Any]: ...
    @property
    def concurrency(self) -> int: ...
    @property
    def longest(self) -> int: ...
    @property
    def wants_json(self) -> bool: ...

    def ready(self) -> AbstractAsyncContextManager[Any]:
        """What has to be open while it is asked."""

    async def reply(
        self, messages: Messages, form: Mapping[str, Any] | None, before_try: Callable[[], None]
    ) -> ChatReply:
        """One reply, or a ChatError; `before_try` is called before each try, and may raise."""


@dataclass(frozen=True, slots=True)
class ChatJudge:
    """A model on a chat server; settings of the public benchmark [paper: DriveBench]."""

    endpoint: ChatEndpoint
    temperature: float = 0.2
    top_p: float = 0.2
    longest: int = 512
    wants_json: bool = False

    @property
    def identity(self) -> Mapping[str, Any]:
        end = self.endpoint
        return {"url": end.url, "model": end.model, "json": self.wants_json, **self._params}

    @property
    def concurrency(self) -> int:
        return self.endpoint.concurrency

    @property
    def _params(self) -> dict[str, Any]:
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.longest,
        }

    def ready(self) -> AbstractAsyncContextManager[Any]:
        return self.endpoint

    async def reply(
        self, messages: Messages, form: Mapping[str, Any] | None, before_try: Callable[[], None]
    ) -> ChatReply:
        extra = {} if form is None else {"response_format": form}
        return await self.endpoint.complete(messages, before_try, **self._params, **extra)


@dataclass(frozen=True, slots=True)
class ScriptedJudge:
    """Says what a function of the last message returns; costs nothing."""

    script: Callable[[str], str]
    name: str = "scripted"
    concurrency: int = 1
    longest: int = 512
    wants_json: bool = False

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"model": f"script:{self.name}"}

    def ready(self) -> AbstractAsyncContextManager[Any]:
        return nullcontext()

    async def reply(
        self,
        messages: Messages,
        form: Mapping[str, Any] | None,  # noqa: ARG002
        before_try: Callable[[], None],
    ) -> ChatReply:
        before_try()
        return ChatReply(self.script(str(messages[-1]["content"])))


@dataclass(slots=True)
class LocalJudge:
    """A text model that transformers loads, one conversation at a time; greedy at temperature 0."""

    model: str
    device: str = "cpu"
    temperature: float = 0.0
    longest: int = 512
    concurrency: int = 1
    wants_json: bool = False
    _loaded: Any = field(default=None, repr=False)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {
            "model": f"local:{self.model}",
            "temperature": self.temperature,
            "max_tokens": self.longest,
        }

    def ready(self) -> AbstractAsyncContextManager[Any]:
        if self._loaded is None:
            self._loaded = _load(self.model, self.device)
        return nullcontext()

    async def reply(
        self,
        messages: Messages,
        form: Mapping[str, Any] | None,  # noqa: ARG002
        before_try: Callable[[], None],
    ) -> ChatReply:
        before_try()
        return await asyncio.to_thread(self._generate, list(messages))

    def _generate(self, messages: list[Mapping[str, Any]]) -> ChatReply:
        tokenizer, model = self._loaded
        if tokenizer.chat_template:
            ids = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            text = "\n\n".join(str(message["content"]) for message in messages)
            ids = tokenizer(text, return_tensors="pt")
        ids = {name: ids[name].to(model.device) for name in ("input_ids", "attention_mask")}
        sampled = {"do_sample": True, "temperature": self.temperature} if self.temperature else {}
        out = model.generate(
            **ids, max_new_tokens=self.longest, **(sampled or {"do_sample": False})
        )
        start = ids["input_ids"].shape[1]
        text = tokenizer.decode(out[0, start:], skip_special_tokens=True)
        return ChatReply(text, start, out.shape[1] - start)


def _load(name: str, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model: Any = AutoModelForCausalLM.from_pretrained(name)
    except OSError as error:
        raise ValueError(f"local judge {name}: cannot be loaded ({error})") from None
    return tokenizer, model.to(device).eval()
