"""What judging costs: an estimate before the start, a running total, and a limit that holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from drivekd.evaluate.chat import ChatReply

#: characters per token where no tokenizer is known; prompts full of tags have 2.3 [ours, measured]
CHARACTERS_PER_TOKEN = 2.0


class OverBudget(RuntimeError):  # noqa: N818 - a limit that holds is no error
    """One more try could exceed the limit, and was not made."""


def guessed_tokens(text: str) -> float:
    return len(text) / CHARACTERS_PER_TOKEN


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
        tokens: of a text, estimated.
        excess: the largest counted prompt over its estimate, at least 1; scales later estimates.
        spent: by what the server counted, or estimated where it did not count.
        reserved: for tries under way.
    """

    price: Price
    limit: float | None
    longest: int
    tokens: Callable[[str], float] = guessed_tokens
    excess: float = 1.0
    spent: float = 0.0
    reserved: float = 0.0

    def worst(self, prompt: str) -> float:
        return self.price.of(self.tokens(prompt) * self.excess, self.longest)


@dataclass(slots=True)
class Bill:
    """What one request costs, the worst case of every try set aside before it is made."""

    budget: Budget
    prompt: str
    reserved: float = 0.0

    def before_try(self) -> None:
        """Set the worst case of one more try aside; the one before it failed.

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
        """Turn what was set aside into what the try cost: the worst where no reply came."""
        budget, reserved, self.reserved = self.budget, self.reserved, 0.0
        budget.reserved -= reserved
        if reply is None:
            budget.spent += reserved
            return
        prompt, completion = reply.prompt_tokens, reply.completion_tokens
        estimate = budget.tokens(self.prompt)
        if prompt is not None:
            budget.excess = max(budget.excess, prompt / max(estimate, 1.0))
        budget.spent += budget.price.of(
            estimate if prompt is None else prompt,
            budget.tokens(reply.text) if completion is None else completion,
        )
