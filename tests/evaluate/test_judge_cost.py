from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from drivekd.evaluate import chat
from drivekd.evaluate.chat import ChatEndpoint, ChatReply
from drivekd.evaluate.judging.cost import CHARACTERS_PER_TOKEN, Price
from drivekd.evaluate.judging.judge import Settings, judge_answers
from drivekd.evaluate.judging.judges import ChatJudge, ScriptedJudge
from evaluate.chat_server import Server, fill, planned, serving

PRICE = Price(1.0, 2.0)


@dataclass(frozen=True)
class Counting(ScriptedJudge):
    """A judge that counts so many characters of a prompt as one token."""

    per_token: float = 2.0
    paid: list[float] = field(default_factory=list)

    async def reply(self, messages: Any, form: Any, before_try: Any) -> ChatReply:
        before_try()
        sent = sum(len(message["content"]) for message in messages) / self.per_token
        self.paid.append(PRICE.of(sent, self.longest))
        await asyncio.sleep(0.01)  # as many as may be are under way before one is paid
        return ChatReply(fill(messages[-1]["content"]), round(sent), self.longest)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "FIRST_WAIT", 0.001)


def judge_at(server: Server, timeout: float = 30, **more: Any) -> ChatJudge:
    return ChatJudge(ChatEndpoint(server.url, "m", timeout=timeout, **more))


def worst_of(server: Server) -> float:
    """The most that one try with the first prompt can cost."""
    sent = sum(len(message["content"]) for message in server.bodies[0]["messages"])
    return PRICE.of(sent / CHARACTERS_PER_TOKEN, 512)


@pytest.mark.parametrize("fault", ["503", "slow", "cut"])
def test_the_cost_limit_holds_over_tries_that_fail(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limited = Settings(price=PRICE, max_cost=0.004)
    with serving(fill, lambda number, body: fault) as server:
        judge = judge_at(server, 0.1, tries=6)
        verdict = judge_answers(*planned(1), judge, tmp_path, limited)[0]
    assert verdict.status == "over_budget"
    assert len(server.bodies) == int(0.004 / worst_of(server)) == 2
    assert f"judging cost {2 * worst_of(server):.4f}" in capsys.readouterr().err


def test_a_try_that_failed_is_paid_beside_the_one_that_did_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(fill, lambda number, body: "ok" if number else "503") as server:
        verdict = judge_answers(*planned(1), judge_at(server), tmp_path, Settings(price=PRICE))[0]
    assert verdict.total == 50 and len(server.bodies) == 2
    spent = worst_of(server) + PRICE.of(100, 20)
    assert f"judging cost {spent:.4f}" in capsys.readouterr().err


@pytest.mark.parametrize(("per_token", "concurrency"), [(2.3, 8), (1.0, 1)])
def test_the_cost_limit_holds_for_prompts_of_many_tokens(
    per_token: float, concurrency: int, tmp_path: Path
) -> None:
    """Tag-heavy prompts have 2.3 characters a token; what a server counts corrects any guess."""
    answers, samples = planned(20, reply="<c1,CAM_FRONT,0.5,0.5> " * 200)
    judge = Counting(fill, concurrency=concurrency, longest=20, per_token=per_token)
    judge_answers(answers, samples, judge, tmp_path, Settings(price=PRICE, max_cost=0.02))
    assert 0.7 * 0.02 < sum(judge.paid) <= 0.02


@pytest.mark.parametrize(("good", "place"), [(True, 0), (False, 1)])
def test_what_is_told_before_the_start_is_the_worst_that_comes(
    good: bool, place: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that does not count its tokens, and replies as long as they may be."""
    longest = "x" * int(512 * CHARACTERS_PER_TOKEN)
    judge = ScriptedJudge(lambda p: (longest + fill(p))[-len(longest) :] if good else longest)
    judge_answers(*planned(3), judge, tmp_path, Settings(runs=2, price=Price(1000, 2000)))
    said = capsys.readouterr().err
    told = [float(value) for value in re.findall(r"(\d+\.\d+) if every", said)]
    (spent,) = re.findall(r"judging cost ([\d.]+)", said)
    assert 0.9 * told[place] < float(spent) <= told[place] + 1e-4


def test_runs_that_may_all_be_alike_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(fill) as server:
        endpoint = ChatEndpoint(server.url, "m")
        for temperature, runs in ((0, 1), (0.2, 2), (0, 2)):
            assert "may all be alike" not in capsys.readouterr().err
            judge = ChatJudge(endpoint, temperature=temperature)
            judge_answers(*planned(1), judge, tmp_path, Settings(runs=runs))
    assert "the 2 runs may all be alike" in capsys.readouterr().err


def test_equal_answers_under_way_together_share_one_request_and_its_verdict(tmp_path: Path) -> None:
    answers, samples = planned(1)
    shares = iter((0.5, 0.25, 0.75))  # a judge that would say something else each time

    def say(prompt: str) -> str:
        time.sleep(0.02)
        return fill(prompt, next(shares))

    with serving(say) as server:
        first = judge_answers(answers * 3, samples, judge_at(server), tmp_path)
        again = judge_answers(answers * 3, samples, judge_at(server), tmp_path)
    assert [verdict.total for verdict in first] == [50] * 3
    assert again == first and len(server.bodies) == 1


@pytest.mark.parametrize("concurrency", [1, 8])
def test_what_equal_answers_gave_up_is_asked_again_once(concurrency: int, tmp_path: Path) -> None:
    asked: list[str] = []

    def script(prompt: str) -> str:
        asked.append(prompt)
        return "10 of 10"

    answers, samples = planned(1)
    judge = ScriptedJudge(script, concurrency=concurrency)
    for calls in (2, 4):
        verdicts = judge_answers(
            answers * 3, samples, judge, tmp_path, Settings(retry_unscored=True)
        )
        assert {verdict.status for verdict in verdicts} == {"bad_reply"} and len(asked) == calls
