"""Answers of a model beside what was expected, and what it was shown."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from drivekd.data.options import options_of
from drivekd.data.sample import Sample
from drivekd.data.tags import in_unit, read_tags
from drivekd.evaluate.reading.metrics import exact_match, match_tags, normalise, read_option
from drivekd.evaluate.reading.options import yes_no
from drivekd.files.identity import identities

_TAGS = re.compile(r"<\s*[A-Za-z]+\d*\s*,[^<>]*>|<r\d+>")


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's reply to one question in one run, and whether it is right."""

    id: str
    capability: str | None
    template: str | None
    scene: str | None
    question: str
    expected: str
    reply: str
    correct: bool
    run: int = 0


def answer_of(sample: Sample, reply: str, run: int = 0) -> Answer:
    """Put a reply beside what was expected."""
    expected = sample.answer or ""
    return Answer(
        id=sample.id,
        capability=sample.capability,
        template=sample.template,
        scene=sample.scene,
        question=sample.question,
        expected=expected,
        reply=reply,
        correct=is_correct(reply, expected, options_given(sample)),
        run=run,
    )


def is_correct(reply: str, expected: str, options: Mapping[str, str] | None = None) -> bool:
    """Whether a reply is right, by the kind of the expected answer [ours].

    Multiple choice: the same option is read from both. Yes or no: the same is read. Object tags:
    all tags match one to one and the words around them are the same. Otherwise: exact match.

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
    """Return the options that a sample states beside its question or in it, {} for none.

    Those in a question (`A. Going ahead. B. Turn left.`) count where their letters differ and the
    answer takes one of them: other questions may have such letters, too.

    ValueError: those beside it are no letters with their texts.
    """
    options = sample.meta.get("options")
    if not options:
        listed = options_of(sample.question)
        offered = dict(listed)
        fits = 0 < len(offered) == len(listed) and read_option(sample.answer or "", offered)
        return offered if fits else {}
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
    """Give every picture a stand-in: the same camera in the next scene that has it.

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
    """Digest each sample's pictures, cameras and bytes, by sample id.

    Args:
        samples: with their pictures.
        other: stand-ins, see `other_scenes`; where a picture has none, it is shown itself.
    """
    seen = {s.id: [(c, other.get(p, p)) for c, p in s.images.items()] for s in samples}
    names = identities(path for pairs in seen.values() for _, path in pairs)
    digests = {}
    for name, pairs in seen.items():
        text = json.dumps([[camera, names[path]] for camera, path in pairs])
        digests[name] = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return digests


def fingerprint(model: nn.Module) -> str:
    """Name the weights shortly: the same folder may hold another model tomorrow.

    Hashes every name and shape and about 4,096 evenly spaced entries of each tensor, so that a
    large model takes no longer than a small one.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in model.state_dict().items():
        entries = weight.detach().flatten()[:: max(1, weight.numel() // 4096)]
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(entries.to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()
