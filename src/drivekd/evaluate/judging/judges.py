"""Who judges: a chat server, any text model of transformers, or a script for tests and dry runs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from drivekd.data.options import options_of
from drivekd.evaluate.chat import ChatEndpoint, ChatReply
from drivekd.evaluate.judging.cost import guessed_tokens
from drivekd.evaluate.reading.metrics import normalise, read_option
from drivekd.evaluate.reading.options import yes_no

Messages = Sequence[Mapping[str, Any]]


@runtime_checkable
class Judge(Protocol):
    """Replies to a conversation.

    Attributes:
        concurrency: conversations at a time.
        longest: most tokens of a reply.
        wants_json: whether `form`, a JSON schema, is to be given.
        seconds: that a reply takes, for an estimate; None where nobody knows.
    """

    @property
    def concurrency(self) -> int: ...
    @property
    def longest(self) -> int: ...
    @property
    def wants_json(self) -> bool: ...
    @property
    def seconds(self) -> float | None: ...

    def identity(self) -> Mapping[str, Any]:
        """All that its replies depend on besides the conversation; part of the cache's key."""

    def tokens(self, text: str) -> float:
        """Tokens of a text, estimated where its tokenizer is not known."""

    def ready(self) -> AbstractAsyncContextManager[Any]:
        """What has to be open while it is asked."""

    async def reply(
        self, messages: Messages, form: Mapping[str, Any] | None, before_try: Callable[[], None]
    ) -> ChatReply:
        """One reply, or a ChatError; `before_try` is called before each try, and may raise."""


#: the public benchmark's [paper: DriveBench]
TEMPERATURE = 0.2


@dataclass(frozen=True, slots=True)
class ChatJudge:
    """A model on a chat server; settings of the public benchmark [paper: DriveBench]."""

    endpoint: ChatEndpoint
    temperature: float = TEMPERATURE
    top_p: float = 0.2
    longest: int = 512
    wants_json: bool = False
    seconds: float | None = 4.0

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

    def tokens(self, text: str) -> float:
        return guessed_tokens(text)

    def ready(self) -> AbstractAsyncContextManager[Any]:
        return self.endpoint

    async def reply(
        self, messages: Messages, form: Mapping[str, Any] | None, before_try: Callable[[], None]
    ) -> ChatReply:
        extra: dict[str, Any] = {} if form is None else {"response_format": form}
        return await self.endpoint.complete(messages, before_try, **self._params, **extra)


@dataclass(frozen=True, slots=True)
class ScriptedJudge:
    """Says what a function of the last message returns; costs nothing.

    Attributes:
        script: the function.
        name: stands for the function in the store; another function needs another name there.
    """

    script: Callable[[str], str]
    name: str = "scripted"
    concurrency: int = 1
    longest: int = 512
    wants_json: bool = False
    seconds: float | None = None

    def identity(self) -> Mapping[str, Any]:
        return {"model": f"script:{self.name}"}

    def tokens(self, text: str) -> float:
        return guessed_tokens(text)

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
    seconds: float | None = None
    _loaded: tuple[Any, Any, str] | None = field(default=None, repr=False)

    def identity(self) -> Mapping[str, Any]:
        """By what the model holds: the same folder may hold another one tomorrow."""
        return {
            "model": f"local:{self._open()[2]}",
            "temperature": self.temperature,
            "max_tokens": self.longest,
        }

    @property
    def concurrency(self) -> int:
        return 1

    @property
    def wants_json(self) -> bool:
        return False

    def _open(self) -> tuple[Any, Any, str]:
        if self._loaded is None:
            self._loaded = _load(self.model, self.device)
        return self._loaded

    def tokens(self, text: str) -> float:
        return len(self._open()[0](text).input_ids)

    def ready(self) -> AbstractAsyncContextManager[Any]:
        self._open()
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
        tokenizer, model, _ = self._open()
        if tokenizer.chat_template:
            ids = _rendered(tokenizer, messages, self.model)
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


def _rendered(tokenizer: Any, messages: list[Mapping[str, Any]], name: str) -> Any:
    """The conversation by the model's template, which may know no role for a system.

    Where it does not, what the system says opens the user's turn.

    Raises:
        ValueError: the template takes neither.
    """
    from jinja2 import TemplateError

    system, user, *rest = messages
    joined = {"role": "user", "content": f"{system['content']}\n\n{user['content']}"}
    why: TemplateError | None = None
    for turns in (messages, [joined, *rest]):
        try:
            return tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        except TemplateError as error:
            why = error
    raise ValueError(f"local judge {name}: its chat template takes no conversation ({why})")


def _load(name: str, device: str) -> tuple[Any, Any, str]:
    """Tokenizer, model, and a hash of all of both that replies depend on."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from drivekd.evaluate.answers.answer import fingerprint

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model: Any = AutoModelForCausalLM.from_pretrained(name)
        model = model.to(device).eval()
    except Exception as error:  # damaged weights, another kind of model, no such device: any kind
        raise ValueError(
            f"local judge {name} on {device}: cannot be loaded, expected a text model of"
            f" transformers, in a folder or on the hub ({type(error).__name__}: {error})"
        ) from error
    parts = (
        fingerprint(model),
        model.generation_config.to_json_string(),
        str(tokenizer.chat_template),
        tokenizer.get_vocab(),
    )
    text = json.dumps(parts, sort_keys=True)
    return tokenizer, model, hashlib.sha256(text.encode()).hexdigest()


_PARTS = re.compile(
    r"\AQuestion:\n(?P<question>.*?)\nReference answer:\n(?P<reference>.*?)\n"
    r"Objects in the scene,.*?"
    r"<<<(?P<fence>[0-9a-f]{16})\n(?P<answer>.*?)\n(?P=fence)>>>",
    re.DOTALL,
)
_MARK = re.compile(r'"mark": "([0-9a-f]+)"')
_CRITERION = re.compile(r"^\d+\. .+ \((\d+) points\): NUMBER$", re.MULTILINE)


def scripted_judge() -> ScriptedJudge:
    """Give points by shared words, to try everything around a judge without cost.

    They say nothing about driving: never report them. It reads the project's own sheets only.
    """
    return ScriptedJudge(sheet_by_words, name="shared-words")


def sheet_by_words(prompt: str) -> str:
    """A filled sheet, or a sentence where the prompt is none of ours."""
    parts, mark = _PARTS.match(prompt), _MARK.findall(prompt)
    if parts is None or not mark:
        return "This judge reads the project's own sheets only, the first time they are asked for."
    points = [int(most) for most in _CRITERION.findall(prompt[parts.end() :])]
    share = shared_words(parts["answer"], parts["reference"])
    scores = [float(round(share * most)) for most in points]
    same = _same_choice(parts["question"], parts["answer"], parts["reference"])
    if same is not None:
        scores[0] = float(same * points[0])
    return json.dumps({"mark": mark[-1], "scores": scores, "total": sum(scores)})


def shared_words(answer: str, reference: str) -> float:
    """F1 of the words of both, each as often as it occurs; 1 for the same words."""
    said, wanted = Counter(normalise(answer).split()), Counter(normalise(reference).split())
    total = said.total() + wanted.total()
    return 2 * (said & wanted).total() / total if total else 0.0


def _same_choice(question: str, answer: str, reference: str) -> bool | None:
    """Whether both take the same option, or say the same of yes and no; None for neither."""
    options = dict(options_of(question))
    if options:
        wanted = read_option(reference, options)
        return None if wanted is None else read_option(answer, options) == wanted
    if (wanted := yes_no(reference)) and normalise(reference).startswith(("yes", "no")):
        return yes_no(answer) == wanted
    return None
