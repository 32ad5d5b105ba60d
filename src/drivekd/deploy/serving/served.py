"""A loaded model under the name that clients call it by, and a conversation in its tokens."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import TemplateError

from drivekd.data.sample import IMAGE_PLACEHOLDER, Message, Role, Sample
from drivekd.deploy.serving.protocol import Picture, Refused, Turn
from drivekd.models.encode import Encoded, encode
from drivekd.models.vlm import Vlm

#: no text has so many characters per token over a whole context: longer ones are not even cut up
_CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True, eq=False)
class Served:
    """A model that answers clients.

    Attributes:
        vlm: the model.
        name: what clients call it.
        context: tokens of a conversation and its answer together.
        control: token ids that no client may write: turns, pictures and whatever else is special.
        lock: the tokenizer is used by one thread at a time; two would disturb each other.
    """

    vlm: Vlm
    name: str
    context: int
    control: frozenset[int]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def encoded(self, turns: Sequence[Turn], files: Sequence[Path]) -> Encoded:
        """A conversation up to its answer.

        Args:
            turns: as the client sent them.
            files: its pictures, in order.

        Raises:
            Refused: no question at the end, pictures outside of the user's turns, text that the
                model would read as control tokens, a conversation that its template does not
                know, or one that leaves no room for an answer.
        """
        messages = tuple(_message(turn, f"messages[{k}]") for k, turn in enumerate(turns))
        if messages[-1].role != "user":
            raise Refused(
                400,
                "the last message is to be the user's: this server continues no answer",
                param=f"messages[{len(messages) - 1}].role",
            )
        written = sum(len(message.content) for message in messages)
        if written > self.context * _CHARACTERS_PER_TOKEN:
            raise self.too_long(f"{written} characters")
        images = {f"image_{k}": file for k, file in enumerate(files)}
        sample = Sample(id="chat", messages=messages, images=images, source="request")
        with self.lock:
            self._refuse_control(messages)
            try:
                found = encode(self.vlm, sample, add_answer=False)
            except (ValueError, TemplateError) as error:
                raise Refused(
                    400, f"the model cannot be asked this: {error}", param="messages"
                ) from error
        if len(found.input_ids) >= self.context:
            raise self.too_long(f"{len(found.input_ids)} tokens")
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        with self.lock:
            return str(self.vlm.tokenizer.decode(list(ids), skip_special_tokens=True))

    def too_long(self, what: str) -> Refused:
        """Says that a conversation does not fit."""
        return Refused(
            400,
            f"the conversation has {what}; with its answer it has room for {self.context} tokens",
            param="messages",
            code="context_length_exceeded",
        )

    def _refuse_control(self, messages: Sequence[Message]) -> None:
        """Text is cut up by the tokenizer itself, so this knows every way to write a token."""
        for number, message in enumerate(messages):
            parts = [message.content]
            if message.role == "user":
                parts = message.content.split(IMAGE_PLACEHOLDER)
            for part in filter(None, parts):
                ids = self.vlm.tokenizer(part, add_special_tokens=False).input_ids
                if found := self.control.intersection(ids):
                    token = self.vlm.tokenizer.convert_ids_to_tokens(min(found))
                    raise _reserved(str(token), number)


def served(vlm: Vlm, name: str, most: int) -> Served:
    """A loaded model as it is served, with conversations of `most` tokens at most.

    Raises:
        ValueError: it sees pictures in cross-attention layers, which are not continued here.
    """
    if vlm.family.crossed:
        raise ValueError(
            f"model {vlm.source!r}: Llama-3.2-Vision is asked and scored here, but not served; "
            "serve it with vLLM"
        )
    family, tokenizer = vlm.family, vlm.tokenizer
    marks = {family.image_start, family.image_token, family.image_end}
    special = {k for k, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= {tokenizer.get_vocab()[mark] for mark in marks}
    context = min(int(vlm.model.config.get_text_config().max_position_embeddings), most)
    return Served(vlm, name, context, frozenset(special))


def _message(turn: Turn, param: str) -> Message:
    """A turn with a placeholder for each of its pictures."""
    role: Role = "system" if turn.role == "developer" else turn.role
    pictures = sum(isinstance(part, Picture) for part in turn.content)
    if pictures and role != "user":
        raise Refused(400, "pictures belong into the user's messages", param=param)
    content = "".join(
        IMAGE_PLACEHOLDER if isinstance(part, Picture) else part.text for part in turn.content
    )
    if role == "user" and content.count(IMAGE_PLACEHOLDER) != pictures:
        raise _reserved(IMAGE_PLACEHOLDER, int(param[9:-1]))
    return Message(role, content)


def _reserved(token: str, number: int) -> Refused:
    return Refused(
        400,
        f"the text contains {token!r}, which is no text to the model: write it otherwise, and send "
        "pictures as image_url parts",
        param=f"messages[{number}].content",
        code="reserved_token",
    )
