"""Answers of a model on an OpenAI-compatible server: vLLM, SGLang, `transformers serve`.

    from drivekd.evaluate.answers.remote import remote_answers
    endpoint = ChatEndpoint("http://127.0.0.1:8000/v1", "OpenGVLab/InternVL3-8B-hf")
    given = remote_answers(endpoint, samples, Asking(max_new_tokens=512), Path("answers.jsonl"))

Pictures travel inside the requests, in base64.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from drivekd.data.pictures import read_image
from drivekd.data.sample import IMAGE_PLACEHOLDER, Message, Sample
from drivekd.evaluate.answers.answer import Answer, answer_of
from drivekd.evaluate.answers.answer_file import Key, Mark, append, resume
from drivekd.evaluate.answers.asking import Asking, in_order, mark_of, missing, prepared, stand_ins
from drivekd.evaluate.chat import ChatEndpoint, ChatError, ChatReply, together
from drivekd.files.progress import tell, track
from drivekd.models.encode import placed
from drivekd.models.images import PLAIN, ImageMode, image_size, stand_in_of

#: answers between two writes to the file: no more are lost with a process that is killed
GROUP = 8
#: questions in a row without an answer, after which no more are asked
PATIENCE = 32
#: what a server is sent as it is
_SENT = {"JPEG": "image/jpeg", "PNG": "image/png"}
_ORIENTATION = 0x0112

Other = Mapping[Path, Path] | None


@dataclass(slots=True)
class _Session:
    """One call's questions on their way to answers.

    Attributes:
        fresh: answers that are not in the file yet.
        failed: questions without an answer, and why, in the order in which they failed.
        in_a_row: how many failed since the last answer.
    """

    endpoint: ChatEndpoint
    asking: Asking
    other: Other
    mark: Mark
    out: Path
    known: dict[Key, Answer]
    fresh: list[Answer] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    in_a_row: int = 0

    def keep(self, answer: Answer) -> None:
        self.in_a_row = 0
        self.known[answer.id, answer.run] = answer
        self.fresh.append(answer)
        if len(self.fresh) >= GROUP:
            self.write()

    def write(self) -> None:
        append(self.out, self.fresh, self.mark)
        self.fresh = []


def remote_answers(
    endpoint: ChatEndpoint, samples: Sequence[Sample], asking: Asking, out: Path
) -> list[Answer]:
    """A served model's answers, run by run; continues where an earlier call ended.

    In the file the model is its name and address, for weights behind a server cannot be seen: who
    serves other weights under the same name writes to another file. An empty reply is an answer.
    Each request carries a seed of its own, see `Sampling.seed_of`; a server may ignore it.

    See `asking.answers` for arguments and result; rows of `out` come in order of arrival.

    Raises:
        ValueError: as of `asking.answers`, or a picture that cannot be read.
        ChatError: the server refuses everybody (key, payment, address).
        RuntimeError: some questions got no answer. In all cases answers that came are kept.
    """
    questions = prepared(samples, asking)
    mark = mark_of(f"{endpoint.model} at {endpoint.url}", questions, asking)
    known = resume(out, questions, mark)
    open_questions = missing(questions, asking, known)
    other = stand_ins(questions, asking)
    session = _Session(endpoint, asking, other, mark, out, known)
    if open_questions:  # a complete file needs neither server nor key
        try:
            total = len(asking.distinct_runs) * len(questions)
            asyncio.run(_ask_all(open_questions, session, total))
        finally:
            session.write()
    if lost := missing(questions, asking, known):
        name, why = session.failed[0]
        raise RuntimeError(
            f"{len(lost)} of {len(open_questions)} questions have no answer, first {name!r}: {why};"
            " the answers that came are kept, and the same command asks for the others again"
        )
    given = in_order(questions, asking, known)
    if empty := sum(not answer.reply.strip() for answer in given):
        tell(f"{empty} of {len(given)} replies are empty; they count as wrong answers")
    return given


async def _ask_all(questions: Sequence[tuple[int, Sample]], session: _Session, total: int) -> None:
    """Workers take turns; the first error that concerns the endpoint stops them all."""

    def status() -> str:
        return f"{len(session.failed)} without answer" if session.failed else ""

    before = total - len(questions)
    queue = iter(track(questions, total, "answering", status, before))

    async def work(queue: Iterator[tuple[int, Sample]]) -> None:
        for run, sample in queue:
            await _ask(run, sample, session)
            if session.in_a_row >= PATIENCE:
                return

    async with session.endpoint:
        await together(work(queue) for _ in range(session.endpoint.concurrency))


async def _ask(run: int, sample: Sample, session: _Session) -> None:
    """Ask one question and keep its answer, or the reason why it has none."""
    asking = session.asking
    # In a thread: reading pictures takes longer than a server may wait for its next request.
    sent = await asyncio.to_thread(messages, sample, asking.images, session.other)
    try:
        reply: ChatReply = await session.endpoint.complete(
            sent,
            empty=True,
            temperature=asking.temperature,
            top_p=asking.top_p,
            max_tokens=asking.max_new_tokens,
            seed=asking.sampling(run).seed_of(sample.id),
        )
    except ChatError as error:
        if error.kind == "endpoint":
            raise
        session.failed.append((sample.id, str(error)))
        session.in_a_row += 1
        return
    session.keep(answer_of(sample, reply.text, run))


def messages(
    sample: Sample, image_mode: ImageMode = "real", other: Other = None
) -> list[dict[str, Any]]:
    """The prompt's turns as the chat protocol has them, with each image in its place.

    Raises:
        ValueError: placeholders that do not match the images, or a picture that cannot be read.
    """
    pictures = iter(sample.images.values())
    return [
        {"role": turn.role, "content": _content(turn, pictures, image_mode, other)}
        for turn in placed(sample)
    ]


def _content(
    turn: Message, pictures: Iterator[Path], image_mode: ImageMode, other: Other
) -> str | list[dict[str, Any]]:
    """The text, or parts of text and images in their order."""
    texts = turn.content.split(IMAGE_PLACEHOLDER) if turn.role == "user" else [turn.content]
    if len(texts) == 1:
        return turn.content
    parts: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        if number:
            url = _url(next(pictures), image_mode, other)
            parts.append({"type": "image_url", "image_url": {"url": url}})
        if text:
            parts.append({"type": "text", "text": text})
    return parts


def _url(path: Path, image_mode: ImageMode, other: Other) -> str:
    """What is shown of a picture, as a data URL."""
    if image_mode in PLAIN:
        return _plain_url(image_mode, image_size(path))
    shown = path if image_mode == "real" else stand_in_of(path, image_mode, other)
    return _file_url(shown, shown.stat().st_mtime_ns, image_size(path))


@lru_cache(maxsize=16)
def _plain_url(image_mode: ImageMode, size: tuple[int, int]) -> str:
    return _png_url(Image.new("RGB", size, PLAIN[image_mode]))


@lru_cache(maxsize=64)  # the questions of a frame follow each other
def _file_url(path: Path, modified: int, size: tuple[int, int]) -> str:
    """A picture at a size: the file's own bytes where any server reads them as we do, else a PNG.

    Raises:
        ValueError: it cannot be read.
    """
    del modified  # part of the key only: a file written anew is read anew
    picture = read_image(path)
    with Image.open(path) as image:
        kind = _SENT.get(image.format or "")
        plain = image.mode in ("RGB", "L") and image.getexif().get(_ORIENTATION, 1) == 1
    if kind is not None and plain and picture.size == size:
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    return _png_url(picture if picture.size == size else picture.resize(size))


def _png_url(picture: Image.Image) -> str:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
