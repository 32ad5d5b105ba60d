"""Answers, the greedy ones equal token for token to `model.generate`, with one prefix per scene.

Questions about the same images share the cached keys and values of those images: the prefix runs
once, its cache is repeated, the questions follow padded on the right with explicit positions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from drivekd.data.sample import Sample
from drivekd.models import crossed
from drivekd.models.batch import embed, group, prefix_positions, shared
from drivekd.models.encode import Encoded, encode_all
from drivekd.models.features import FeatureCache
from drivekd.models.rows import Rows, axes, decode, end_tokens, follow
from drivekd.models.sampling import GREEDY, Choice, Sampling, choice
from drivekd.models.vlm import Vlm


def generate(
    vlm: Vlm,
    samples: Sequence[Sample],
    *,
    max_new_tokens: int = 32,
    features: FeatureCache | None = None,
    batch_size: int = 32,
    sampling: Sampling = GREEDY,
) -> list[str]:
    """Answer each sample; an answer that the sample may already hold is not read.

    Args:
        vlm: the model; it generates in evaluation mode and is left in the mode it had.
        samples: questions; those with the same images and the same text before the end of the
            last image share that part's computation, wherever they stand in the list.
        max_new_tokens: upper bound on the answer's length [tokens].
        features: take visual tokens from this cache.
        batch_size: most questions that run side by side, each with a copy of the cached prefix.
        sampling: how tokens are chosen; draws belong to the sample's id, not to its place.

    Returns:
        One text per sample, in order, without special tokens.

    Raises:
        ValueError: for counts below one, or a sample that cannot be encoded.
    """
    tokens = generate_ids(
        vlm,
        samples,
        max_new_tokens=max_new_tokens,
        features=features,
        batch_size=batch_size,
        sampling=sampling,
    )
    return [str(vlm.tokenizer.decode(ids, skip_special_tokens=True)) for ids in tokens]


def generate_ids(
    vlm: Vlm,
    samples: Sequence[Sample],
    *,
    max_new_tokens: int = 32,
    features: FeatureCache | None = None,
    batch_size: int = 32,
    sampling: Sampling = GREEDY,
) -> list[list[int]]:
    """What `generate` decodes: new token ids per sample, the end-of-turn token included."""
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"generate: {name} is {value}, expected at least 1")
    encoded = list(encode_all(vlm, samples, add_answer=False))
    if vlm.family.crossed:
        shown = features or FeatureCache()
        with evaluating(vlm.model):
            return [
                crossed.continuation(
                    vlm, each, shown.image_mode, shown.other, max_new_tokens, sampling
                )
                for each in encoded
            ]
    answers: list[list[int]] = [[] for _ in samples]
    with torch.no_grad(), evaluating(vlm.model):
        for row in group([shared(each) for each in encoded]):
            prefix = _run_prefix(vlm, encoded[row[0]], features)
            for start in range(0, len(row), batch_size):
                part = row[start : start + batch_size]
                last = start + batch_size >= len(row)
                cache = prefix.cache if last else copy.deepcopy(prefix.cache)
                questions = [encoded[i].input_ids[prefix.length :] for i in part]
                names = [samples[i].id for i in part]
                choose = choice(sampling, names, max_new_tokens, vlm.device)
                made = _continue(vlm, prefix, cache, questions, max_new_tokens, choose)
                for i, ids in zip(part, made, strict=True):
                    answers[i] = ids
    return answers


@dataclass(frozen=True, slots=True)
class _Prefix:
    """A shared beginning: its cached keys and values, its length and the position behind it."""

    cache: DynamicCache
    length: int
    after: int


def _run_prefix(vlm: Vlm, encoded: Encoded, features: FeatureCache | None) -> _Prefix:
    cache = DynamicCache(config=vlm.model.config.get_text_config())
    length = encoded.prefix
    if not length:
        return _Prefix(cache, 0, 0)
    ids = encoded.input_ids[None, :length].to(vlm.device)
    is_image = encoded.is_image[None, :length].to(vlm.device)
    positions = prefix_positions(vlm, encoded).to(vlm.device)
    causal = torch.ones(1, 1, length, length, dtype=torch.bool, device=vlm.device).tril()
    inputs = embed(vlm, ids, is_image, encoded.images, features)
    decode(vlm, inputs, positions[:, None], causal, cache)
    return _Prefix(cache, length, int(positions.max()) + 1)


def _continue(
    vlm: Vlm,
    prefix: _Prefix,
    cache: DynamicCache,
    questions: Sequence[Tensor],
    max_new_tokens: int,
    choose: Choice,
) -> list[list[int]]:
    """New tokens of each question [m_i] behind the prefix; the cache is used up."""
    device, many = vlm.device, len(questions)
    if prefix.length:
        cache.batch_repeat_interleave(many)
    ids = pad_sequence(list(questions), True, vlm.tokenizer.pad_token_id or 0).to(device)
    lengths = torch.tensor([len(q) for q in questions], device=device)
    steps = torch.arange(ids.shape[1], device=device)
    known = steps[None] < lengths[:, None]
    hidden = decode(
        vlm,
        embed(vlm, ids, torch.zeros_like(known), (), None),
        axes(vlm, (prefix.after + steps).expand(many, -1)),
        _question_mask(prefix.length, known),
        cache,
    )
    hidden = hidden[torch.arange(many, device=device), lengths - 1]
    visible = torch.cat([known.new_ones(many, prefix.length), known], dim=1)
    rows = Rows(cache, visible, prefix.after + lengths, hidden)
    ends = torch.tensor(end_tokens(vlm), device=device)
    finished = torch.zeros(many, dtype=torch.bool, device=device)
    answers: list[list[int]] = [[] for _ in questions]
    for step in count(1):
        token = choose(rows.logits(vlm), step - 1)
        for answer, new, done in zip(answers, token.tolist(), finished.tolist(), strict=True):
            if not done:
                answer.append(new)
        finished |= torch.isin(token, ends)
        if step == max_new_tokens or bool(finished.all()):
            return answers
        follow(vlm, rows, token)
    raise AssertionError("unreachable")


def _question_mask(prefix: int, known: Bool[Tensor, "b m"]) -> Bool[Tensor, "b 1 m n"]:
    """Every question token sees the prefix and its own past; padding also sees itself."""
    many, length = known.shape
    causal = torch.ones(length, length, dtype=torch.bool, device=known.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=known.device)
    own = (causal & known[:, None]) | itself
    return torch.cat([own.new_ones(many, length, prefix), own], dim=2)[:, None]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode restored after."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
