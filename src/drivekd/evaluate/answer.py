"""Lets a model answer the questions of a data set, and keeps every reply in a file."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from drivekd.data.progress import track
from drivekd.data.sample import Sample, picture_identities
from drivekd.data.tags import in_unit, read_tags
from drivekd.data.written import writing
from drivekd.evaluate.metrics import exact_match, match_tags, normalise, read_option
from drivekd.evaluate.reading_options import yes_no
from drivekd.models.features import FeatureCache
from drivekd.models.generate import generate
from drivekd.models.images import IMAGE_MODES, ImageMode
from drivekd.models.vlm import Vlm

#: questions answered between two writes to the file; whole frames share their visual prefix
CHUNK = 192
_TAGS = re.compile(r"<\s*[A-Za-z]+\d*\s*,[^<>]*>|<r\d+>")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to one question in one run, and whether that is right."""

    id: str
    capability: str | None
    template: str | None
    scene: str | None
    question: str
    expected: str
    reply: str
    correct: bool
    run: int = 0


@dataclass(frozen=True, slots=True)
class Mark:
    """What an answer in a file depends on, so that nothing else is continued.

    Attributes:
        run: model, image mode and longest reply, alike in all rows.
        pictures: digest of the pictures shown, by sample id.
    """

    run: Mapping[str, str | int]
    pictures: Mapping[str, str]

    def of(self, sample_id: str) -> dict[str, str | int]:
        """What a row holds beside its answer; without pictures for a sample not asked."""
        own = {"pictures": self.pictures[sample_id]} if sample_id in self.pictures else {}
        return {**self.run, **own}


def answers(
    vlm: Vlm,
    samples: Sequence[Sample],
    image_mode: ImageMode = "real",
    out: Path | None = None,
    *,
    max_new_tokens: int = 32,
) -> list[Answer]:
    """Answers every question greedily; with `out`, continues where an earlier call ended.

    Args:
        vlm: the model.
        samples: questions with their answers; ids are distinct.
        image_mode: "real", "grey" (a grey picture of the same size), or "other" (pictures of
            another scene, camera by camera).
        out: JSONL file, one row per question, in the order in which they were answered.
        max_new_tokens: longest reply [tokens].

    Returns:
        One Answer per sample, in their order.

    Raises:
        ValueError: a sample without answer, equal ids, an unknown mode, only one scene with
            "other", or a file that belongs to another model, mode, length or data set.
    """
    _check(samples, image_mode)
    other = other_scenes(samples) if image_mode == "other" else None
    mark = Mark({}, {})
    if out is not None:
        run: dict[str, str | int] = {"model": fingerprint(vlm.model), "images": image_mode}
        run["max_new_tokens"] = max_new_tokens
        mark = Mark(run, shown(samples, other or {}))
    known = _resume(out, samples, mark) if out is not None else {}
    missing = [sample for sample in samples if sample.id not in known]
    starts = range(0, len(missing), CHUNK)
    for start in track(starts, label="answering"):
        part = missing[start : start + CHUNK]
        # A cache of its own: pictures of one chunk do not come back, and memory is not endless.
        features = FeatureCache(image_mode=image_mode, other=other)
        replies = generate(vlm, part, max_new_tokens=max_new_tokens, features=features)
        new = [answer_of(sample, reply) for sample, reply in zip(part, replies, strict=True)]
        known.update({answer.id: answer for answer in new})
        if out is not None:
            _append(out, new, mark)
    return [known[sample.id] for sample in samples]


def answer_of(sample: Sample, reply: str) -> Answer:
    """Puts a reply beside what was expected."""
    expected = sample.answer or ""
    return Answer(
        id=sample.id,
        capability=sample.capability,
        template=sample.template,
        scene=sample.scene,
        question=sample.question,
        expected=expected,
        reply=reply,
        correct=is_correct(reply, expected, sample.meta.get("options")),
    )


def is_correct(reply: str, expected: str, options: Mapping[str, str] | None = None) -> bool:
    """Whether a reply is right, by the kind of the expected answer [ours].

    Multiple choice: the same option is read from both. Yes or no: the same is read. Object tags:
    all tags match one to one and the words around them are the same. Otherwise: exact match.

    Raises:
        ValueError: the expected answer is empty, or names no option of those given.
    """
    if options:
        wanted = read_option(expected, options)
        if wanted is None:
            raise ValueError(
                f"expected answer {expected!r} names none of the options {dict(options)!r};"
                " give the letter or the text of one of them"
            )
        return read_option(reply, options) == wanted
    if normalise(expected) in ("yes", "no"):
        return yes_no(reply) == normalise(expected)
    if exact_match(reply, expected):
        return True
    reply, expected = in_unit(reply, "fraction"), in_unit(expected, "fraction")
    tags = read_tags(expected)
    if not tags:
        return False
    same_words = normalise(_TAGS.sub("", reply)) == normalise(_TAGS.sub("", expected))
    return same_words and match_tags(read_tags(reply), tags).f1 == 1.0


def options_given(sample: Sample) -> dict[str, str]:
    """The options that a sample states beside its question, {} for none.

    Raises:
        ValueError: they are no letters with their texts.
    """
    options = sample.meta.get("options")
    if not options:
        return {}
    pairs = options.items() if isinstance(options, Mapping) else [("", options)]
    if not all(isinstance(word, str) for pair in pairs for word in pair):
        raise ValueError(
            f"sample {sample.id!r}: options {options!r:.60}, expected letters with their texts,"
            ' such as {"A": "red", "B": "blue"}'
        )
    try:
        read_option("", options)
    except ValueError as error:
        raise ValueError(f"sample {sample.id!r}: {error}") from None
    return dict(options)


def other_scenes(samples: Sequence[Sample]) -> dict[Path, Path]:
    """Gives every picture a stand-in: the same camera in the next scene that has it.

    Raises:
        ValueError: no other scene has that camera.
    """
    by_scene: dict[str, dict[str, Path]] = {}
    pictures: dict[Path, tuple[str, str]] = {}
    for sample in samples:
        scene = sample.scene or sample.frame or sample.id
        for camera, path in sample.images.items():
            by_scene.setdefault(scene, {}).setdefault(camera, path)
            pictures.setdefault(path, (scene, camera))
    scenes = list(by_scene)
    place = {scene: i for i, scene in enumerate(scenes)}
    return {
        path: _next(scenes[place[scene] + 1 :] + scenes[: place[scene]], by_scene, camera, scene)
        for path, (scene, camera) in pictures.items()
    }


def _next(
    scenes: Sequence[str], by_scene: Mapping[str, Mapping[str, Path]], camera: str, scene: str
) -> Path:
    for candidate in scenes:
        if camera in by_scene[candidate]:
            return by_scene[candidate][camera]
    raise ValueError(
        f"images of another scene: no scene but {scene!r} has a picture of {camera}; the control"
        " needs at least two scenes with the same cameras"
    )


def shown(samples: Sequence[Sample], other: Mapping[Path, Path]) -> dict[str, str]:
    """A digest of each sample's pictures: cameras, file names and sizes, by sample id.

    Args:
        samples: with their pictures.
        other: stand-ins, see `other_scenes`; where a picture has none, it is shown itself.
    """
    seen = {s.id: [(c, other.get(p, p)) for c, p in s.images.items()] for s in samples}
    names = picture_identities(path for pairs in seen.values() for _, path in pairs)
    digests = {}
    for name, pairs in seen.items():
        text = json.dumps([[camera, names[path]] for camera, path in pairs])
        digests[name] = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return digests


def fingerprint(model: nn.Module) -> str:
    """A short name for the weights: the same folder may hold another model tomorrow.

    Hashes every name and shape and about 4,096 evenly spaced entries of each tensor, so that a
    large model takes no longer than a small one.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in model.state_dict().items():
        entries = weight.detach().flatten()[:: max(1, weight.numel() // 4096)]
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(entries.to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()


def read_answers(path: Path) -> list[Answer]:
    """Reads what `answers` wrote; half a line at the end of an interrupted run is left out.

    Raises:
        ValueError: the file is not there or a line is no answer.
    """
    if not path.is_file():
        raise ValueError(f"answers {path}: no such file; expected what an evaluation wrote there")
    return [_answer(row, path) for row in _rows(path)]


def _check(samples: Sequence[Sample], image_mode: str) -> None:
    if image_mode not in IMAGE_MODES:
        raise ValueError(f"image_mode {image_mode!r}: expected one of {', '.join(IMAGE_MODES)}")
    unanswered = [sample.id for sample in samples if not sample.answer]
    if unanswered:
        raise ValueError(
            f"sample {unanswered[0]!r} and {len(unanswered) - 1} more have no answer to compare"
            " with; leave them out of the evaluation"
        )
    for sample in samples:
        options_given(sample)
    seen: set[str] = set()
    twice = next((s.id for s in samples if s.id in seen or seen.add(s.id)), None)  # type: ignore[func-returns-value]
    if twice is not None:
        raise ValueError(
            f"sample id {twice!r} occurs twice: replies could not be told apart; make the ids of"
            " the data set distinct"
        )


def _resume(out: Path, samples: Sequence[Sample], mark: Mark) -> dict[str, Answer]:
    """The answers a file already holds; refuses those of another mark or data set."""
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        return {}
    asked = {sample.id: sample for sample in samples}
    known: dict[str, Answer] = {}
    rows = _rows(out)
    for row in rows:
        answer = _answer(row, out)
        sample = asked.get(answer.id)
        own = mark.of(answer.id)
        differs = next((f"{key} {row.get(key)!r}" for key in own if row.get(key) != own[key]), "")
        if sample is not None and (answer.question, answer.expected) != (
            sample.question,
            sample.answer,
        ):
            differs = f"another question or answer under the id {answer.id!r}"
        if differs:
            raise ValueError(
                f"answers {out}: the file holds answers with {differs}, asked for are"
                f" {own!r}; delete it or write elsewhere"
            )
        if sample is not None:
            known[answer.id] = answer
    # An interrupted run may have left half a line, onto which nothing can be appended.
    _rewrite(out, rows)
    return known


def _rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").split("\n")
    complete = lines[:-1]  # what follows the last line break was never finished
    rows = []
    for number, line in enumerate(complete, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"answers {path}, line {number}: expected one JSON object, got {line[:60]!r}"
                f" ({error.msg}); delete the line or the file"
            ) from error
    return rows


def _answer(row: Mapping[str, Any], path: Path) -> Answer:
    fields = Answer.__dataclass_fields__
    missing = [name for name in fields if name not in row and name != "run"]
    if missing:
        raise ValueError(
            f"answers {path}: a row lacks {', '.join(missing)}; expected the fields"
            f" {', '.join(fields)}; delete the file and evaluate again"
        )
    return Answer(**{name: row[name] for name in fields if name in row})


def _append(out: Path, new: Sequence[Answer], mark: Mark) -> None:
    with writing(out), out.open("a", encoding="utf-8") as file:
        file.writelines(
            json.dumps({**asdict(answer), **mark.of(answer.id)}, ensure_ascii=False) + "\n"
            for answer in new
        )
        file.flush()
        os.fsync(file.fileno())


def _rewrite(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if text != out.read_text(encoding="utf-8"):
        fresh = out.with_suffix(out.suffix + ".new")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(out)
