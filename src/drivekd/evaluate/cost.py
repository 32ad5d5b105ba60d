"""What judging costs: an estimate before the start, a running total, and a limit that holds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from drivekd.evaluate.chat import ChatReply

#: characters of English text per token, on the safe side
CHARACTERS_PER_TOKEN = 3.0


@dataclass(frozen=True, slots=True)
class Price:
    """What a user says a judge costs, per million tokens, in any currency."""

    prompt: float
    completion: float

    def __post_init__(self) -> None:
        for value in (self.prompt, self.completion):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"price {value}: expected 0 or more per million tokens")

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


@dataclass(slots=True)
class Budget:
    """Money spent and set aside; a request that could exceed the limit is not made.

    Attributes:
        price: per million tokens.
        limit: the most that may be spent; None for no limit.
        longest: most tokens of a reply.
        spent: by what the server counted, or estimated where it did not count.
        reserved: for requests on their way.
    """

    price: Price
    limit: float | None
    longest: int
    spent: float = 0.0
    reserved: float = 0.0

    def worst(self, prompt: str) -> float:
        return self.price.of(len(prompt) / CHARACTERS_PER_TOKEN, self.longest)

    def reserve(self, prompt: str) -> float | None:
        """Sets the worst case aside; None where it would exceed the limit."""
        worst = self.worst(prompt)
        if self.limit is not None and self.spent + self.reserved + worst > self.limit:
            return None
        self.reserved += worst
        return worst

    def settle(self, reserved: float, prompt: str, reply: ChatReply | None) -> None:
        """What was set aside becomes what it cost; without a reply, the worst is assumed."""
        self.reserved -= reserved
        if reply is None:
            self.spent += reserved
            return
        asked, said = reply.prompt_tokens, reply.completion_tokens
        self.spent += self.price.of(
            len(prompt) / CHARACTERS_PER_TOKEN if asked is None else asked,
            len(reply.text) / CHARACTERS_PER_TOKEN if said is None else said,
        )
