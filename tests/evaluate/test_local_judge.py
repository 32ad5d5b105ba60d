"""A text model of transformers as judge: tiny, random, and so never to be believed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import Qwen2ForCausalLM

from drivekd.evaluate.answers.asking import Asking
from drivekd.evaluate.answers.remote import remote_answers
from drivekd.evaluate.chat import ChatEndpoint
from drivekd.evaluate.judging.judge import judge_answers
from drivekd.evaluate.judging.judges import ChatJudge, LocalJudge, _rendered
from evaluate.chat_server import planned


def test_nonsense_of_a_local_model_is_unscored_with_reasons(
    text_model: Path, tmp_path: Path
) -> None:
    answers, samples = planned(2)
    judge = LocalJudge(str(text_model), longest=8)
    verdicts = judge_answers(answers, samples, judge, tmp_path)
    assert [(v.status, v.total) for v in verdicts] == [("bad_reply", None)] * 2
    assert all(verdict.reason for verdict in verdicts)
    assert judge_answers(answers, samples, judge, tmp_path) == verdicts


def test_a_local_model_that_is_none_is_named(text_model: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "none such"}')
    damaged = shutil.copytree(text_model, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"x" * 100)
    for folder in ("none", "other", "damaged"):
        with pytest.raises(ValueError, match=f"local judge .*{folder}"):
            judge_answers(*planned(1), LocalJudge(str(tmp_path / folder)), tmp_path)
    with pytest.raises(ValueError, match="on nowhere"):
        judge_answers(*planned(1), LocalJudge(str(text_model), device="nowhere"), tmp_path)


def test_another_model_in_the_same_folder_is_asked_anew(text_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(text_model, tmp_path / "model")

    def identity() -> object:
        return LocalJudge(str(folder)).identity()

    first = identity()
    assert identity() == first == LocalJudge(str(text_model)).identity()
    model = Qwen2ForCausalLM.from_pretrained(folder)
    model.lm_head.weight.data[0, 0] += 1
    model.save_pretrained(folder)
    second = identity()
    assert second != first
    (folder / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    assert identity() not in (first, second)


PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + PLAIN
)


def test_a_template_without_a_system_role_gets_its_text_before_the_question(
    text_model: Path, tmp_path: Path
) -> None:
    seen = []
    for name, template in (("plain", PLAIN), ("strict", STRICT)):
        folder = shutil.copytree(text_model, tmp_path / name)
        (folder / "chat_template.jinja").write_text(template)
        judge = LocalJudge(str(folder), longest=4)
        assert judge_answers(*planned(1), judge, tmp_path)[0].status == "bad_reply"
        tokenizer, _, _ = judge._open()
        turns = [{"role": "system", "content": "Grade."}, {"role": "user", "content": "This."}]
        ids = _rendered(tokenizer, turns, name)["input_ids"]
        seen.append(tokenizer.decode(ids[0]))
    assert seen == ["system: Grade.\nuser: This.\n", "user: Grade.\n\nThis.\n"]


def test_a_template_that_takes_nothing_is_named(text_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(text_model, tmp_path / "never")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('never') }}")
    with pytest.raises(ValueError, match="chat template"):
        judge_answers(*planned(1), LocalJudge(str(folder)), tmp_path)


def test_a_local_model_is_asked_one_thing_at_a_time(text_model: Path) -> None:
    with pytest.raises(TypeError):
        LocalJudge(str(text_model), concurrency=2)  # type: ignore[call-arg]


def test_transformers_serve_answers_and_its_nonsense_is_unscored_with_reasons(
    text_model: Path, tmp_path: Path
) -> None:
    """Needs the extra `serving`; the server is started and stopped here."""
    for package in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(package)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = shutil.which("transformers", path=str(Path(sys.executable).parent))
    assert command is not None
    server = subprocess.Popen(
        [command, "serve", "--port", str(port), "--host", "127.0.0.1"],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _listening(port, server)
        endpoint = ChatEndpoint(f"http://127.0.0.1:{port}/v1", str(text_model), concurrency=1)
        answers, samples = planned(2)
        verdicts = judge_answers(answers, samples, ChatJudge(endpoint, longest=8), tmp_path)
        drawing = Asking(max_new_tokens=6, temperature=0.5, top_p=0.9, runs=2)
        given = remote_answers(endpoint, samples, drawing, tmp_path / "answers.jsonl")
    finally:
        server.terminate()
        server.wait(30)
    assert [verdict.total for verdict in verdicts] == [None, None]
    assert all(verdict.status == "bad_reply" and verdict.reason for verdict in verdicts)
    assert [(a.run, a.id) for a in given] == [(0, "q0"), (0, "q1"), (1, "q0"), (1, "q1")]
    assert any(a.reply for a in given)


def _listening(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert server.poll() is None, "transformers serve ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    pytest.fail("transformers serve did not listen within two minutes")
