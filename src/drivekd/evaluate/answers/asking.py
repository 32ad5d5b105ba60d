"""Answers of a loaded model to a data set, run by run, with every reply kept in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from drivekd.data.sample import Message, Sample
from drivekd.evaluate.answers.answer import (
    Answer,
    answer_of,
    fingerprint,
    is_correct,
    options_given,
    other_scenes,
    shown,
)
from drivekd.evaluate.answers.answer_file import Key, Mark, append, resume
from drivekd.files.progress import track
from drivekd.models.encode import placed
from drivekd.models.features import FeatureCache
from drivekd.models.generate import generate
from drivekd.models.images import IMAGE_MODES, ImageMode
from drivekd.models.sampling import Sampling
from drivekd.models.vlm import Vlm

#: questions answered between two writes to the file; whole frames share their visual prefix
CHUNK = 192


@dataclass(frozen=True, slots=True)
class Asking:
    """How questions are asked; settings that cannot be are a ValueError.

    Attributes:
        max_new_tokens: longest reply [tokens].
        temperature: 0 takes the most probable token each time, more draws it.
        top_p: draw from the fewest most probable tokens that together have this probability.
        seed: of all draws.
        runs: answers per question. At temperature 0 all runs would be alike, so there is one.
        system: takes the place of a conversation's system turn, or comes first; None leaves it.
        images: "real", "grey" and "black" (pictures of one colour and the same size), or "other"
            (pictures of another scene, camera by camera).
    """

    max_new_tokens: int = 32
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    runs: int = 1
    system: str | None = None
    images: ImageMode = "real"

    def __post_init__(self) -> None:
        if self.images not in IMAGE_MODES:
            raise ValueError(f"images {self.images!r}: expected one of {', '.join(IMAGE_MODES)}")
        for name, count in (("max_new_tokens", self.max_new_tokens), ("runs", self.runs)):
            if count < 1:
                raise ValueError(f"{name} {count}: expected at least 1")
        self.sampling(0)

    def sampling(self, run: int) -> Sampling:
        """How the tokens of a run are chosen."""
        return Sampling(self.temperature, self.top_p, self.seed, run)

    @property
    def distinct_runs(self) -> range:
        """The runs that are asked for."""
        return range(self.runs if self.temperature else 1)


def answers(
    vlm: Vlm, samples: Sequence[Sample], asking: Asking | None = None, out: Path | None = None
) -> list[Answer]:
    """The model's answers, run by run; with `out`, continues where an earlier call ended.

    Args:
        vlm: the model.
        samples: questions with their answers; ids are distinct.
        asking: how they are asked; greedily by default.
        out: JSONL file, a row per question and run, in the order in which they were answered.

    Returns:
        One Answer per sample, in their order, for run 0, then for run 1, ….

    Raises:
        ValueError: a sample without answer, equal ids, only one scene with images "other", or a
            file that belongs to another model, data set or way of asking.
    """
    asking = asking or Asking()
    questions = prepared(samples, asking)
    other = stand_ins(questions, asking)
    known: dict[Key, Answer] = {}
    mark = Mark({}, {}, {})
    if out is not None:
        mark = mark_of(identity(vlm), questions, asking)
        known = resume(out, questions, mark)
    for run, part in track(_chunks(missing(questions, asking, known)), label="answering"):
        # A cache of its own: pictures of one chunk do not come back, and memory is not endless.
        replies = generate(
            vlm,
            part,
            max_new_tokens=asking.max_new_tokens,
            features=FeatureCache(image_mode=asking.images, other=other),
            sampling=asking.sampling(run),
        )
        new = [answer_of(sample, reply, run) for sample, reply in zip(part, replies, strict=True)]
        known.update({(answer.id, run): answer for answer in new})
        if out is not None:
            append(out, new, mark)
    return in_order(questions, asking, known)


def prepared(samples: Sequence[Sample], asking: Asking) -> list[Sample]:
    """The samples as they are asked, with the system turn of the asking.

    Raises:
        ValueError: a sample without answer, or with one that nothing can be compared with, with
            options that are none, or an id twice.
    """
    unanswered = [sample.id for sample in samples if not sample.answer]
    if unanswered:
        raise ValueError(
            f"sample {unanswered[0]!r} and {len(unanswered) - 1} more have no answer to compare"
            " with; leave them out of the evaluation"
        )
    seen: set[str] = set()
    for sample in samples:
        try:
            is_correct("", sample.answer or "", options_given(sample))
        except ValueError as error:
            raise ValueError(f"sample {sample.id!r}: {error}") from None
        if sample.id in seen:
            raise ValueError(
                f"sample id {sample.id!r} occurs twice: replies could not be assigned; make the"
                " ids of the data set distinct"
            )
        seen.add(sample.id)
    return (
        list(samples)
        if asking.system is None
        else [_with_system(s, asking.system) for s in samples]
    )


def _with_system(sample: Sample, system: str) -> Sample:
    rest = (message for message in sample.messages if message.role != "system")
    return replace(sample, messages=(Message("system", system), *rest))


def stand_ins(samples: Sequence[Sample], asking: Asking) -> dict[Path, Path] | None:
    """Where images are those of other scenes, each picture to the one that takes its place."""
    return other_scenes(samples) if asking.images == "other" else None


def mark_of(model: str, questions: Sequence[Sample], asking: Asking) -> Mark:
    """Gather all that answers depend on; `model` is what distinguishes it from any other."""
    settings: dict[str, str | int | float] = {
        "model": model,
        "images": asking.images,
        "max_new_tokens": asking.max_new_tokens,
        "temperature": float(asking.temperature),
        "top_p": float(asking.top_p),
        "seed": asking.seed,
    }
    prompts = {question.id: _digest_of(placed(question)) for question in questions}
    return Mark(settings, shown(questions, stand_ins(questions, asking) or {}), prompts)


def _digest_of(turns: Sequence[Message]) -> str:
    text = json.dumps([[turn.role, turn.content] for turn in turns])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def identity(vlm: Vlm) -> str:
    """A short name for all of a model that its replies depend on besides the conversation.

    Weights and their type, chat template, end tokens, and what its image processor does: the same
    folder may hold another model tomorrow.
    """
    parts = (
        fingerprint(vlm.model),
        str(vlm.model.dtype),
        str(vlm.tokenizer.chat_template),
        vlm.model.generation_config.eos_token_id,
        vlm.image_processor.to_dict(),
    )
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def missing(
    questions: Sequence[Sample], asking: Asking, known: Mapping[Key, Answer]
) -> list[tuple[int, Sample]]:
    """Run and question of all answers that are not known, run by run."""
    runs = asking.distinct_runs
    return [(run, q) for run in runs for q in questions if (q.id, run) not in known]


def in_order(
    questions: Sequence[Sample], asking: Asking, known: Mapping[Key, Answer]
) -> list[Answer]:
    """The known answers, run by run, in the order of the questions."""
    return [known[q.id, run] for run in asking.distinct_runs for q in questions]


def _chunks(questions: Sequence[tuple[int, Sample]]) -> list[tuple[int, list[Sample]]]:
    """The questions in parts of one run each."""
    parts = []
    for run, group in groupby(questions, key=itemgetter(0)):
        samples = [sample for _, sample in group]
        parts += [(run, samples[start : start + CHUNK]) for start in range(0, len(samples), CHUNK)]
    return parts
