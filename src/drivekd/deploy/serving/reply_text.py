"""The text of a reply while its tokens come: what can be told already, and where it ends."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from drivekd.deploy.serving.protocol import Finish

#: stands for bytes that are no character yet: the next token may complete it
_UNFINISHED = "\ufffd"


@dataclass(eq=False, slots=True)
class ReplyText:
    """A reply in the making.

    Attributes:
        decode: tokens to text, without special tokens.
        ends: tokens that end it.
        stops: texts that end it and are not part of it.
        most: longest reply [tokens].
        tokens: those that came so far, the one that ended it included.
        told: text that was handed on.
        finish: why it ended; None while it goes on.
    """

    decode: Callable[[Sequence[int]], str]
    ends: Collection[int]
    stops: Sequence[str]
    most: int
    tokens: list[int] = field(default_factory=list)
    told: str = ""
    finish: Finish | None = None

    def add(self, token: int) -> str:
        """Take a token; the text that it settles, which may be empty."""
        self.tokens.append(token)
        text = self.decode(self.tokens)
        found = [at for at in map(text.find, self.stops) if at >= 0]
        if found:
            self.finish, text = "stop", text[: min(found)]
        elif token in self.ends:
            self.finish = "stop"
        elif len(self.tokens) == self.most:
            self.finish = "length"
        else:
            text = self._settled(text)
        new = text.removeprefix(self.told) if text.startswith(self.told) else ""
        self.told += new
        return new

    def _settled(self, text: str) -> str:
        """Without an unfinished character, and what may turn out to be the start of a stop."""
        text = text.rstrip(_UNFINISHED)
        held = (n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
        return text[: len(text) - max(held, default=0)]
