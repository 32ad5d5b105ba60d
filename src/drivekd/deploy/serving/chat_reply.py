"""Replies as OpenAI's clients read them: whole, or as events of a stream."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from drivekd.deploy.serving.reply_text import Finish

#: the last event of a stream
DONE = "data: [DONE]\n\n"


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
