"""A served model's answers after the asking process was killed: none is lost, none asked twice."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

import children
from drivekd.evaluate.answers.asking import Asking
from drivekd.evaluate.answers.remote import GROUP, remote_answers
from drivekd.evaluate.chat import ChatEndpoint
from drivekd.evaluate.folder import read_answers
from evaluate.chat_server import planned, serving

pytestmark = pytest.mark.faults

CONCURRENCY = 4


@pytest.mark.parametrize("after", [1, 40, 97])
def test_killed_while_asking(tmp_path: Path, after: int) -> None:
    _, samples = planned(60)
    out, asking = tmp_path / "answers.jsonl", Asking(temperature=0.2, runs=2)
    with serving(str.upper, lambda n, body: "late") as server:

        def go() -> None:
            endpoint = ChatEndpoint(server.url, "m", concurrency=CONCURRENCY)
            remote_answers(endpoint, samples, asking, out)

        child = children.start(go, tmp_path / "said")
        until = time.monotonic() + 60
        while len(server.bodies) < after and time.monotonic() < until:
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        assert children.ended(child) == -signal.SIGKILL, (tmp_path / "said").read_text()
        time.sleep(0.2)  # the server answers a dead client
        asked = len(server.bodies)
        kept = {(a.id, a.run) for a in read_answers(out)} if out.exists() else set()
        assert len(kept) >= asked - CONCURRENCY - GROUP

        again = children.start(go, tmp_path / "said")
        assert children.ended(again) == 0, (tmp_path / "said").read_text()
        assert len(server.bodies) - asked == 120 - len(kept)
    found = read_answers(out)
    assert len(found) == len({(a.id, a.run) for a in found}) == 120
    assert all(a.reply == a.question.upper() for a in found)
