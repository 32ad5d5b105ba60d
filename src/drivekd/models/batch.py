"""Encoded samples to rows of tensors, one forward of the decoder, the answers' cross-entropy.

Packing: the questions of one scene share one row. Its first tokens, the images, are computed
once; each question is a segment behind them that attends to the images and to itself and has the
positions it would have alone. Logits equal those of single samples.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from drivekd.data.sample import Sample
from drivekd.models.encode import IGNORE, Encoded, encode
from drivekd.models.features import FeatureCache, image_features
from drivekd.models.vlm import Vlm, language_model, lm_head

__all__ = [
    "IGNORE",
    "Batch",
    "Encoded",
    "Row",
    "answer_loss",
    "answer_positions",
    "collate",
    "embed",
    "encode",
    "flat",
    "forward",
    "group",
    "prefix_positions",
    "rows_of",
    "shared",
]

Row = tuple[int, ...]
"""Indices of the samples that share a row of a batch."""


def flat(batches: Iterable[Sequence[Row]]) -> list[int]:
    """Indices of all samples of batches, row after row, as `collate` orders them."""
    return [index for batch in batches for row in batch for index in row]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one or several samples each, padded on the right.

    Attributes:
        input_ids: token ids.
        position_ids: positions, with three axes (time, height, width) for the Qwen families.
        attention_mask: True where a row position may attend to a column; padding attends itself
            only, because a row of nothing but False is not a number after softmax.
        labels: see `Encoded`; `IGNORE` in the shared prefix and in padding.
        is_image: True at visual tokens.
        valid: False at padding.
        images: files of each row, in the order of their tokens.
        row: the row of each sample.
        members: positions of the row that make up the sample: shared prefix and own segment.
        samples: row after row.
        places: row of each sample and position of the first token behind its prefix, on the host.
        causal: the mask is the plain causal one: a sample to a row, no padding.
    """

    input_ids: Int[Tensor, "b n"]
    position_ids: Int[Tensor, "*axes b n"]
    attention_mask: Bool[Tensor, "b 1 n n"]
    labels: Int[Tensor, "b n"]
    is_image: Bool[Tensor, "b n"]
    valid: Bool[Tensor, "b n"]
    images: tuple[tuple[Path, ...], ...]
    row: Int[Tensor, " s"]
    members: Bool[Tensor, "s n"]
    samples: tuple[Sample, ...]
    places: tuple[tuple[int, int], ...]
    causal: bool = False


def rows_of(
    encoded: Sequence[Encoded],
    *,
    pack: bool = True,
    max_tokens: int | None = None,
    at_once: int | None = None,
) -> tuple[Row, ...]:
    """Form rows: samples with the same images and the same prefix share one, if packed.

    Args:
        encoded: the samples.
        pack: whether any share one.
        max_tokens: see `group`.
        at_once: the same.
    """
    if not pack:
        return tuple((index,) for index in range(len(encoded)))
    keys = [shared(each) if each.prefix else index for index, each in enumerate(encoded)]
    sizes = [(each.prefix, len(each.input_ids) - each.prefix) for each in encoded]
    return group(keys, sizes, max_tokens, at_once)


def shared(encoded: Encoded) -> Hashable:
    """Say what samples of one row have in common: their images and the tokens up to the last."""
    return encoded.images, tuple(encoded.input_ids[: encoded.prefix].tolist())


def group(
    keys: Sequence[Hashable],
    sizes: Sequence[tuple[int, int]] = (),
    max_tokens: int | None = None,
    at_once: int | None = None,
) -> tuple[Row, ...]:
    """Bring indices with equal keys together, in the order of their first ones.

    Args:
        keys: what samples of a row have in common.
        sizes: of each sample, tokens of the common prefix and tokens behind it; for `max_tokens`.
        max_tokens: cut rows that could be longer into as few equal ones as stay within it, since
            attention costs the square of a row; a sample longer than that has its own row. [ours]
        at_once: samples of a row that a batch sees at most; None: all.
    """
    rows: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        rows.setdefault(key, []).append(index)
    if max_tokens is None:
        return tuple(map(tuple, rows.values()))
    cut: list[Row] = []
    for row in rows.values():
        behind = [sizes[index][1] for index in row]
        cut += [tuple(row[part]) for part in _split(behind, sizes[row[0]][0], max_tokens, at_once)]
    return tuple(cut)


def _split(behind: Sequence[int], prefix: int, limit: int, at_once: int | None) -> list[slice]:
    """Cut a row into as few equal parts as stay within the limit; batches pad to the longest."""
    total = len(behind)
    for parts in range(1, total):
        cuts = [total * k // parts for k in range(parts + 1)]
        slices = [slice(start, stop) for start, stop in pairwise(cuts)]
        longest = (sum(sorted(behind[part], reverse=True)[:at_once]) for part in slices)
        if all(prefix + length <= limit for length in longest):
            return slices
    return [slice(k, k + 1) for k in range(total)]


def collate(vlm: Vlm, encoded: Sequence[Encoded], rows: Sequence[Row] | None = None) -> Batch:
    """Lay rows out on the model's device.

    Args:
        vlm: for padding and position ids.
        encoded: samples.
        rows: which of them share a row (see `rows_of`), the batch's samples row after row; by
            default all samples, each in its own row.

    Raises:
        ValueError: without any sample.
    """
    rows = rows_of(encoded, pack=False) if rows is None else rows
    if not rows:
        raise ValueError("collate: no samples; expected at least one")
    members = [[encoded[index] for index in row] for row in rows]
    laid = [_lay_out(vlm, row) for row in members]
    pad = vlm.tokenizer.pad_token_id or 0
    input_ids = pad_sequence([ids for ids, *_ in laid], True, pad)
    labels = pad_sequence([labels for _, labels, *_ in laid], True, IGNORE)
    segment = pad_sequence([segment for *_, segment, _ in laid], True, -1)
    positions = pad_sequence([positions.T for *_, positions in laid], True, 0).permute(2, 0, 1)
    number: list[int] = []
    places: list[tuple[int, int]] = []
    for r, row in enumerate(members):
        start = row[0].prefix
        for k, each in enumerate(row, start=1):
            number.append(k)
            places.append((r, start))
            start += len(each.input_ids) - each.prefix
    row_of = torch.tensor([r for r, _ in places])
    own = segment[row_of]
    device = vlm.device
    return Batch(
        input_ids=input_ids.to(device),
        position_ids=(positions if vlm.family.rope_axes == 3 else positions[0]).to(device),
        attention_mask=_attention_mask(segment.to(device)),
        labels=labels.to(device),
        is_image=((input_ids == vlm.image_token_id) & (segment >= 0)).to(device),
        valid=(segment >= 0).to(device),
        images=tuple(row[0].images for row in members),
        row=row_of.to(device),
        members=((own == 0) | (own == torch.tensor(number)[:, None])).to(device),
        samples=tuple(each.sample for row in members for each in row),
        places=tuple(places),
        causal=len(rows) == len(places) and len({len(ids) for ids, *_ in laid}) == 1,
    )


def forward(vlm: Vlm, batch: Batch, features: FeatureCache | None = None) -> Float[Tensor, "b n d"]:
    """Hidden states behind the decoder's last norm; the language-model head is not run.

    Args:
        vlm: the model.
        batch: rows made for this model's family.
        features: take visual tokens from this cache; None runs the vision tower, with gradient
            where enabled, once per distinct file of the batch.
    """
    paths = [path for row in batch.images for path in row]
    inputs = embed(vlm, batch.input_ids, batch.is_image, paths, features)
    output = language_model(vlm)(
        **inputs,
        attention_mask=_mask(vlm, batch, inputs["inputs_embeds"].dtype),
        position_ids=batch.position_ids,
        use_cache=False,
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def _mask(vlm: Vlm, batch: Batch, dtype: torch.dtype) -> Tensor | dict[str, None] | None:
    """The mask that the decoder gets; none where SDPA's own causal one, half the work, will do."""
    config: Any = vlm.model.config.get_text_config()
    if batch.causal and config._attn_implementation != "eager":  # which reads none as "no mask"
        kinds = getattr(config, "layer_types", None)  # Qwen3-VL's decoder has one kind of layer
        return None if kinds is None else dict.fromkeys(kinds)
    return _additive(batch.attention_mask, dtype)


def _additive(allowed: Bool[Tensor, "b 1 n n"], dtype: torch.dtype) -> Float[Tensor, "b 1 n n"]:
    """The mask as SDPA adds it: made once here, where SDPA would make it again in every layer."""
    return torch.zeros((), dtype=dtype, device=allowed.device).where(allowed, -torch.inf)


def embed(
    vlm: Vlm,
    input_ids: Int[Tensor, "b n"],
    is_image: Bool[Tensor, "b n"],
    paths: Sequence[Path],
    features: FeatureCache | None,
) -> dict[str, Any]:
    """What the decoder reads: `inputs_embeds` [b, n, d] and, with deepstack, what else it takes.

    Token embeddings, with the visual tokens of `paths`, row after row, put in their places. What
    deepstack adds at these places behind the first layers is handed to the decoder, which adds it.

    Raises:
        ValueError: there are more or fewer visual tokens than places.
    """
    embeds: Tensor = vlm.model.get_input_embeddings()(input_ids)
    if not paths:
        return {"inputs_embeds": embeds}
    if features is not None:
        tokens = features.features(vlm, paths)
    else:
        distinct = list(dict.fromkeys(paths))
        made = dict(zip(distinct, image_features(vlm, distinct), strict=True))
        tokens = [made[path] for path in paths]
    visual, *deeper = torch.cat(tokens).to(embeds).split(embeds.shape[-1], dim=-1)
    if len(visual) != (places := int(is_image.sum())):
        raise ValueError(
            f"model {vlm.source!r} makes {len(visual)} visual tokens of {len(paths)} pictures, but "
            f"the rows have {places} places for them; encode the samples with this model"
        )
    inputs: dict[str, Any] = {"inputs_embeds": embeds.masked_scatter(is_image[..., None], visual)}
    if deeper:
        inputs |= {"visual_pos_masks": is_image, "deepstack_visual_embeds": deeper}
    return inputs


def answer_positions(
    batch: Batch,
) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"], Int[Tensor, " m"]]:
    """Sample, row and position of every supervised token, ordered by sample.

    The hidden state that predicts the token is one position to the left in the same row: an
    answer never comes first in its segment, its role header does.
    """
    sample, position = (batch.members & (batch.labels[batch.row] != IGNORE)).nonzero().unbind(1)
    return sample, batch.row[sample], position


def answer_loss(vlm: Vlm, hidden: Float[Tensor, "b n d"], batch: Batch) -> Float[Tensor, " s"]:
    """Cross-entropy of each sample, the mean over its supervised tokens, in float32 [ours].

    CE_b = (1/|A_b|) Σ_{i in A_b} -log p(x_i | x_<i), A_b = answer tokens and end of turn. The
    language-model head runs on the positions that predict them only.

    Raises:
        ValueError: naming samples without any supervised token.
    """
    sample, row, position = answer_positions(batch)
    count = torch.bincount(sample, minlength=len(batch.samples))
    if not bool(count.all()):
        empty = [s.id for s, n in zip(batch.samples, count.tolist(), strict=True) if n == 0]
        raise ValueError(
            f"samples {', '.join(map(repr, empty[:5]))} have no supervised token, so no "
            "cross-entropy; expected samples encoded with their answers"
        )
    logits = lm_head(vlm)(hidden[row, position - 1]).float()
    each = functional.cross_entropy(logits, batch.labels[row, position], reduction="none")
    return torch.zeros(len(count), device=each.device).index_add(0, sample, each) / count


def _lay_out(vlm: Vlm, row: Sequence[Encoded]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids, labels, segment numbers (0 = prefix) and positions [axes, n] of one row."""
    first, prefix = row[0], row[0].prefix
    lengths = torch.tensor([prefix, *(len(e.input_ids) - prefix for e in row)])
    segment = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    start = prefix_positions(vlm, first)
    after = int(start.max()) + 1 if prefix else 0
    behind = [torch.arange(after, after + int(n)).expand(len(start), -1) for n in lengths[1:]]
    return (
        torch.cat([first.input_ids[:prefix], *(e.input_ids[prefix:] for e in row)]),
        torch.cat([first.labels[:prefix], *(e.labels[prefix:] for e in row)]),
        segment,
        torch.cat([start, *behind], dim=1),
    )


def prefix_positions(vlm: Vlm, encoded: Encoded) -> Int[Tensor, "axes p"]:
    """Positions of the prefix; everything behind it is text and counts on from their maximum."""
    axes, prefix = vlm.family.rope_axes, encoded.prefix
    if axes == 1 or not prefix:
        return torch.arange(prefix).expand(axes, -1)
    ids = encoded.input_ids[None, :prefix]
    merge = vlm.image_processor.merge_size
    grid = torch.tensor([[1, rows * merge, columns * merge] for rows, columns in encoded.grids])
    model: Any = vlm.model.get_submodule("model")
    extra = {"mm_token_type_ids": encoded.is_image[None, :prefix].int()}
    known = inspect.signature(model.get_rope_index).parameters
    # Without the token types newer releases count visual tokens as text, silently.
    kwargs = {name: value for name, value in extra.items() if name in known}
    positions: Tensor = model.get_rope_index(input_ids=ids, image_grid_thw=grid, **kwargs)[0]
    return positions[:, 0]


def _attention_mask(segment: Int[Tensor, "b n"]) -> Bool[Tensor, "b 1 n n"]:
    """Causal, to the prefix (segment 0) and the own segment; padding (-1) to itself only."""
    query, key = segment[:, :, None], segment[:, None, :]
    seen = ((query == key) | (key == 0)) & (query >= 0)
    n = segment.shape[1]
    causal = torch.ones(n, n, dtype=torch.bool, device=segment.device).tril()
    itself = torch.eye(n, dtype=torch.bool, device=segment.device)
    return ((seen & causal) | itself)[:, None]
