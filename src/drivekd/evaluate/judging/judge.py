"""Verdicts on free-text answers by a sheet of points: asked for once, cached, read strictly.

    from drivekd.evaluate.judging.judge import Settings, judge_answers
    verdicts = judge_answers(answers, samples, judge, out, Settings(runs=5))

`out` gets `verdicts.sqlite`, the paid replies. A second call asks only for what is missing:
transport failures again, replies that could not be read only with `retry_unscored`.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from drivekd.data.options import options_of
from drivekd.data.sample import Sample
from drivekd.evaluate.answers.answer import Answer, options_given
from drivekd.evaluate.chat import ChatError, together
from drivekd.evaluate.judging.cost import Bill, Budget, OverBudget, Price
from drivekd.evaluate.judging.judges import Judge
from drivekd.evaluate.judging.prompts import SYSTEM, again, describe, prompt_of
from drivekd.evaluate.judging.sheets import EXACT_FIRST, SHEETS, Sheet, sheet_name
from drivekd.evaluate.judging.verdict import Points, read_points, schema
from drivekd.evaluate.judging.verdict_store import Kept, VerdictStore, key_of, opened
from drivekd.evaluate.reading.options import read_option, yes_no
from drivekd.files.progress import tell, track
from drivekd.files.writing import atomic_file

Status = Literal["scored", "bad_reply", "transport", "over_budget", "no_sheet"]
#: in place of what is wrong with a sheet, where costs are estimated
_LONGEST_REASON = "x" * 300


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge gave one answer in one run; total is None unless it is scored.

    Attributes:
        id: of the sample.
        answer: place of the answer in those judged.
        run: of the judge, from 0.
        sheet: by which it was weighed, "" for none.
        status: "scored", or why there is no total.
        scores: points per criterion.
        total: their sum, out of 100.
        reason: one line on why it is unscored.
        answer_run: in which the model gave the answer.
    """

    id: str
    answer: int
    run: int
    sheet: str
    status: Status
    scores: tuple[float, ...] = ()
    total: float | None = None
    reason: str = ""
    answer_run: int = 0


@dataclass(frozen=True, slots=True)
class Settings:
    """How answers are judged; fewer than one run or a limit without a price are a ValueError.

    Attributes:
        runs: verdicts per answer.
        sheets: see `judging/sheets.py`.
        descriptions: of objects, see `prompts.read_descriptions`.
        price: per million tokens, for the estimate and the running total.
        max_cost: no try is made that could exceed it; needs a price.
        retry_unscored: ask again where a reply could not be read.
    """

    runs: int = 1
    sheets: Mapping[str, Sheet] = field(default_factory=lambda: SHEETS)
    descriptions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    price: Price | None = None
    max_cost: float | None = None
    retry_unscored: bool = False

    def __post_init__(self) -> None:
        if self.runs < 1:
            raise ValueError(f"runs {self.runs}: expected at least 1")
        if self.max_cost is not None and self.price is None:
            raise ValueError("a limit of cost needs the judge's prices per million tokens")


@dataclass(frozen=True, slots=True)
class _Item:
    """One answer with the prompt that asks for its verdict."""

    answer: Answer
    place: int
    sheet: Sheet | None
    options: Mapping[str, str]
    prompt: str = ""
    mark: str | None = None


@dataclass(slots=True)
class _Session:
    """One call's judge, store and money.

    Attributes:
        locks: by key: of equal requests one is made, and the others wait for its reply.
        retried: markers of what was given up earlier and is asked again, once in a session.
    """

    judge: Judge
    store: VerdictStore
    budget: Budget
    settings: Settings
    locks: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    retried: set[str] = field(default_factory=set)


def judge_answers(
    answers: Sequence[Answer],
    samples: Sequence[Sample],
    judge: Judge,
    out: Path,
    settings: Settings | None = None,
) -> list[Verdict]:
    """A verdict per answer and run, the runs of an answer beside each other.

    Raises:
        ValueError: an answer without its sample, options that are none.
        ChatError: the endpoint refuses everybody (key, payment, address); paid verdicts are kept.
    """
    settings = settings or Settings()
    known = {sample.id: sample for sample in samples}
    for answer in answers:
        if answer.id not in known:
            raise ValueError(f"answer {answer.id!r} belongs to no sample of the data set")
    items = [_item(a, i, known[a.id], settings) for i, a in enumerate(answers)]
    budget = Budget(settings.price or Price(0, 0), settings.max_cost, judge.longest, judge.tokens)
    tell(_estimate(items, settings, budget, judge))
    if settings.runs > 1 and judge.identity().get("temperature") == 0:
        tell(f"at temperature 0 the {settings.runs} runs may all be alike, and each is asked for")
    with opened(out / "verdicts.sqlite") as store:
        verdicts = asyncio.run(_all(items, _Session(judge, store, budget, settings)))
    if settings.price is not None:
        tell(f"judging cost {budget.spent:.4f}, tries that failed at their worst")
    return verdicts


def write_verdicts(verdicts: Sequence[Verdict], path: Path) -> None:
    """Write a row per verdict, in their order; the file is there as a whole or not at all."""
    with atomic_file(path) as draft:
        rows = (json.dumps(asdict(verdict)) + "\n" for verdict in verdicts)  # ASCII: any id fits
        draft.write_text("".join(rows), encoding="utf-8")


def _estimate(items: Sequence[_Item], settings: Settings, budget: Budget, judge: Judge) -> str:
    prompts = [
        (SYSTEM + item.prompt, again(_LONGEST_REASON, item.sheet, item.mark))
        for item in items
        if item.sheet is not None
    ]
    text = f"judging {len(prompts)} answers × {settings.runs} runs, less what is kept"
    if judge.seconds is not None:
        minutes = settings.runs * len(prompts) * judge.seconds / judge.concurrency / 60
        text += f": at most {minutes:.1f} min at {judge.seconds:g} s a reply"
    if settings.price is None:
        return text
    once = settings.runs * sum(budget.worst(prompt) for prompt, _ in prompts)
    # A second request holds the first one, its reply and what is wrong with it.
    replies = settings.runs * len(prompts) * settings.price.of(budget.longest, 0)
    twice = (
        once
        + replies
        + settings.runs * sum(budget.worst(prompt + more) for prompt, more in prompts)
    )
    return (
        f"{text}; it costs at most {once:.4f} if every reply is at its longest,"
        f" {twice:.4f} if every sheet is asked for twice; each try that fails comes on top"
    )


async def _all(items: Sequence[_Item], session: _Session) -> list[Verdict]:
    """Workers take turns; the first error that concerns the endpoint stops them all."""
    runs = session.settings.runs
    verdicts: dict[tuple[int, int], Verdict] = {}
    jobs = [(item, run) for item in items for run in range(runs)]
    priced = session.settings.price is not None
    status = (lambda: f"spent {session.budget.spent:.4f}") if priced else str
    queue = iter(track(jobs, label="judging", status=status))

    async def work(queue: Iterator[tuple[_Item, int]]) -> None:
        for item, run in queue:
            verdicts[item.place, run] = await _judge(item, run, session)

    async with session.judge.ready():
        await together(work(queue) for _ in range(session.judge.concurrency))
    return [verdicts[item.place, run] for item, run in jobs]


async def _judge(item: _Item, run: int, session: _Session) -> Verdict:
    """One verdict: asked, and once more where the reply cannot be read."""
    sheet = item.sheet
    if sheet is None:
        return _unscored(item, run, "no_sheet", f"no sheet for capability {item.answer.capability}")
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": item.prompt}]
    keys: list[str] = []
    marker = key_of(session.judge.identity(), messages, run) + " unscored"
    if session.settings.retry_unscored and marker not in session.retried:
        session.retried.add(marker)
        if (given_up := session.store.get(marker)) is not None:
            session.store.drop([*json.loads(given_up.text), marker])
    reason = ""
    for attempt in range(2):
        keys.append(key_of(session.judge.identity(), messages, run))
        try:
            async with session.locks[keys[-1]]:
                kept = await _reply(keys[-1], item, messages, session)
        except OverBudget:
            return _unscored(item, run, "over_budget", "one more try could exceed the cost limit")
        except ChatError as error:
            if error.kind == "endpoint":
                raise
            return _unscored(item, run, "transport", str(error))
        if kept.error:
            reason = kept.error
            break
        points = read_points(kept.text, sheet, item.mark)
        reason = points if isinstance(points, str) else contradiction(item, points)
        if not reason and isinstance(points, Points):
            return Verdict(
                id=item.answer.id,
                answer=item.place,
                run=run,
                sheet=sheet.name,
                status="scored",
                scores=points.scores,
                total=points.total,
                answer_run=item.answer.run,
            )
        if attempt == 0:
            messages.append({"role": "assistant", "content": kept.text})
            messages.append({"role": "user", "content": again(reason, sheet, item.mark)})
    session.store.put(marker, Kept(json.dumps(keys), reason))
    return _unscored(item, run, "bad_reply", reason)


async def _reply(
    key: str, item: _Item, messages: Sequence[Mapping[str, str]], session: _Session
) -> Kept:
    """A kept reply, or a new one, kept before it is returned."""
    judge = session.judge
    assert item.sheet is not None
    if (kept := session.store.get(key)) is not None:
        return kept
    bill = Bill(session.budget, "".join(message["content"] for message in messages))
    reply = None
    form = schema(item.sheet, item.mark) if judge.wants_json and item.mark else None
    try:
        reply = await judge.reply(messages, form, bill.before_try)
        kept = Kept(reply.text.encode("utf-8", "replace").decode())  # half a surrogate pair
    except ChatError as error:
        if error.kind not in ("request", "reply"):
            raise
        kept = Kept("", str(error))
    finally:
        bill.settle(reply)
    session.store.put(key, kept)
    return kept


def _unscored(item: _Item, run: int, status: Status, reason: str) -> Verdict:
    name, answer = item.sheet.name if item.sheet is not None else "", item.answer
    return Verdict(answer.id, item.place, run, name, status, reason=reason, answer_run=answer.run)


def contradiction(item: _Item, points: Points) -> str:
    """What is wrong with points for an option or a yes or no that can be read without a judge."""
    if item.sheet is None or item.sheet.name not in EXACT_FIRST:
        return ""
    first, most = points.scores[0], item.sheet.criteria[0].points
    if first not in (0, most):
        return f"criterion 1 is all or nothing, {first:g} of {most} were given"
    reply, expected = item.answer.reply, item.answer.expected
    if item.options:
        said, wanted = read_option(reply, item.options), read_option(expected, item.options)
    else:
        said, wanted = yes_no(reply), yes_no(expected)
    if said is None or wanted is None or (said == wanted) == (first == most):
        return ""
    return f"criterion 1 is {first:g}, but the answer takes {said!r} and the reference {wanted!r}"


def _item(answer: Answer, place: int, sample: Sample, settings: Settings) -> _Item:
    options = options_given(sample) or dict(options_of(sample.question))
    name = sheet_name(sample, options)
    sheet = settings.sheets.get(name) if name is not None else None
    if sheet is None:
        return _Item(answer, place, None, options)
    description = describe(sample, settings.descriptions)
    prompt, mark = prompt_of(answer, sheet, description)
    return _Item(answer, place, sheet, options, prompt, mark)
