"""Which judge an evaluation asks, from what a user names."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from drivekd.evaluate.chat import ChatEndpoint, ChatError, read_key
from drivekd.evaluate.judging.cost import Price
from drivekd.evaluate.judging.judge import Settings
from drivekd.evaluate.judging.judges import (
    TEMPERATURE,
    ChatJudge,
    Judge,
    LocalJudge,
    scripted_judge,
)
from drivekd.evaluate.judging.prompts import read_descriptions
from drivekd.evaluate.judging.sheets import SHEETS, Sheet, read_rubric

LOCAL, SCRIPTED = "local:", "scripted"
_OPTIONS = "named by --judge, --judge-model and --judge-key-env"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A judge as a user names it.

    Attributes:
        where: the address of a chat server, `local:MODEL` for a text model of transformers, or
            `scripted` for points by shared words, without a model.
        model: as the chat server names it.
        key_env: the environment variable that holds the server's key.
        temperature: None for the judge's own: 0.2 on a server [paper: DriveBench], 0 locally.
        wants_json: send the sheet as a JSON schema.
        concurrency: requests at a time.
        device: where a local judge runs.
    """

    where: str
    model: str | None = None
    key_env: str | None = None
    temperature: float | None = None
    wants_json: bool = False
    concurrency: int = 8
    device: str = "cpu"


def judge_of(wanted: Wanted) -> Judge:
    """Return the judge; a slip is refused before anything is loaded or asked.

    Raises:
        ValueError: an option that this judge has not, a server without a model, a bad address.
    """
    server = {"--judge-model": wanted.model, "--judge-key-env": wanted.key_env}
    server["--judge-json"] = "yes" if wanted.wants_json else None
    if wanted.where == SCRIPTED and wanted.temperature is not None:
        raise ValueError("--judge-temperature is for a model; --judge is scripted")
    given = [name for name, value in server.items() if value is not None]
    if wanted.where == SCRIPTED or wanted.where.startswith(LOCAL):
        if given:
            raise ValueError(
                f"{given[0]} belongs to a judge on a server; --judge is {wanted.where}"
            )
        if wanted.where == SCRIPTED:
            return scripted_judge()
        name = wanted.where.removeprefix(LOCAL)
        _refuse_unknown(name)
        return LocalJudge(name, wanted.device, wanted.temperature or 0.0)
    if wanted.model is None:
        raise ValueError(
            f"--judge {wanted.where!r:.100}: expected the address of a chat server with its"
            " --judge-model, local:MODEL, or scripted"
        )
    read_key(wanted.key_env)
    endpoint = ChatEndpoint(
        wanted.where, wanted.model, key_env=wanted.key_env, concurrency=wanted.concurrency
    )
    temperature = TEMPERATURE if wanted.temperature is None else wanted.temperature
    return ChatJudge(endpoint, temperature, wants_json=wanted.wants_json)


def _refuse_unknown(name: str) -> None:
    """Its configuration alone is read: weights are loaded when the answers are there."""
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise ValueError(
            f"local judge {name}: expected a text model of transformers, in a folder or on the hub"
            f" ({why:.200})"
        ) from error


def refuse_deaf(judge: Judge) -> None:
    """Ask a judge on a server for one word, before hours of answers that it is to weigh.

    Raises:
        ValueError: it refuses everybody: a wrong key, name or address.
    """
    if isinstance(judge, ChatJudge):
        try:
            asyncio.run(_greet(judge.endpoint))
        except ChatError as error:
            if error.kind == "endpoint":
                raise ValueError(f"{error}; the judge is {_OPTIONS}") from None


async def _greet(endpoint: ChatEndpoint) -> None:
    async with replace(endpoint, tries=1) as chat:
        await chat.complete([{"role": "user", "content": "Say yes."}], empty=True, max_tokens=4)


@dataclass(frozen=True, slots=True)
class Judging:
    """A judge and how it judges."""

    judge: Judge
    settings: Settings = field(default_factory=Settings)


def settings_of(
    runs: int,
    rubric: Path | None,
    descriptions: Path | None,
    price: str | None,
    max_cost: float | None,
    retry_unscored: bool,
) -> Settings:
    """Read settings from a user's files and words.

    Raises:
        ValueError: a file that is none of its kind, a price that is no two numbers.
    """
    sheets: Mapping[str, Sheet] = SHEETS if rubric is None else read_rubric(rubric)
    return Settings(
        runs=runs,
        sheets=sheets,
        descriptions={} if descriptions is None else read_descriptions(descriptions),
        price=None if price is None else price_of(price),
        max_cost=max_cost,
        retry_unscored=retry_unscored,
    )


def price_of(text: str) -> Price:
    """Read the price per million tokens of prompts and of replies, from `0.3,0.5`.

    Raises:
        ValueError: it is no two numbers of 0 or more.
    """
    try:
        prompt, completion = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"price {text!r:.40}: expected two numbers per million tokens, of prompts and of"
            " replies, such as 0.3,0.5"
        ) from None
    return Price(prompt, completion)
