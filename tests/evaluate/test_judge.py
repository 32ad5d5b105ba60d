from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drivekd.data.formats.readers import read
from drivekd.data.sample import Message, Sample
from drivekd.evaluate import chat
from drivekd.evaluate.chat import ChatEndpoint, ChatError
from drivekd.evaluate.folder import read_verdicts
from drivekd.evaluate.judging.cost import Price
from drivekd.evaluate.judging.judge import Settings, judge_answers, write_verdicts
from drivekd.evaluate.judging.judges import ChatJudge, ScriptedJudge
from drivekd.evaluate.judging.prompts import describe, prompt_of, read_descriptions
from drivekd.evaluate.judging.sheets import SHEETS, Criterion, Sheet, read_rubric
from evaluate.chat_server import Server, answered, fill, planned, serving

PLANNING = SHEETS["planning"]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "FIRST_WAIT", 0.001)


def judge_at(server: Server, concurrency: int = 8, tries: int = 2, **more: Any) -> ChatJudge:
    endpoint = ChatEndpoint(server.url, "m", concurrency=concurrency, tries=tries, timeout=30)
    return ChatJudge(endpoint, **more)


def statuses(verdicts: list[Any]) -> dict[str, int]:
    return dict(Counter(verdict.status for verdict in verdicts))


def test_every_answer_is_scored_in_every_run_and_written(tmp_path: Path) -> None:
    answers, samples = planned(3)
    verdicts = judge_answers(answers, samples, ScriptedJudge(fill), tmp_path, Settings(runs=2))
    assert [(v.id, v.run) for v in verdicts] == [(f"q{i}", r) for i in range(3) for r in range(2)]
    assert {v.total for v in verdicts} == {50.0}
    assert verdicts[0].scores == (20, 10, 7.5, 7.5, 5)
    write_verdicts(verdicts, tmp_path / "verdicts.jsonl")
    assert read_verdicts(tmp_path / "verdicts.jsonl") == verdicts


def test_runs_of_answers_are_told_apart_and_read_back(tmp_path: Path) -> None:
    answers, samples = planned(2)
    again = [replace(answer, reply="Wait.", run=1) for answer in answers]
    given = [*answers, *again]
    verdicts = judge_answers(given, samples, ScriptedJudge(fill), tmp_path, Settings(runs=2))
    assert {(v.id, v.answer_run, v.run) for v in verdicts} == {
        (f"q{i}", a, r) for i in range(2) for a in range(2) for r in range(2)
    }
    unsheeted = [replace(sample, capability=None) for sample in samples]
    without = judge_answers(again, unsheeted, ScriptedJudge(fill), tmp_path / "without")
    assert [(v.status, v.answer_run) for v in without] == [("no_sheet", 1)] * 2


def test_a_bad_sheet_is_asked_for_once_more_with_the_reason(tmp_path: Path) -> None:
    asked: list[str] = []

    def script(prompt: str) -> str:
        asked.append(prompt)
        sheet = fill(asked[0])
        return sheet if len(asked) == 2 else sheet.replace("Total: 50", "Total: 99")

    verdict = judge_answers(*planned(1), ScriptedJudge(script), tmp_path)[0]
    assert verdict.status == "scored" and len(asked) == 2
    assert "the total 99.0 is not the sum of the criteria, 50" in asked[1]


def test_nonsense_is_unscored_with_a_reason_and_asked_again_only_when_told(tmp_path: Path) -> None:
    asked: list[str] = []

    def script(prompt: str) -> str:
        asked.append(prompt)
        return "I would rate your answer as 10."

    answers, samples = planned(1)
    judge = ScriptedJudge(script)
    verdict = judge_answers(answers, samples, judge, tmp_path)[0]
    assert (verdict.status, verdict.total) == ("bad_reply", None) and "mark" in verdict.reason
    assert judge_answers(answers, samples, judge, tmp_path) == [verdict] and len(asked) == 2
    judge_answers(answers, samples, judge, tmp_path, Settings(retry_unscored=True))
    assert len(asked) == 4
    better = replace(judge, script=fill)
    again = judge_answers(answers, samples, better, tmp_path, Settings(retry_unscored=True))
    assert statuses(again) == {"scored": 1}


def test_half_a_surrogate_pair_in_a_reply_an_answer_or_an_id_is_survived(tmp_path: Path) -> None:
    with serving(lambda prompt: "\ud800\n" + fill(prompt)) as server:
        answers, samples = planned(1, "Stop \ud83d.")
        answers, samples = [replace(answers[0], id="\ud83d")], [replace(samples[0], id="\ud83d")]
        verdicts = judge_answers(answers, samples, judge_at(server), tmp_path)
    assert verdicts[0].total == 50
    write_verdicts(verdicts, tmp_path / "verdicts.jsonl")
    assert read_verdicts(tmp_path / "verdicts.jsonl")[0].id == "\ud83d"


def test_another_answer_judge_or_run_is_asked_anew(tmp_path: Path) -> None:
    asked: list[str] = []

    def script(prompt: str) -> str:
        asked.append(prompt)
        return fill(prompt)

    answers, samples = planned(1)
    judge_answers(answers, samples, ScriptedJudge(script), tmp_path)
    judge_answers(answers, samples, ScriptedJudge(script), tmp_path)
    assert len(asked) == 1
    judge_answers([replace(answers[0], reply="Go.")], samples, ScriptedJudge(script), tmp_path)
    judge_answers(answers, samples, ScriptedJudge(script, name="b"), tmp_path)
    judge_answers(answers, samples, ScriptedJudge(script), tmp_path, Settings(runs=2))
    assert len(asked) == 4


@pytest.mark.parametrize("total", [300, pytest.param(5000, marks=pytest.mark.faults)])
def test_many_requests_with_a_fifth_of_faults(total: int, tmp_path: Path) -> None:
    faults = ("500", "429 0", "truncated", "html", "400", "cut")
    answers, samples = planned(total)

    def faulty(number: int, body: dict[str, Any]) -> str:
        return faults[number // 5 % len(faults)] if number % 5 == 0 else "ok"

    with serving(fill, faulty) as server:
        judge = judge_at(server, 64, tries=1)
        first = judge_answers(answers, samples, judge, tmp_path)
        assert [v.id for v in first] == [s.id for s in samples]
        assert len(server.bodies) == total
        count = statuses(first)
        assert (
            set(count) == {"scored", "transport", "bad_reply"} and count["scored"] == total * 4 // 5
        )
        assert all(v.reason if v.total is None else v.total == 50 for v in first)

        server.plan = lambda number, body: "ok"
        second = judge_answers(answers, samples, judge, tmp_path)
        assert len(server.bodies) == total + count["transport"]
        assert statuses(second) == {"scored": total - count["bad_reply"]} | {
            "bad_reply": count["bad_reply"]
        }
        judge_answers(answers, samples, judge, tmp_path, Settings(retry_unscored=True))
        asked = total + total // 5
        assert len(server.bodies) == asked
        last = judge_answers(answers, samples, judge, tmp_path)
        assert len(server.bodies) == asked and statuses(last) == {"scored": total}


def test_at_least_three_hundred_verdicts_a_second_without_a_network(tmp_path: Path) -> None:
    answers, samples = planned(600)
    started = time.perf_counter()
    judge_answers(answers, samples, ScriptedJudge(fill), tmp_path)
    assert 600 / (time.perf_counter() - started) >= 300


def test_a_refused_key_stops_everything_and_keeps_what_was_paid(tmp_path: Path) -> None:
    answers, samples = planned(50)
    with serving(fill, lambda number, body: "ok" if number < 10 else "401") as server:
        with pytest.raises(ChatError, match="status 401"):
            judge_answers(answers, samples, judge_at(server, 2), tmp_path)
        assert len(server.bodies) < 20
        server.plan = lambda number, body: "ok"
        asked = len(server.bodies)
        judge_answers(answers, samples, judge_at(server, 2), tmp_path)
    assert len(server.bodies) - asked == 40


KILLED = """
import sys
from pathlib import Path
from drivekd.evaluate.chat import ChatEndpoint
from drivekd.evaluate.judging.judge import judge_answers
from drivekd.evaluate.judging.judges import ChatJudge
from evaluate.chat_server import planned
judge = ChatJudge(ChatEndpoint(sys.argv[1], "m", concurrency=4, tries=2, timeout=30))
judge_answers(*planned(400), judge, Path(sys.argv[2]))
"""


@pytest.mark.faults
def test_kill_9_loses_no_paid_verdict(tmp_path: Path) -> None:
    """What was sent when the process died may be asked again: at most one request per worker."""
    with serving(fill) as server:
        path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, server.url, str(tmp_path)],
            env=os.environ | {"PYTHONPATH": path},
        )
        while len(server.bodies) < 100 and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.1)
        sent = len(server.bodies)
        assert 100 <= sent < 400
        with sqlite3.connect(tmp_path / "verdicts.sqlite") as file:
            kept = file.execute("SELECT count(*) FROM replies").fetchone()[0]
        file.close()
        assert kept >= sent - 4
        verdicts = judge_answers(*planned(400), judge_at(server, 4), tmp_path)
    assert statuses(verdicts) == {"scored": 400} and len(server.bodies) == sent + 400 - kept


def test_the_cost_limit_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers, samples = planned(40)
    limited = Settings(price=Price(1.0, 2.0), max_cost=0.006)
    with serving(fill) as server:
        verdicts = judge_answers(answers, samples, judge_at(server, 4), tmp_path, limited)
    count = statuses(verdicts)
    spent = len(server.bodies) * (100 + 2 * 20) / 1e6
    assert 0 < count["scored"] < 40 and count["scored"] + count["over_budget"] == 40
    assert spent <= 0.006
    said = capsys.readouterr().err
    assert "if every reply is at its longest" in said and f"judging cost {spent:.4f}" in said
    with pytest.raises(ValueError, match="needs the judge's prices"):
        judge_answers(answers, samples, ScriptedJudge(fill), tmp_path, Settings(max_cost=1))


def choice(reply: str, **more: Any) -> tuple[list[Any], list[Sample]]:
    turns = (Message("user", "Which? A. Red. B. Blue."), Message("assistant", "B"))
    sample = Sample("c", turns, {}, capability="perception", **more)
    return [answered(sample, reply)], [sample]


def test_points_for_an_option_that_was_not_taken_do_not_count(tmp_path: Path) -> None:
    generous = ScriptedJudge(lambda prompt: fill(prompt, 1.0))
    right, wrong = (judge_answers(*choice(r), generous, tmp_path)[0] for r in ("B", "A"))
    assert right.total == 100
    assert wrong.status == "bad_reply" and "takes 'A'" in wrong.reason
    half = judge_answers(*choice("B"), ScriptedJudge(fill, name="half"), tmp_path)[0]
    assert half.status == "bad_reply" and "all or nothing" in half.reason


@pytest.mark.parametrize(
    "options", [{"AB": "red"}, ["red", "blue"], {"A": 1}, {"a": "x", "A": "y"}]
)
def test_options_that_are_none_are_told_before_anything_is_asked(
    options: Any, tmp_path: Path
) -> None:
    asked: list[str] = []
    answers, samples = planned(1)
    more, bad = choice("B", meta={"options": options})
    with pytest.raises(ValueError, match=r"sample 'c': options"):
        judge_answers([*answers, *more], [*samples, *bad], ScriptedJudge(asked.append), tmp_path)  # type: ignore[arg-type]
    assert asked == []


def test_json_replies_and_their_schema(tmp_path: Path) -> None:
    def say(prompt: str) -> str:
        mark, scores = fill(prompt).split("\n")[0], [20, 10, 7.5, 7.5, 5]
        return "```json\n" + json.dumps({"mark": mark, "scores": scores, "total": 50}) + "\n```"

    with serving(say) as server:
        judge = judge_at(server, wants_json=True)
        assert judge_answers(*planned(1), judge, tmp_path)[0].total == 50
    form = server.bodies[0]["response_format"]["json_schema"]["schema"]
    assert form["properties"]["scores"]["minItems"] == 5


def test_answers_that_fit_nothing_are_told(tmp_path: Path) -> None:
    answers, samples = planned(1)
    nowhere = replace(samples[0], capability=None)
    verdict = judge_answers(answers, [nowhere], ScriptedJudge(fill), tmp_path)[0]
    assert (verdict.status, verdict.total) == ("no_sheet", None)
    with pytest.raises(ValueError, match="'q0' belongs to no sample"):
        judge_answers(answers, [], ScriptedJudge(fill), tmp_path)
    with pytest.raises(ValueError, match="runs 0"):
        judge_answers(answers, samples, ScriptedJudge(fill), tmp_path, Settings(runs=0))


RUBRIC = 'PLANNING_VQA_PROMPT = """Q {QUESTION} D {DESC} R {GT} P {PRED}\n1. Action (60 points):\n'
RUBRIC += '2. Why (40 points):\nTotal Score:"""\nraise SystemExit\nOTHER = "text"\n'


def test_a_rubric_in_a_python_file_is_read_and_never_run(tmp_path: Path) -> None:
    (tmp_path / "prompts.py").write_text(RUBRIC)
    sheets = read_rubric(tmp_path / "prompts.py")
    prompts: list[str] = []

    def script(prompt: str) -> str:
        prompts.append(prompt)
        return "1. Action (60 points): 40\n**2. Why (40 points):** 30/40\nTotal Score: 70/100"

    answers, samples = planned(1, "Stop. {GT} {QUESTION}")
    settings = Settings(sheets=sheets)
    verdict = judge_answers(answers, samples, ScriptedJudge(script), tmp_path, settings)[0]
    assert (verdict.total, verdict.scores) == (70, (40, 30))
    assert "Q What now, 0?" in prompts[0] and "Stop. {GT} {QUESTION}" in prompts[0]
    assert sheets["perception_open"] is SHEETS["perception_open"]


PLACES = "{QUESTION} {GT} {PRED}\n\n"
TWICE = "\n\n".join(f"{row} points)" for row in ("1. A (60", "2. B (40", "1. A (90"))


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.yaml", "planing: x", "'planing'"),
        ("a.yaml", "planning: no places", "no {QUESTION}, {GT}, {PRED}"),
        ("a.yaml", f"planning: '{PLACES} 1. A (50 points)'", "planning: its points are 50 = 50"),
        ("a.yaml", f"planning: '{PLACES} {TWICE}'", "criterion 1 has 60 points as 'A' and 90"),
        ("a.yaml", "planning: '{QUESTION} {GT} {PRED}'", "numbered from 1"),
        ("a.yaml", "- x", "names of sheets"),
        ("a.yaml", "planning: [1]", "expected a text"),
        ("a.yaml", "a: : b", "cannot be read"),
        ("a.py", "def f(:", "cannot be read"),
        ("a.py", "PROMPT = 'x'", "none of its strings"),
    ],
)
def test_rubrics_that_are_refused(tmp_path: Path, name: str, text: str, match: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=match):
        read_rubric(tmp_path / name)
    with pytest.raises(ValueError, match="cannot be read"):
        read_rubric(tmp_path / "none.yaml")


def test_sheets_are_out_of_a_hundred() -> None:
    with pytest.raises(ValueError, match=r"sheet own: its points are 60 \+ 50 = 110, expected 100"):
        Sheet("own", (Criterion("a", 60), Criterion("b", 50)))


def test_a_store_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "verdicts.sqlite").write_text("x" * 5000)
    (tmp_path / "folder" / "verdicts.sqlite").mkdir(parents=True)
    for out in (tmp_path, tmp_path / "folder", tmp_path / "verdicts.sqlite"):
        with pytest.raises(ValueError, match=r"verdicts\.sqlite"):
            judge_answers(*planned(1), ScriptedJudge(fill), out)


@pytest.mark.real_data
def test_descriptions_of_the_public_benchmark(real_data: Path) -> None:
    table = read_descriptions(real_data / "drivebench" / "visual_description.json")
    assert len(table) == 200 and sum(map(len, table.values())) == 842
    frame = "1b45a97a0e5e49fe9cd345dd4bd729c3"
    asked = "What is <c2,CAM_FRONT_RIGHT,0.2625,0.6000>?"
    sample = Sample("x", (Message("user", asked), Message("assistant", "y")), {}, frame=frame)
    assert describe(sample, table) == "<c2,CAM_FRONT_RIGHT>: Vehicle, Moving, Blue sedan."
    prompt, _ = prompt_of(answered(sample, "r"), PLANNING, describe(sample, table))
    assert "Blue sedan." in prompt


@pytest.mark.real_data
def test_every_question_of_the_challenge_has_a_sheet(real_data: Path, tmp_path: Path) -> None:
    """The references as answers, and a judge that gives everything: nothing contradicts it."""
    samples = list(read(real_data / "drivelm" / "test_eval.json"))
    answers = [answered(sample, sample.answer or "") for sample in samples]
    judge = ScriptedJudge(lambda prompt: fill(prompt, 1.0))
    verdicts = judge_answers(answers, samples, judge, tmp_path)
    assert len(verdicts) == 66
    assert [(v.id, v.reason) for v in verdicts if v.total != 100] == []


def test_a_file_that_holds_no_descriptions(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text("[]")
    with pytest.raises(ValueError, match="visual_description"):
        read_descriptions(tmp_path / "d.json")
