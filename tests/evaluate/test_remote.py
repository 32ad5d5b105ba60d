"""A served model, asked over a real socket: what arrives there, and what is left after faults."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drivekd.data.formats.readers import read
from drivekd.data.pictures import read_image
from drivekd.data.sample import CAMERAS, Message, Sample
from drivekd.evaluate import chat
from drivekd.evaluate.answers.answer import Answer
from drivekd.evaluate.answers.asking import Asking
from drivekd.evaluate.answers.remote import PATIENCE, remote_answers
from drivekd.evaluate.chat import ChatEndpoint, ChatError
from drivekd.evaluate.folder import read_answers
from drivekd.models.encode import encode
from drivekd.models.vlm import Vlm
from evaluate.chat_server import Plan, Server, planned, serving, text_of

FILTERED = '{"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}'


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "FIRST_WAIT", 0.001)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


def ask(server: Server, samples: list[Sample], out: Path, **how: Any) -> list[Answer]:
    asking = how.pop("asking", Asking())
    return remote_answers(ChatEndpoint(server.url, "m", **how), samples, asking, out)


def sent_files(body: dict[str, Any]) -> list[tuple[str, bytes]]:
    """Kind and bytes of the images of a request, in order."""
    parts = [p for m in body["messages"] if isinstance(m["content"], list) for p in m["content"]]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    heads, codes = zip(*(url.split(";base64,") for url in urls), strict=True)
    return [(h, base64.b64decode(c, validate=True)) for h, c in zip(heads, codes, strict=True)]


def on(texts: set[str], fault: str) -> Plan:
    """A fault for some questions, always."""
    return lambda n, body: fault if text_of(body) in texts else "ok"


def test_text_and_pictures_arrive_in_order_as_they_are(samples: list[Sample], out: Path) -> None:
    asking = Asking(max_new_tokens=9, system="Be brief.")
    with serving(lambda text: "yes") as server:
        given = ask(server, samples, out, asking=asking, concurrency=1)
    assert [a.id for a in given] == [s.id for s in samples] and all(a.correct for a in given)
    assert read_answers(out) == given
    for body, sample in zip(server.bodies, samples, strict=True):
        system, user = body["messages"]
        assert system == {"role": "system", "content": "Be brief."}
        texts = [part.get("text") for part in user["content"]]
        assert texts == ["CAM_FRONT: ", None, "\nCAM_BACK: ", None, f"\n{sample.question}"]
        files = [("data:image/png", path.read_bytes()) for path in sample.images.values()]
        assert sent_files(body) == files
        settings = {key: body[key] for key in ("model", "max_tokens", "temperature", "top_p")}
        assert settings == {"model": "m", "max_tokens": 9, "temperature": 0.0, "top_p": 1.0}
    assert json.loads(out.read_text().splitlines()[0])["model"] == f"m at {server.url}"
    assert ask(server, samples, out, asking=asking, key_env="NOT_SET") == given  # nobody is asked


def test_pictures_without_places_come_first_and_old_turns_stay(
    samples: list[Sample], out: Path
) -> None:
    turns = [("user", "One?"), ("assistant", "<image>"), ("user", "Two?"), ("assistant", "yes")]
    messages = tuple([Message(role, text) for role, text in turns])  # type: ignore[arg-type]
    with serving(str.upper) as server:
        ask(server, [replace(samples[0], messages=messages)], out)
    first, second, third = server.bodies[0]["messages"]
    assert [p.get("text") for p in first["content"]] == [None, "\n", None, "\nOne?"]
    assert (second["content"], third["content"]) == ("<image>", "Two?")


def save_odd(folder: Path) -> list[Path]:
    """Pictures that servers may see otherwise than we do."""
    rng = np.random.default_rng(3)
    noise = Image.fromarray(rng.integers(0, 256, (20, 40, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    noise.save(folder / "turned.jpg", exif=exif)
    noise.save(folder / "x.bmp")
    deep = Image.fromarray(rng.integers(0, 2**16, (20, 40), dtype=np.uint16))
    deep.save(folder / "deep.png")
    noise.convert("RGBA").save(folder / "clear.png")
    return [folder / name for name in ("turned.jpg", "x.bmp", "deep.png", "clear.png")]


def test_pictures_that_a_server_may_see_otherwise_arrive_as_we_see_them(
    tmp_path: Path, out: Path
) -> None:
    paths = save_odd(tmp_path)
    plain = tmp_path / "plain.jpg"
    Image.new("RGB", (40, 20), "red").save(plain)
    turns = (Message("user", "What?"), Message("assistant", "yes"))
    sample = Sample("a", turns, {path.name: path for path in (*paths, plain)})
    with serving(str.upper) as server:
        ask(server, [sample], out)
    *odd, last = sent_files(server.bodies[0])
    assert last == ("data:image/jpeg", plain.read_bytes())
    for (kind, content), path in zip(odd, paths, strict=True):
        assert kind == "data:image/png"
        with Image.open(BytesIO(content)) as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(read_image(path)))


@pytest.mark.parametrize(("mode", "level"), [("grey", 128), ("black", 0)])
def test_one_colour_is_sent_in_the_size_of_the_picture(
    samples: list[Sample], out: Path, mode: Any, level: int
) -> None:
    with serving(str.upper) as server:
        ask(server, samples[:1], out, asking=Asking(images=mode))
    for kind, content in sent_files(server.bodies[0]):
        assert kind == "data:image/png"
        with Image.open(BytesIO(content)) as picture:
            assert picture.size == (48, 48)
            assert np.asarray(picture).min() == np.asarray(picture).max() == level


def test_pictures_of_another_scene_are_sent_in_their_places(
    samples: list[Sample], out: Path
) -> None:
    with serving(str.upper) as server:
        ask(server, samples, out, asking=Asking(images="other"), concurrency=1)
    shown = [sent_files(body) for body in server.bodies]
    for given, other in zip(shown, samples[3:] + samples[:3], strict=True):
        assert [content for _, content in given] == [
            path.read_bytes() for path in other.images.values()
        ]


def drivebench(folder: Path) -> list[Sample]:
    """A question that names a camera, one that names two, one that names none."""
    for i, camera in enumerate(CAMERAS):
        Image.new("RGB", (48, 48), (40 * i, 0, 0)).save(folder / f"{camera}.jpg")
    asked = (
        "What is <c1,CAM_BACK,0.5000,0.4000>?",
        "Does <c2,CAM_FRONT_LEFT,0.1000,0.2000> see <c1,CAM_FRONT,0.5000,0.4000>?",
        "What should the car do?",
    )
    row = {
        "scene_token": "s", "frame_token": "f", "question_type": "perception", "tag": [0],
        "answer": "yes", "image_path": {camera: f"{camera}.jpg" for camera in CAMERAS},
    }  # fmt: skip
    file = folder / "drivebench.json"
    file.write_text(json.dumps([row | {"question": question} for question in asked]))
    return list(read(file))


def test_a_question_that_names_cameras_is_asked_with_their_pictures_only(
    vlm: Vlm, tmp_path: Path, out: Path
) -> None:
    samples = drivebench(tmp_path)
    with serving(str.upper) as server:
        ask(server, samples, out, concurrency=1)
    wanted = [("CAM_BACK",), ("CAM_FRONT", "CAM_FRONT_LEFT"), CAMERAS]
    for body, sample, cameras in zip(server.bodies, samples, wanted, strict=True):
        files = [tmp_path / f"{camera}.jpg" for camera in cameras]
        assert sent_files(body) == [("data:image/jpeg", file.read_bytes()) for file in files]
        assert list(encode(vlm, sample, add_answer=False).images) == files  # a loaded model too


@pytest.mark.real_data
def test_real_questions_with_their_cameras(real_data: Path, out: Path) -> None:
    file = real_data / "drivelm" / "test_eval.json"
    samples = [sample for sample in read(file) if sample.answer][::3]
    with serving(str.upper) as server:
        given = ask(server, samples, out, concurrency=1)
    assert len(given) == len(samples) > 20
    for body, sample in zip(server.bodies, samples, strict=True):
        assert text_of(body).endswith(sample.question)
        named = {camera for camera in CAMERAS if f",{camera}," in sample.question}
        assert set(sample.images) == (named or set(CAMERAS))
        files = [path.read_bytes() for path in sample.images.values()]
        assert [content for _, content in sent_files(body)] == files
    assert {1, 6} <= {len(sample.images) for sample in samples}


def test_runs_have_seeds_of_their_own(out: Path) -> None:
    _, samples = planned(3)
    asking = Asking(temperature=0.2, top_p=0.2, runs=3, seed=4)
    with serving(str.upper) as server:
        given = ask(server, samples, out, asking=asking)
        assert [(a.run, a.id) for a in given] == [(r, s.id) for r in range(3) for s in samples]
        seeds = {body["seed"] for body in server.bodies}
        assert len(seeds) == 9 and {body["top_p"] for body in server.bodies} == {0.2}
        more = replace(asking, runs=4)
        assert ask(server, samples, out, asking=more)[:9] == given
        assert len(server.bodies) == 12 and len({body["seed"] for body in server.bodies}) == 12
        assert len(ask(server, samples, out.with_name("greedy"), asking=Asking(runs=5))) == 3


def test_faults_that_pass_leave_no_gap(out: Path) -> None:
    _, samples = planned(45)
    faults = {3: "429 0", 4: "500", 5: "cut", 11: "503", 12: "429 0", 40: "500"}
    with serving(str.upper, lambda n, body: faults.get(n, "late")) as server:
        given = ask(server, samples, out, concurrency=6)
    assert [a.reply for a in given] == [s.question.upper() for s in samples]
    assert len(server.bodies) == 45 + len(faults) and 1 < server.busiest <= 6
    assert sorted(a.id for a in read_answers(out)) == sorted(s.id for s in samples)


@pytest.mark.parametrize("fault", ["400", "503", "html", "truncated", f"body 200 {FILTERED}"])
def test_what_has_no_answer_is_asked_again_by_the_next_call(out: Path, fault: str) -> None:
    _, samples = planned(20)
    bad = {samples[i].question for i in (2, 17)}
    with serving(str.upper, on(bad, fault)) as server:
        with pytest.raises(RuntimeError, match=r"2 of 20 .*'q") as end:
            ask(server, samples, out, tries=2)
        assert "\n" not in str(end.value) and server.url in str(end.value)
        kept = read_answers(out)
        assert len(kept) == 18 and not bad & {a.question for a in kept}
        server.plan, start = (lambda n, body: "ok"), len(server.bodies)
        given = ask(server, samples, out)
        assert {text_of(body) for body in server.bodies[start:]} == bad
    assert [a.reply for a in given] == [s.question.upper() for s in samples]


def test_who_refuses_everybody_is_asked_no_more(out: Path) -> None:
    _, samples = planned(50)
    with serving(str.upper, lambda n, body: "ok" if n < 10 else "401") as server:
        with pytest.raises(ChatError, match="status 401"):
            ask(server, samples, out, concurrency=2)
        assert len(server.bodies) <= 12
        assert len(read_answers(out)) == 10
        server.plan = lambda n, body: "ok"
        assert len(ask(server, samples, out)) == 50
        assert len(server.bodies) <= 52


def test_who_answers_nobody_any_more_is_given_up(out: Path) -> None:
    _, samples = planned(PATIENCE + 50)
    with (
        serving(str.upper, lambda n, body: "ok" if n < 5 else "500") as server,
        pytest.raises(RuntimeError, match=f"{PATIENCE + 45} of {PATIENCE + 50}"),
    ):
        ask(server, samples, out, concurrency=4, tries=1)
    assert len(server.bodies) < 5 + PATIENCE + 4
    assert len(read_answers(out)) == 5


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_an_empty_reply_is_a_wrong_answer(
    out: Path, capsys: pytest.CaptureFixture[str], reason: str
) -> None:
    _, samples = planned(3)
    body = {"choices": [{"message": {"content": None}, "finish_reason": reason}]}
    with serving(str.upper, on({samples[1].question}, f"body 200 {json.dumps(body)}")) as server:
        given = ask(server, samples, out)
    assert [a.reply for a in given] == ["WHAT NOW, 0?", "", "WHAT NOW, 2?"]
    assert not given[1].correct and len(read_answers(out)) == 3
    assert "1 of 3 replies are empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "asking", "named"),
    [
        ("n", Asking(), "of another model"),
        ("m", Asking(system="Be brief."), "to other words"),
        ("m", Asking(temperature=0.2), "with temperature 0.0"),
    ],
)
def test_another_models_file_is_refused(out: Path, model: str, asking: Asking, named: str) -> None:
    _, samples = planned(2)
    with serving(str.upper) as server:
        ask(server, samples, out)
        with pytest.raises(ValueError, match=named):
            remote_answers(ChatEndpoint(server.url, model), samples, asking, out)
        assert len(server.bodies) == 2


def test_a_broken_picture_is_named_and_what_came_is_kept(
    samples: list[Sample], tmp_path: Path, out: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(next(iter(samples[0].images.values())).read_bytes()[:200])
    bad = replace(samples[5], images=dict.fromkeys(samples[5].images, broken))
    with serving(str.upper) as server, pytest.raises(ValueError, match=r"broken\.png"):
        ask(server, [*samples[:5], bad], out, concurrency=1)
    assert len(read_answers(out)) == 5
