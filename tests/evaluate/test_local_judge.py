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
from transformers import Qwen2Config, Qwen2ForCausalLM

from drivekd.evaluate.chat import ChatEndpoint
from drivekd.evaluate.judge import judge_answers
from drivekd.evaluate.judges import ChatJudge, LocalJudge
from drivekd.models.tiny import build_tokenizer
from evaluate.chat_server import planned


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random text model of two layers and its tokenizer."""
    folder = tmp_path_factory.mktemp("text")
    tokenizer = build_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_nonsense_of_a_local_model_is_unscored_with_reasons(
    text_model: Path, tmp_path: Path
) -> None:
    answers, samples = planned(2)
    judge = LocalJudge(str(text_model), longest=8)
    verdicts = judge_answers(answers, samples, judge, tmp_path)
    assert [(v.status, v.total) for v in verdicts] == [("bad_reply", None)] * 2
    assert all(verdict.reason for verdict in verdicts)
    assert judge_answers(answers, samples, judge, tmp_path) == verdicts


def test_a_local_model_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="local judge"):
        judge_answers(*planned(1), LocalJudge(str(tmp_path / "none")), tmp_path)


def test_nonsense_of_transformers_serve_is_unscored_with_reasons(
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
    finally:
        server.terminate()
        server.wait(30)
    assert [verdict.total for verdict in verdicts] == [None, None]
    assert all(verdict.status == "bad_reply" and verdict.reason for verdict in verdicts)


def _listening(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert server.poll() is None, "transformers serve ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    pytest.fail("transformers serve did not listen within two minutes")
