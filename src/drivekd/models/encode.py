"""Samples to token ids with labels, by the model's own chat template."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from jinja2 import TemplateError
from numpy.typing import NDArray
from torch import Tensor

from drivekd.data.sample import IMAGE_PLACEHOLDER, Message, Sample
from drivekd.models.images import token_grid
from drivekd.models.vlm import Vlm

#: Label of a position that is not supervised (what `torch.nn.functional.cross_entropy` ignores).
IGNORE = -100

Grids = tuple[tuple[int, int], ...]
"""Rows and columns of visual tokens of each image."""

#: Samples that the tokenizer sees in one call.
AT_ONCE = 256

#: Texts up to the last image that are remembered; usually all samples have a few of them.
KEPT = 1024


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sample as token ids.

    Attributes:
        input_ids: the whole conversation.
        labels: the token itself where it is supervised, `IGNORE` elsewhere. Supervised are the
            last answer and its end-of-turn token; not the role header, not the line break behind
            the turn, not earlier answers [ours].
        is_image: True at visual tokens.
        prefix: number of leading tokens, up to and including the closing token of the last image;
            samples that agree in them can share them. 0 without images.
        images: files in the order of their tokens.
        grids: rows and columns of visual tokens of each image.
        sample: where it came from.
    """

    input_ids: Int[Tensor, " n"]
    labels: Int[Tensor, " n"]
    is_image: Bool[Tensor, " n"]
    prefix: int
    images: tuple[Path, ...]
    grids: Grids
    sample: Sample


def encode(vlm: Vlm, sample: Sample, *, add_answer: bool = True) -> Encoded:
    """Tokenise one conversation, see `encode_all`."""
    return next(encode_all(vlm, [sample], add_answer=add_answer))


def encode_all(
    vlm: Vlm, samples: Sequence[Sample], *, add_answer: bool = True
) -> Iterator[Encoded]:
    """Tokenise conversations for training, or up to the answer for generation.

    The prompt (with the answer's role header), the answer and what closes the turn are tokenised
    separately and joined. This equals `apply_chat_template(tokenize=True)` exactly unless the
    answer begins with white space, where a token could reach over the border; separately it is
    what generation sees. Of several turns only the last answer is supervised.

    Args:
        vlm: whose tokenizer and template are used.
        samples: `<image>` in user turns is replaced by that image's tokens; without any
            placeholder the images are put in front of the first user turn.
        add_answer: include the last assistant turn; False ends behind its role header.

    Raises:
        ValueError: naming the sample: placeholders that do not match the images, no answer to
            train on, special image tokens in the text, or a template that rewrites answers or
            takes no system turn.
    """
    splits = _splits_behind_images(vlm)
    memory = _Memory(splits)
    for start in range(0, len(samples), AT_ONCE):
        memory = memory if len(memory.heads) < KEPT else _Memory(splits)
        yield from _encoded(vlm, samples[start : start + AT_ONCE], memory, add_answer)


@dataclass(frozen=True)
class _Memory:
    """What many samples have in common.

    Attributes:
        splits: the closing token of an image may cut a text in two that are tokenised apart.
        tokens: of texts up to the last image; None where the two parts of the text would be other
            tokens than the text.
        heads: the same with a token for each visual one, by the grids of the images.
        grids: by image.
    """

    splits: bool
    tokens: dict[str, list[int] | None] = field(default_factory=dict)
    heads: dict[tuple[str, Grids], NDArray[np.int64]] = field(default_factory=dict)
    grids: dict[Path, tuple[int, int]] = field(default_factory=dict)


def _encoded(
    vlm: Vlm, samples: Sequence[Sample], memory: _Memory, add_answer: bool
) -> Iterator[Encoded]:
    """Tokenise some samples at once: a call of the tokenizer costs more than a sentence."""
    turns = [_turns(vlm, sample, add_answer) for sample in samples]
    prompts = _render(vlm, turns, header=True)
    answers = [sample.answer or "" if add_answer else "" for sample in samples]
    closings = _closings(vlm, samples, turns, prompts) if add_answer else answers
    places = [_place(vlm, prompt, memory) for prompt in prompts]
    cut = [(p[:place], p[place:]) for p, place in zip(prompts, places, strict=True)]
    tokens = _tokens(vlm, [*(tail for _, tail in cut), *answers, *closings])
    for sample, (head, tail), *ends in zip(samples, cut, answers, closings, strict=True):
        yield _joined(vlm, memory, sample, (head, tokens[tail]), [tokens[end] for end in ends])


def _joined(
    vlm: Vlm,
    memory: _Memory,
    sample: Sample,
    prompt: tuple[str, list[int]],
    ends: Sequence[list[int]],
) -> Encoded:
    """Put a sample's tokens together.

    Args:
        vlm: the model.
        memory: receives what is new.
        sample: the sample.
        prompt: its text up to the last image, and the tokens behind it.
        ends: tokens of the answer, and of what closes the turn.
    """
    (head, tail), (answer, closing) = prompt, ends
    images = tuple(sample.images.values())
    for path in images:
        if path not in memory.grids:
            memory.grids[path] = token_grid(vlm, path)
    grids = tuple(memory.grids[path] for path in images)
    if not head:
        start, tail = _expanded(vlm, tail, grids, sample), []
    elif (head, grids) in memory.heads:
        start = memory.heads[head, grids]
    else:
        known = memory.tokens[head] or []
        start = memory.heads[head, grids] = _expanded(vlm, known, grids, sample)
    if vlm.image_token_id in tail:
        raise _image_token_in_text(vlm, sample)
    input_ids = np.concatenate([start, np.array([*tail, *answer, *closing], dtype=np.int64)])
    supervised = slice(len(start) + len(tail), len(start) + len(tail) + len(answer + closing[:1]))
    labels = np.full_like(input_ids, IGNORE)
    labels[supervised] = input_ids[supervised]
    is_image = input_ids == vlm.image_token_id
    prefix = int(is_image.nonzero()[0][-1]) + 2 if images else 0
    ids, targets, where = (torch.from_numpy(each) for each in (input_ids, labels, is_image))
    return Encoded(ids, targets, where, prefix, images, grids, sample)


def placed(sample: Sample) -> list[Message]:
    """The prompt's turns with a placeholder for every image, in front where there was none.

    Raises:
        ValueError: naming the sample: placeholders that do not match the images, or no user turn.
    """
    wanted = len(sample.images)
    found = sum(m.content.count(IMAGE_PLACEHOLDER) for m in sample.prompt if m.role == "user")
    turns = list(sample.prompt)
    if found == 0 and wanted:
        asked = next((i for i, m in enumerate(turns) if m.role == "user"), None)
        if asked is None:
            raise ValueError(f"sample {sample.id!r} ({sample.source}) has images but no user turn")
        front = f"{IMAGE_PLACEHOLDER}\n" * wanted
        turns[asked] = Message("user", front + turns[asked].content)
    elif found != wanted:
        raise ValueError(
            f"sample {sample.id!r} ({sample.source}) has {found} {IMAGE_PLACEHOLDER} placeholders "
            f"in its user turns but {wanted} images; expected one placeholder per image, or none"
        )
    return turns


def _turns(vlm: Vlm, sample: Sample, add_answer: bool) -> list[dict[str, str]]:
    """Make the prompt's turns with one framed image token for every placeholder."""
    if add_answer and sample.answer is None:
        raise ValueError(
            f"sample {sample.id!r} ({sample.source}) has no answer to train on; expected its last "
            "message to be the assistant's"
        )
    family, turns = vlm.family, []
    framed = family.image_start + family.image_token + family.image_end
    for turn in placed(sample):
        by_user = turn.role == "user"
        text = turn.content.replace(IMAGE_PLACEHOLDER, framed) if by_user else turn.content
        turns.append({"role": turn.role, "content": text})
    return turns


def _render(vlm: Vlm, several: Sequence[list[dict[str, str]]], *, header: bool) -> list[str]:
    conversations: Any = list(several)
    try:
        texts = vlm.tokenizer.apply_chat_template(
            conversations, tokenize=False, add_generation_prompt=header
        )
        return [str(text) for text in texts]
    except TemplateError as error:
        if len(several) > 1:  # which one?
            return [_render(vlm, [turns], header=header)[0] for turns in several]
        roles = ", ".join(turn["role"] for turn in several[0])
        raise ValueError(
            f"the chat template of {vlm.source!r} takes no turns of {roles} in this order "
            f"({error}); leave out the system turn, or use a template that takes it"
        ) from error


def _closings(
    vlm: Vlm,
    samples: Sequence[Sample],
    turns: Sequence[list[dict[str, str]]],
    prompts: Sequence[str],
) -> list[str]:
    """Find the text behind the answers: the end of the turn, then what the template adds."""
    answers = [sample.answer or "" for sample in samples]
    last = [{"role": "assistant", "content": answer} for answer in answers]
    texts = _render(vlm, [[*t, turn] for t, turn in zip(turns, last, strict=True)], header=False)
    closings = []
    for sample, text, prompt, answer in zip(samples, texts, prompts, answers, strict=True):
        if not text.startswith(prompt + answer):
            raise ValueError(
                f"sample {sample.id!r} ({sample.source}): the chat template of {vlm.source!r} does "
                f"not repeat the answer {answer!r} as it is behind the role header; strip white "
                "space around answers, or use a template that keeps them"
            )
        closings.append(text[len(prompt + answer) :])
    if not all(closings):
        raise ValueError(f"the chat template of {vlm.source!r} does not close the assistant's turn")
    return closings


def _tokens(vlm: Vlm, texts: Iterable[str]) -> dict[str, list[int]]:
    """Tokenise texts, equal ones once; an empty one has no token, whatever a tokenizer says."""
    distinct = [text for text in dict.fromkeys(texts) if text]
    words = vlm.tokenizer.backend_tokenizer
    words.no_padding()
    words.no_truncation()
    encodings = words.encode_batch_fast(distinct, add_special_tokens=False)
    return {"": [], **{text: e.ids for text, e in zip(distinct, encodings, strict=True)}}


def _splits_behind_images(vlm: Vlm) -> bool:
    """Tell whether a tokenizer takes the closing token of an image out of a text, and no more."""
    added = {str(token): token for token in vlm.tokenizer.added_tokens_decoder.values()}
    end = added.get(vlm.family.image_end)
    return end is not None and not (end.rstrip or end.single_word or end.normalized)


def _place(vlm: Vlm, prompt: str, memory: _Memory) -> int:
    """Find the place behind the last image where a text can be cut; 0: it cannot."""
    before, end, tail = prompt.rpartition(vlm.family.image_token + vlm.family.image_end)
    head = before + end
    if not end or not memory.splits:
        return 0
    if head not in memory.tokens:
        ids = _tokens(vlm, [head, tail, prompt])
        memory.tokens[head] = ids[head] if ids[head] + ids[tail] == ids[prompt] else None
    return 0 if memory.tokens[head] is None else len(head)


def _expanded(vlm: Vlm, ids: Sequence[int], grids: Grids, sample: Sample) -> NDArray[np.int64]:
    """Repeat the k-th image token once per visual token of image k."""
    tokens = np.array(ids, dtype=np.int64)
    places = tokens == vlm.image_token_id
    if places.sum() != len(grids):
        raise _image_token_in_text(vlm, sample)
    counts = np.ones_like(tokens)
    counts[places] = [rows * columns for rows, columns in grids]
    return tokens.repeat(counts)


def _image_token_in_text(vlm: Vlm, sample: Sample) -> ValueError:
    return ValueError(
        f"sample {sample.id!r} ({sample.source}): its text contains the image token "
        f"{vlm.family.image_token!r}; expected images to be marked by {IMAGE_PLACEHOLDER}"
    )
