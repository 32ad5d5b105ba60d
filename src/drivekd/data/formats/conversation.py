"""Turns with `<image>` placeholders: Drive-KD's `messages` and LLaVA's `conversations`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from drivekd.data.cameras import capability_of
from drivekd.data.formats.rows import Row, RowError, need, optional_text, shown
from drivekd.data.kinds import template_of
from drivekd.data.paths import camera_of, refuse_too_many, resolve
from drivekd.data.sample import IMAGE_PLACEHOLDER, Message, Role, Sample

_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
_IMAGE_PARTS = ("image", "image_url")
#: other wordings that a row may have
_WORDINGS = 64
_OURS = {
    "id", "messages", "conversations", "images", "image", "cameras", "question_type",
    "capability", "template", "scene", "frame", "meta", "system", "paraphrases",
}  # fmt: skip


def drivekd(row: Row) -> Sample:
    """Read a row of `messages`, `images` and `question_type`, as the world writes them too.

    A question type of DriveLM or DriveBench is mapped to its capability, any other stays: the
    recipe names capabilities, not this reader. `question` and `answer` may take the place of
    `messages`, as in the authors' loader [release].
    """
    if "messages" not in row.value and "question" in row.value:
        rest = {k: v for k, v in row.value.items() if k not in ("question", "answer")}
        return _sample(replace(row, value=rest), _question_and_answer(row))
    turns = need(row, "messages", list, "a list of {role, content}")
    return _sample(row, tuple([_message(row, turn, "role", "content") for turn in turns]))


def _question_and_answer(row: Row) -> tuple[Message, ...]:
    question = Message("user", need(row, "question", str, "text"))
    answer = optional_text(row, "answer")
    return (question,) if answer is None else (question, Message("assistant", answer))


def sharegpt(row: Row) -> Sample:
    """Read a row of `conversations` with `image` or `images`, as ShareGPT and LLaVA write them."""
    turns = need(row, "conversations", list, "a list of {from, value}")
    return _sample(row, tuple([_message(row, turn, "from", "value") for turn in turns]))


def _message(row: Row, turn: Any, role_key: str, text_key: str) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(f"{row.where}: a turn must be {{{role_key}, {text_key}}}, got {shown(turn)}")
    said = turn.get(role_key)
    role = _ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        raise RowError(
            f"{row.where}: `{role_key}` of a turn must be one of {', '.join(_ROLES)}, got "
            f"{shown(said)}"
        )
    return Message(role, _text(row, turn.get(text_key), text_key))


def _text(row: Row, value: Any, key: str) -> str:
    """Join the text of a turn from its parts (`{type: image}`, `{type: text, text}`)."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, Mapping) for part in value):
        return "".join(
            IMAGE_PLACEHOLDER if part.get("type") in _IMAGE_PARTS else _part(row, part, key)
            for part in value
        )
    raise RowError(f"{row.where}: `{key}` of a turn must be text, got {shown(value)}")


def _part(row: Row, part: Mapping[str, Any], key: str) -> str:
    if isinstance(text := part.get("text"), str):
        return text
    raise RowError(f"{row.where}: a part of `{key}` must hold `text`, got {shown(part)}")


def _sample(row: Row, messages: tuple[Message, ...]) -> Sample:
    questions = [message.content for message in messages if message.role == "user"]
    if not questions:
        raise RowError(f"{row.where}: no user turn, so no question")
    if (system := optional_text(row, "system")) and messages[0].role != "system":
        messages = (Message("system", system), *messages)
    texts = _image_texts(row)
    places = sum([text.count(IMAGE_PLACEHOLDER) for text in questions])
    if places != len(texts):
        raise RowError(
            f"{row.where}: {places} {IMAGE_PLACEHOLDER} in the user turns but {len(texts)} images; "
            "write one placeholder per image, where it belongs",
            "placeholders",
        )
    question_type = optional_text(row, "question_type") or ""
    kind = (optional_text(row, "capability") or "").strip() or question_type.strip()
    meta = row.value.get("meta") or {}
    meta = meta if isinstance(meta, Mapping) else {"meta": meta}
    rest = {key: value for key, value in row.value.items() if key not in _OURS}
    return Sample(
        id=optional_text(row, "id") or row.number,
        messages=messages,
        images=_images(row, texts),
        capability=capability_of(kind) or (kind if kind not in ("", "robust_qas") else None),
        template=optional_text(row, "template") or template_of(questions[-1]),
        scene=optional_text(row, "scene"),
        frame=optional_text(row, "frame"),
        paraphrases=_paraphrases(row, questions[-1]),
        source=row.where,
        meta={**rest, "question_type": question_type or kind or None, **meta},
    )


def _paraphrases(row: Row, question: str) -> tuple[str, ...]:
    """Read other wordings of the text behind the last image of the last user turn."""
    texts = row.value.get("paraphrases")
    if texts is None:
        return ()
    if not isinstance(texts, list) or not all(map(_is_wording, texts)) or len(texts) > _WORDINGS:
        raise RowError(
            f"{row.where}: `paraphrases` must be a list of at most {_WORDINGS} questions in words, "
            f"without {IMAGE_PLACEHOLDER}, got {shown(texts)}"
        )
    if texts and not question.rpartition(IMAGE_PLACEHOLDER)[2].strip():
        raise RowError(
            f"{row.where}: `paraphrases` take the place of the text behind the last "
            f"{IMAGE_PLACEHOLDER}, but there is none: put the question there"
        )
    return tuple(texts)


def _is_wording(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip()) and IMAGE_PLACEHOLDER not in text


def _image_texts(row: Row) -> list[str | Path]:
    """Return the row's paths as they are; a `Path` is a file that hub.py has made."""
    value = row.value.get("images", row.value.get("image"))
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, (str, Path)) for text in texts):
        raise RowError(f"{row.where}: `images` must be a list of paths, got {shown(value)}")
    refuse_too_many(len(texts), row.where)
    return texts


def _images(row: Row, texts: list[str | Path]) -> dict[str, Path]:
    """Map camera names, where every image has another, else image_0, image_1, …, to files."""
    cameras = row.value.get("cameras")
    if cameras is not None and (not isinstance(cameras, list) or len(cameras) != len(texts)):
        raise RowError(f"{row.where}: `cameras` must name each of the {len(texts)} images")
    # the name of a file that hub.py made says nothing of what it shows
    paths = [None if isinstance(text, Path) else camera_of(text) for text in texts]
    names = [str(camera) for camera in cameras] if cameras else paths
    if None in names or len(set(names)) < len(names):
        names = [f"image_{number}" for number in range(len(texts))]
    files = (t if isinstance(t, Path) else resolve(t, row.folder, row.where) for t in texts)
    return {str(name): file for name, file in zip(names, files, strict=True)}
