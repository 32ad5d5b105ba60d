"""What judging costs: an estimate before the start, a running total, and a limit that holds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from drivekd.evaluate.chat import ChatReply

#: characters of English text per token, on the safe side
CHARACTERS_PER_TOKEN = 3.0


class OverBudget(RuntimeError):  # noqa: N818 - a limit that holds is no error
    """One more try could exceed the limit, and was not made."""


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
    """Money spent and set aside; a try that could exceed the limit is not made.

    Attributes:
        price: per million tokens.
        limit: the most that may be spent; None for no limit.
        longest: most tokens of a reply.
        spent: by what the server counted, or estimated where it did not count.
        reserved: for tries on their way.
    """

    price: Price
    limit: float | None
    longest: int
    spent: float = 0.0
    reserved: float = 0.0

    def worst(self, prompt: str) -> float:
        return self.price.of(len(prompt) / CHARACTERS_PER_TOKEN, self.longest)


@dataclass(slots=True)
class Bill:
    """What one request costs, each of its tries set aside before it is made.

    Attributes:
        budget: that pays.
        prompt: all that is sent.
        reserved: for the try on its way.
    """

    budget: Budget
    prompt: str
    reserved: float = 0.0

    def before_try(self) -> None:
        """Sets the worst case of one more try aside; the one before it failed.

        Raises:
            OverBudget: it would exceed the limit.
        """
        self.settle(None)
        budget, worst = self.budget, self.budget.worst(self.prompt)
        if budget.limit is not None and budget.spent + budget.reserved + worst > budget.limit:
            raise OverBudget
        budget.reserved += worst
        self.reserved = worst

    def settle(self, reply: ChatReply | None) -> None:
        """What was set aside becomes what it cost; without a reply, the worst is assumed."""
        budget, reserved, self.reserved = self.budget, self.reserved, 0.0
        budget.reserved -= reserved
        if reply is None:
            budget.spent += reserved
            return
        asked, said = reply.prompt_tokens, reply.completion_tokens
        budget.spent += budget.price.of(
            len(self.prompt) / CHARACTERS_PER_TOKEN if asked is None else asked,
            len(reply.text) / CHARACTERS_PER_TOKEN if said is None else said,
        )
