"""Samples to token ids with labels, by the model's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from jinja2 import TemplateError
from torch import Tensor

from drivekd.data.sample import IMAGE_PLACEHOLDER, Message, Sample
from drivekd.models.images import token_grid
from drivekd.models.vlm import Vlm

#: Label of a position that is not supervised (what `torch.nn.functional.cross_entropy` ignores).
IGNORE = -100


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
    grids: tuple[tuple[int, int], ...]
    sample: Sample


def encode(vlm: Vlm, sample: Sample, *, add_answer: bool = True) -> Encoded:
    """Tokenise a conversation for training, or up to the answer for generation.

    The prompt (with the answer's role header), the answer and what closes the turn are tokenised
    separately and joined. This equals `apply_chat_template(tokenize=True)` exactly unless the
    answer begins with white space, where a token could reach over the border; separately it is
    what generation sees. Of several turns only the last answer is supervised.

    Args:
        vlm: whose tokenizer and template are used.
        sample: `<image>` in user turns is replaced by that image's tokens; without any
            placeholder the images are put in front of the first user turn.
        add_answer: include the last assistant turn; False ends behind its role header.

    Raises:
        ValueError: naming the sample: placeholders that do not match the images, no answer to
            train on, special image tokens in the text, or a template that rewrites answers or
            takes no system turn.
    """
    if add_answer and sample.answer is None:
        raise ValueError(
            f"sample {sample.id!r} ({sample.source}) has no answer to train on; expected its last "
            "message to be the assistant's"
        )
    images = tuple(sample.images.values())
    grids = tuple(token_grid(vlm, path) for path in images)
    turns = [_framed(vlm, turn) for turn in placed(sample)]
    prompt = _render(vlm, turns, header=True)
    ids = _expand(vlm, _tokens(vlm, prompt), grids, sample)
    labels = [IGNORE] * len(ids)
    if add_answer:
        answer = sample.answer or ""
        closing = _closing(vlm, sample, turns, prompt)
        supervised = _tokens(vlm, answer) + closing[:1]
        ids = ids + supervised + closing[1:]
        labels += supervised + [IGNORE] * len(closing[1:])
    input_ids = torch.tensor(ids)
    is_image = input_ids == vlm.image_token_id
    prefix = int(is_image.nonzero()[-1]) + 2 if images else 0
    return Encoded(input_ids, torch.tensor(labels), is_image, prefix, images, grids, sample)


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


def _framed(vlm: Vlm, turn: Message) -> dict[str, str]:
    """A turn with one framed image token for every placeholder."""
    family = vlm.family
    framed = family.image_start + family.image_token + family.image_end
    asked = turn.role == "user"
    text = turn.content.replace(IMAGE_PLACEHOLDER, framed) if asked else turn.content
    return {"role": turn.role, "content": text}


def _render(vlm: Vlm, turns: list[dict[str, str]], *, header: bool) -> str:
    try:
        text = vlm.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=header
        )
    except TemplateError as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise ValueError(
            f"the chat template of {vlm.source!r} takes no turns of {roles} in this order "
            f"({error}); leave out the system turn, or use a template that takes it"
        ) from error
    assert isinstance(text, str)
    return text


def _tokens(vlm: Vlm, text: str) -> list[int]:
    return list(vlm.tokenizer(text, add_special_tokens=False).input_ids) if text else []


def _expand(
    vlm: Vlm, ids: Sequence[int], grids: Sequence[tuple[int, int]], sample: Sample
) -> list[int]:
    """Repeat the k-th image token once per visual token of image k."""
    image = vlm.image_token_id
    if sum(token == image for token in ids) != len(grids):
        raise ValueError(
            f"sample {sample.id!r} ({sample.source}): its text contains the image token "
            f"{vlm.family.image_token!r}; expected images to be marked by {IMAGE_PLACEHOLDER}"
        )
    sizes = iter(grids)
    expanded: list[int] = []
    for token in ids:
        rows, columns = next(sizes) if token == image else (1, 1)
        expanded += [token] * (rows * columns)
    return expanded


def _closing(vlm: Vlm, sample: Sample, turns: list[dict[str, str]], prompt: str) -> list[int]:
    """Tokens behind the answer: the end of the turn, then whatever the template puts after it."""
    answer = sample.answer or ""
    whole = _render(vlm, [*turns, {"role": "assistant", "content": answer}], header=False)
    if not whole.startswith(prompt + answer):
        raise ValueError(
            f"sample {sample.id!r} ({sample.source}): the chat template of {vlm.source!r} does not "
            f"repeat the answer {answer!r} as it stands behind the role header; strip white space "
            "around answers, or use a template that keeps them"
        )
    closing = _tokens(vlm, whole[len(prompt + answer) :])
    if not closing:
        raise ValueError(f"the chat template of {vlm.source!r} does not close the assistant's turn")
    return closing
