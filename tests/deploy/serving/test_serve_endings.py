"""Clients that leave, models that fail, a server that is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from importlib.util import find_spec

import openai
import pytest
import torch

from deploy.serving.chat_service import (
    NAME,
    data_url,
    eventually,
    noise,
    picture,
    serving,
    text,
    user,
)
from drivekd.cli import app
from drivekd.deploy.serving import serve as module
from drivekd.deploy.serving.limits import Limits
from drivekd.deploy.serving.serve import listening, serve
from drivekd.files import extras
from drivekd.models import vlm as models
from drivekd.models.tiny import tiny_vlm

SHOWN = user(picture(data_url(noise("a"))), text("Where?"))


def test_a_client_that_leaves_a_stream_is_dropped_at_the_next_token(client, service):
    service.pause = 0.005
    with client.chat.completions.create(
        model=NAME, messages=SHOWN, max_tokens=500, stream=True
    ) as stream:
        assert next(iter(stream)).choices[0].delta.role == "assistant"
    assert service.quiet()
    assert len(service.steps) < 250


def test_those_beside_one_who_leaves_are_answered_alike(service, client):
    alone = client.chat.completions.create(model=NAME, messages=user("Stay."), max_tokens=60)
    service.steps.clear()
    service.pause = 0.005

    async def together():
        async with openai.AsyncOpenAI(base_url=service.url, api_key="none") as many:
            ask = many.chat.completions.create
            first = await ask(model=NAME, messages=user("First."), max_tokens=20, stream=True)
            leaving = asyncio.create_task(ask(model=NAME, messages=user("Leave."), max_tokens=400))
            staying = asyncio.create_task(ask(model=NAME, messages=user("Stay."), max_tokens=60))
            assert [part async for part in first]  # both wait for its end, and so run together
            await asyncio.to_thread(eventually, lambda: (2, 1) in service.steps)
            leaving.cancel()
            return (await staying).choices[0].message.content

    assert asyncio.run(together()) == alone.choices[0].message.content
    assert service.quiet()
    assert (1, 1) in service.steps[service.steps.index((2, 1)) :]
    assert len(service.steps) < 100


def test_a_client_that_leaves_the_line_costs_no_step(service, client):
    service.pause = 0.01
    with client.chat.completions.create(
        model=NAME, messages=user("First."), max_tokens=30, stream=True
    ) as stream:
        next(iter(stream))
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model=NAME, messages=SHOWN, max_tokens=400, timeout=0.1)
        assert eventually(lambda: service.door.inside == 1)
        list(stream)
    assert service.quiet()
    assert len(service.steps) == 30


def test_one_that_cannot_be_run_spoils_nobody_else(service, client, monkeypatch, caplog):
    """A batch whose beginning fails is tried one by one."""
    from drivekd.deploy.serving import batching

    true_begin, failed = batching.begin, []

    def begin(vlm, encoded):
        if len(encoded) > 1 or "Bad" in encoded[0].sample.messages[0].content:
            failed.append(len(encoded))
            raise torch.OutOfMemoryError("no memory")
        return true_begin(vlm, encoded)

    monkeypatch.setattr(batching, "begin", begin)
    service.pause = 0.01

    async def together():
        async with openai.AsyncOpenAI(base_url=service.url, api_key="none", max_retries=0) as many:
            asked = [
                many.chat.completions.create(model=NAME, messages=user(words), max_tokens=5)
                for words in ("First.", "Good.", "Bad.", "Good.")
            ]
            return await asyncio.gather(*asked, return_exceptions=True)

    with caplog.at_level(logging.CRITICAL, logger=batching.__name__):
        first, good, bad, again = asyncio.run(together())
    assert isinstance(bad, openai.InternalServerError)
    assert bad.status_code == 500
    assert "memory" not in str(bad)
    assert good.choices == again.choices
    assert first.choices
    assert failed


def test_a_model_without_numbers_is_an_error_and_the_server_lives(service, client, vlm, caplog):
    weight = models.head_weight(vlm)
    before = weight[0, 0].item()
    with torch.no_grad():
        weight[0, 0] = torch.nan
    try:
        with (
            caplog.at_level(logging.CRITICAL, logger="drivekd.deploy.serving.batching"),
            pytest.raises(openai.InternalServerError),
        ):
            client.chat.completions.create(model=NAME, messages=user("Where?"), max_tokens=2)
    finally:
        with torch.no_grad():
            weight[0, 0] = before
    assert client.chat.completions.create(model=NAME, messages=user("Where?"), max_tokens=2).choices


def test_what_lasts_too_long_after_the_signal_is_told_so(vlm, tmp_path):
    with (
        serving(vlm, tmp_path, Limits(max_batch=1, max_new_tokens=4000), drain=0.3) as service,
        openai.OpenAI(base_url=service.url, api_key="none", max_retries=0) as client,
    ):
        service.pause = 0.01
        waiting: list[BaseException] = []

        def wait() -> None:
            try:
                client.chat.completions.create(model=NAME, messages=user("Wait."))
            except openai.APIError as error:
                waiting.append(error)

        stream = client.chat.completions.create(model=NAME, messages=user("Go."), stream=True)
        thread = threading.Thread(target=wait)
        thread.start()
        assert eventually(lambda: service.door.inside == 2)
        service.stop()
        with pytest.raises(openai.APIError, match="stopping"):
            list(stream)
        thread.join(20)
    assert isinstance(waiting[0], openai.InternalServerError)
    assert waiting[0].status_code == 503
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folder(tmp_path):
    """A saved model that goes on talking."""
    made = tiny_vlm("internvl", initializer_range=0.15, vision_hidden=32, image_size=48)
    made.model.generation_config.eos_token_id = made.tokenizer.pad_token_id
    models.save(made, tmp_path / "a model")
    return tmp_path / "a model"


def test_the_command_serves_and_ends_well_on_sigterm(folder, tmp_path):
    """A stream that has begun and a request that waits are answered whole; then exit code 0."""
    command = [sys.executable, "-m", "drivekd", "serve", "--model", str(folder), "--port", "0"]
    options = ["--served-name", NAME, "--key-env", "A_KEY", "--max-batch", "1"]
    environment = os.environ | {"A_KEY": "secret", "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        first = process.stdout.readline()
        told = first + "".join(process.stdout.readline() for _ in range(3))
        url = next(word for word in first.split() if word.startswith("http")).rstrip(":")
        with openai.OpenAI(base_url=url, api_key="secret", max_retries=0) as client:
            done: list[str | None] = []

            def wait() -> None:
                reply = client.chat.completions.create(model=NAME, messages=SHOWN, max_tokens=5)
                done.append(reply.choices[0].finish_reason)

            stream = client.chat.completions.create(
                model=NAME, messages=SHOWN, max_tokens=400, stream=True
            )
            parts = iter(stream)
            next(parts)
            thread = threading.Thread(target=wait)
            thread.start()
            # It waits where its picture is: behind the one whose picture is not needed any more.
            assert eventually(lambda: list(tmp_path.glob("drivekd-serve-*/*/0")) != [])
            process.send_signal(signal.SIGTERM)
            assert list(parts)[-1].choices[0].finish_reason == "length"
            thread.join(30)
            assert done == ["length"]
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    assert list(tmp_path.glob("drivekd-serve-*")) == []
    assert f"vllm serve '{folder}' --mm-processor-kwargs" in told
    assert f"python -m sglang.launch_server --model-path '{folder}'\n" in told
    assert "not run here" in told
    assert "127.0.0.1" in url
    assert "secret" not in told


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str]:
    with pytest.raises(SystemExit) as ended:
        app.main(["serve", *arguments])
    return ended.value.code, capsys.readouterr().err


@pytest.mark.usefixtures("no_debug")
def test_what_the_command_cannot_do(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    free = ("--port", "0")
    for arguments, words in (
        (("--model", str(tmp_path), *free), "cannot be read"),
        (("--model", "world:teacher", *free, "--key-env", "NO_SUCH_KEY"), "NO_SUCH_KEY is not set"),
        (("--model", "world:teacher", *free, "--host", "192.0.2.1"), "cannot listen on 192.0.2.1"),
        (("--model", "world:teacher", *free, "--max-batch", "0"), "--max-batch"),
    ):
        code, err = run(capsys, *arguments)
        assert code == 2
        assert words in err
        assert err.count("\n") == 1
    with listening("127.0.0.1", 0) as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        code, err = run(capsys, "--model", "world:teacher", "--port", port)
    assert code == 2
    assert f"port {port} of 127.0.0.1 is taken" in err
    monkeypatch.setattr(
        extras, "find_spec", lambda name: None if name == "uvicorn" else find_spec(name)
    )
    code, err = run(capsys, "--model", "world:teacher")
    assert code == 2
    assert err == "drivekd: error: uvicorn not found: pip install 'drivekd[serve]'\n"


def test_a_family_that_is_only_asked_is_not_served(vlm, monkeypatch):
    from dataclasses import replace

    crossed = replace(vlm, family=models.LLAMA)
    monkeypatch.setattr(models, "load", lambda *given, **named: crossed)
    with pytest.raises(ValueError, match="not served"):
        serve("llama", port=0)


def test_who_may_use_it_is_told_where_everybody_may(vlm):
    from dataclasses import replace

    shipped = replace(vlm, source="world:teacher")
    with socket.socket() as everywhere:
        everywhere.bind(("0.0.0.0", 0))
        told = module.greeting(shipped, NAME, everywhere, Limits(), keyed=False)
        assert "everybody who reaches this address may use the model" in told
        assert "everybody" not in module.greeting(vlm, NAME, everywhere, Limits(), keyed=True)
    assert "assets" in told  # the folder behind the name
