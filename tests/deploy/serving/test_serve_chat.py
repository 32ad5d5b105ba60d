"""OpenAI's own client over loopback: what it is answered, alone, beside others, as a stream."""

from __future__ import annotations

import asyncio

import openai
import pytest

from deploy.serving.chat_service import NAME, Service, data_url, noise, picture, serving, text, user
from drivekd.data.sample import Message, Sample
from drivekd.deploy.serving.limits import Limits
from drivekd.evaluate.answers.asking import Asking, answers
from drivekd.evaluate.answers.remote import remote_answers
from drivekd.evaluate.chat import ChatEndpoint
from drivekd.models.generate import generate, generate_ids
from drivekd.models.sampling import Sampling
from drivekd.models.tiny import tiny_vlm

NEW = 12

CONVERSATION = [
    {"role": "system", "content": "You drive."},
    {
        "role": "user",
        "content": [
            text("CAM_FRONT: "),
            picture(data_url(noise("front"))),
            text("\nCAM_BACK: "),
            picture(data_url(noise("back", (60, 40)))),
            text("\nWhat is <c1,CAM_FRONT,0.4700,0.6800><r3>? Größe ≈ 12 m"),
        ],
    },
    {"role": "assistant", "content": "a red car"},
    {"role": "user", "content": "And what is there?"},
]


@pytest.fixture
def sample(tmp_path):
    """The same conversation as our own models are asked."""
    for name, size in (("front", (48, 48)), ("back", (60, 40))):
        (tmp_path / f"{name}.png").write_bytes(noise(name, size))
    asked = "CAM_FRONT: <image>\nCAM_BACK: <image>\nWhat is <c1,CAM_FRONT,0.4700,0.6800><r3>?"
    turns = (
        Message("system", "You drive."),
        Message("user", f"{asked} Größe ≈ 12 m"),
        Message("assistant", "a red car"),
        Message("user", "And what is there?"),
    )
    images = {name: tmp_path / f"{name}.png" for name in ("front", "back")}
    return Sample("own", turns, images)


def said(client, messages, **params):
    """Text and reason of a whole reply."""
    params = {"max_tokens": NEW, "model": NAME} | params
    choice = client.chat.completions.create(messages=messages, **params).choices[0]
    assert choice.message.role == "assistant"
    return choice.message.content, choice.finish_reason


def streamed(client, messages, **params):
    """The same of a stream."""
    params = {"max_tokens": NEW, "model": NAME} | params
    with client.chat.completions.create(messages=messages, stream=True, **params) as chunks:
        choices = [chunk.choices[0] for chunk in chunks]
    assert choices[0].delta.role == "assistant"
    assert all(choice.finish_reason is None for choice in choices[:-1])
    return "".join(each.delta.content or "" for each in choices), choices[-1].finish_reason


@pytest.mark.parametrize("family", ["internvl", "qwen2_5_vl", "qwen3_vl"])
def test_streamed_and_whole_texts_are_those_of_plain_generation(family, sample, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    vlm = tiny_vlm(family, initializer_range=0.15, vision_hidden=32, image_size=48)
    expected = generate(vlm, [sample], max_new_tokens=NEW)[0]
    with (
        serving(vlm, place) as service,
        openai.OpenAI(base_url=service.url, api_key="none") as client,
    ):
        assert said(client, CONVERSATION) == (expected, "length")
        assert streamed(client, CONVERSATION) == (expected, "length")
        assert service.quiet()
    assert len(set(expected)) >= 4  # random, but not constant


def test_usage_counts_what_was_read_and_made(client, vlm):
    made = client.chat.completions.create(
        model=NAME, messages=user(picture(data_url(noise("a"))), text("Where?")), max_tokens=3
    )
    one = client.chat.completions.create(model=NAME, messages=user("Where?"), max_tokens=3)
    side = vlm.image_processor.size["longest_edge"] ** 0.5 / vlm.image_processor.patch_size
    assert made.usage.prompt_tokens - one.usage.prompt_tokens == (side / 2) ** 2 + 2
    assert made.usage.completion_tokens == 3
    assert made.usage.total_tokens == made.usage.prompt_tokens + 3
    stream = client.chat.completions.create(
        model=NAME,
        messages=user("Where?"),
        max_completion_tokens=3,
        stream=True,
        stream_options={"include_usage": True},
    )
    *_, last = list(stream)
    assert last.choices == []
    assert last.usage == one.usage


def test_an_answer_ends_at_the_end_token(client, vlm, service):
    sample = Sample("own", (Message("user", "Where to?"),), {})
    ids = generate_ids(vlm, [sample], max_new_tokens=NEW)[0]
    service.steps.clear()
    settings = vlm.model.generation_config
    before, settings.eos_token_id = settings.eos_token_id, ids[4]
    try:
        length = ids.index(ids[4]) + 1
        expected = vlm.tokenizer.decode(ids[:length], skip_special_tokens=True)
        assert said(client, user("Where to?")) == (expected, "stop")
        assert streamed(client, user("Where to?")) == (expected, "stop")
    finally:
        settings.eos_token_id = before
    assert service.steps[-1] == (1, 1)
    assert len(service.steps) == 2 * length


def test_stops_end_the_text_before_them(client, service):
    whole, _ = said(client, user("Go on."))
    stop = whole[3:6]
    before = whole[: whole.index(stop)]
    assert said(client, user("Go on."), stop=stop) == (before, "stop")
    assert streamed(client, user("Go on."), stop=["nowhere", stop]) == (before, "stop")


def test_draws_follow_the_seed_and_nothing_else(client, service, vlm):
    async def together():
        async with openai.AsyncOpenAI(base_url=service.url, api_key="none") as many:
            asked = [
                many.chat.completions.create(
                    model=NAME, messages=user("Say."), max_tokens=NEW, temperature=1.5, seed=seed
                )
                for seed in range(8)
            ]
            return [made.choices[0].message.content for made in await asyncio.gather(*asked)]

    service.pause = 0.01  # they meet
    found = asyncio.run(together())
    service.pause = 0.0
    drawn = {"temperature": 1.5, "top_p": 1.0}
    assert found == [said(client, user("Say."), seed=seed, **drawn)[0] for seed in range(8)]
    assert len(set(found)) == 8
    sampling, sample = Sampling(1.5, seed=3), Sample("own", (Message("user", "Say."),), {})
    local = generate(vlm, [sample], max_new_tokens=NEW, sampling=sampling)[0]
    assert said(client, user("Say."), seed=sampling.seed_of("own"), **drawn)[0] == local
    assert said(client, user("Say."), **drawn) != said(client, user("Say."), **drawn)
    nearly = said(client, user("Say."), temperature=2.0, top_p=1e-9)
    assert nearly == said(client, user("Say."))


def test_64_clients_are_answered_as_each_alone(service, vlm):
    asked = [Message("user", f"Number {k}: {'go ' * (k % 7)}") for k in range(64)]
    samples = [Sample(str(k), (turn,), {}) for k, turn in enumerate(asked)]
    expected = [generate(vlm, [sample], max_new_tokens=6)[0] for sample in samples]

    async def one(client, number):
        messages = [{"role": "user", "content": asked[number].content}]
        if number % 2:
            made = await client.chat.completions.create(model=NAME, messages=messages, max_tokens=6)
            return made.choices[0].message.content
        parts = await client.chat.completions.create(
            model=NAME, messages=messages, max_tokens=6, stream=True
        )
        return "".join([part.choices[0].delta.content or "" async for part in parts])

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=service.url, api_key="none") as client:
            return await asyncio.gather(*[one(client, number) for number in range(64)])

    service.steps.clear()
    service.pause = 0.002
    assert asyncio.run(all_of_them()) == expected
    rows = [rows for rows, _ in service.steps]
    assert max(rows) == Limits().max_batch
    assert len(rows) < 64 * 6 / 2  # they ran together


def test_our_own_endpoint_is_answered(service: Service, vlm, tmp_path):
    (tmp_path / "a.png").write_bytes(noise("a"))
    sample = Sample("own", (Message("user", "<image>Where?"),), {"image_0": tmp_path / "a.png"})
    messages = user(picture(data_url(noise("a"))), text("Where?"))

    async def asked():
        async with ChatEndpoint(service.url, NAME) as chat:
            return await chat.complete(messages, temperature=0.0, max_tokens=NEW, seed=5)

    reply = asyncio.run(asked())
    assert reply.text == generate(vlm, [sample], max_new_tokens=NEW)[0]
    assert reply.finish_reason == "length"
    assert reply.completion_tokens == NEW


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_data_set_asked_over_the_server_is_answered_as_here(service, vlm, tmp_path, temperature):
    """Draws too: the seed that our client sends with a question is that of the sample's stream."""
    (tmp_path / "a.png").write_bytes(noise("a"))
    samples = [
        Sample(
            f"q{k}",
            (Message("user", f"<image>Where, {k}?"), Message("assistant", "There.")),
            {"CAM_FRONT": tmp_path / "a.png"},
            capability="planning",
            scene="s",
        )
        for k in range(3)
    ]
    asking = Asking(max_new_tokens=6, temperature=temperature, seed=3)
    endpoint = ChatEndpoint(service.url, NAME)
    remote = remote_answers(endpoint, samples, asking, tmp_path / "answers.jsonl")
    assert [answer.reply for answer in remote] == [
        answer.reply for answer in answers(vlm, samples, asking)
    ]
