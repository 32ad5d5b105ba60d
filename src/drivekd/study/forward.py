"""One forward pass of a teacher, and what the pre-study keeps of it, reduced layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate

from drivekd.distill.teachers import attention
from drivekd.distill.teachers.teacher import text_rows
from drivekd.models.batch import Batch, answer_positions, collate, forward, rows_of
from drivekd.models.encode import IGNORE, Encoded
from drivekd.models.features import FeatureCache
from drivekd.models.vlm import Vlm, decoder_layers, lm_head

#: answer positions whose logits exist at a time: 40 MB over a vocabulary of 150,000
POSITIONS_AT_ONCE = 64
#: How single tokens become one number or vector where the paper's text is unknown. `usual`:
#: adjacent similarity token by token, everything else of means [ours, METHOD]; `token_wise`: every
#: token counts the same, by its unit vector; `pooled`: means throughout.
Reading = Literal["usual", "token_wise", "pooled"]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """What is kept of one sample; L layers, width d, V visual tokens.

    Text positions are all that are no visual token; a sample's own ones are those behind the
    images: question, answer and template. Those in front are the same in all wordings.
    State 0 is the embedding, state L the one behind the last norm; block l leaves state l.
    """

    adjacent: Array  # similarity of states l and l+1, l = 0 … L−1 [L]
    #: similarity of image and text positions in every state [L+1]; None without images
    vision_text: Array | None
    hidden: Array  # feature of the text positions behind every block [L, d]
    own_hidden: Array  # the same of the own ones
    #: attention profile of the text positions, averaged over images, on one image's grid [L, rows ·
    #: columns]; None without images
    grid: Array | None
    own_attention: Array | None  # profile of the own ones on the visual tokens [L, V]
    #: the same of those before the answer: the question, and the template around it
    asking: Array | None
    share: Array | None  # attention of text positions that goes to images [L]
    margins: Array  # of the answer's tokens


@torch.no_grad()
def read_row(
    vlm: Vlm,
    encoded: Sequence[Encoded],
    *,
    features: FeatureCache | None = None,
    reading: Reading = "usual",
    grid: tuple[int, int] | None = None,
) -> list[Seen]:
    """Run samples that share one row through a frozen teacher once and keep what the panels need.

    Every layer's states and text→vision attention are reduced as soon as they exist, so memory
    beyond the forward pass is one state and one layer's text rows.

    Adjacent similarity [ours]: the mean over the sample's positions of cos(h_i^l, h_i^{l+1});
    `pooled`: cos of the mean states. Vision–text similarity [paper: the curve; ours: the formula]:
    cos(mean_V h^l, mean_T h^l); `token_wise`: the mean over pairs of an image and a text position
    of their cosine, which is the product of the two mean unit vectors. Features of states: the
    mean over text positions, `token_wise` of unit states. Attention profile [ours]: rows of text
    positions, head-averaged, on the visual tokens, averaged over the rows; `token_wise`: every row
    first scaled to sum to 1 over the visual tokens, rows that see none left out. See `Seen` for
    which positions a feature or profile is of. Images' profiles are brought to the rows and columns
    of `grid` (by default the first image's own) before they are averaged.

    Raises:
        ValueError: states or attention are not finite; the samples are named.
    """
    batch = collate(vlm, encoded, rows_of(encoded))
    assert len(batch.input_ids) == 1, "samples of one row share prefix and images"
    layers = decoder_layers(vlm)
    sees = bool(batch.images[0])
    watch = _Watch(*_weights(batch, encoded), reading)
    rows = text_rows(batch)
    captured = dict.fromkeys(range(len(layers)), rows) if sees else {}
    with attention.capture(layers, captured) as maps, _reducing(layers, watch, maps, batch, rows):
        hidden = forward(vlm, batch, features)
    watch.state(hidden)
    margins = _margins(vlm, hidden, batch, encoded)
    profiles = torch.stack([maps[layer] for layer in range(len(layers))]) if sees else None
    return _apart(watch, profiles, margins, encoded, grid)


@torch.no_grad()
def read_margins(
    vlm: Vlm, encoded: Sequence[Encoded], features: FeatureCache | None = None
) -> list[Array]:
    """Return the margins of the answers' tokens alone, of samples that share one row.

    ValueError: one is not finite; the samples are named.
    """
    batch = collate(vlm, encoded, rows_of(encoded))
    return _margins(vlm, forward(vlm, batch, features), batch, encoded)


@contextmanager
def _reducing(
    layers: nn.ModuleList, watch: _Watch, maps: dict[int, Tensor], batch: Batch, rows: Tensor
) -> Iterator[None]:
    """Hand every layer's input to the watch, and put profiles in place of captured maps."""
    columns = batch.is_image[0].nonzero().squeeze(1)
    of_rows = torch.cat([watch.text, watch.own, watch.asking]).index_select(1, rows)

    def before(module: nn.Module, inputs: Any, named: Any) -> None:
        watch.state(inputs[0] if inputs else named["hidden_states"])

    def behind(layer: int) -> Callable[..., None]:
        def reduce(*_: Any) -> None:
            if layer in maps:
                seen = maps[layer][0].index_select(1, columns)
                maps[layer] = _profile(seen, of_rows, watch.reading)

        return reduce

    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    for number, layer in enumerate(layers):
        inner: Any = layer.self_attn
        hooks.append(inner.register_forward_hook(behind(number)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _profile(seen: Tensor, of_rows: Tensor, reading: Reading) -> Tensor:
    """Profiles on the visual tokens by weights of rows, each with its share in front [w, 1 + V]."""
    total = seen.sum(dim=1, keepdim=True)
    share = of_rows @ total
    if reading != "token_wise":
        return torch.cat([share, of_rows @ seen], dim=1)
    looks = of_rows * (total.T > 0)
    scaled = seen / total.clamp_min(torch.finfo(seen.dtype).tiny)
    return torch.cat([share, looks / looks.sum(dim=1, keepdim=True) @ scaled], dim=1)


def _weights(batch: Batch, encoded: Sequence[Encoded]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights of means over each sample's positions in one row [s, n], images' in common [v, n].

    All text, images, own text, and own text before the answer. Samples of one row share their
    images: v is 1, without images 0.
    """
    text, vision = batch.members & ~batch.is_image, batch.is_image
    place = torch.arange(text.shape[1], device=text.device)
    after = text & (place >= encoded[0].prefix)
    before = torch.tensor([_asked(part) for part in encoded], device=text.device)
    start = torch.tensor([start for _, start in batch.places], device=text.device)
    asking = after & (place < (start + before)[:, None])
    parts = (text, vision[vision.any(dim=1)], after, asking)
    text, vision, after, asking = (part / part.sum(dim=1, keepdim=True) for part in parts)
    return text, vision, after, asking


def _asked(encoded: Encoded) -> int:
    """Count the tokens between a sample's images and its answer."""
    answer = (encoded.labels != IGNORE).nonzero()
    return int(answer[0] if len(answer) else len(encoded.labels)) - encoded.prefix


@dataclass(eq=False)
class _Watch:
    """Reduces one state after the other; keeps the last one, to compare the next with."""

    text: Tensor  # weights of each sample's text positions [s, n]
    vision: Tensor  # of the image positions [v, n]
    own: Tensor  # of each sample's own text [s, n]
    asking: Tensor  # of its own text before the answer [s, n]
    reading: Reading  # how tokens become features
    #: of every state, those of text [s, d] above those of images [v, d] and of own text
    means: list[Tensor] = field(default_factory=list)
    #: similarity of every state with the one before [s]
    adjacent: list[Tensor] = field(default_factory=list)
    _last: tuple[Tensor, Tensor] | None = None

    def state(self, hidden: Tensor) -> None:
        """Take in the next state [1, n, d]."""
        states = hidden[0].float()
        tiny = torch.finfo(states.dtype).tiny
        norms = torch.linalg.vector_norm(states, dim=1).clamp_min(tiny)
        weights = torch.cat([self.text, self.vision, self.own])
        weights = weights / norms if self.reading == "token_wise" else weights
        self.means.append(weights @ states)
        if self._last is not None:
            self.adjacent.append(self._similarity(states, norms, *self._last))
        self._last = states, norms

    def _similarity(self, new: Tensor, norms: Tensor, old: Tensor, old_norms: Tensor) -> Tensor:
        """Similarity of two states, of each sample [s]: mean over text and image positions."""
        share = self._text_share()
        if self.reading == "pooled":
            pair = [means[: -len(self.own)] for means in self.means[-2:]]
            now, before = (self._all(means, share) for means in pair)
            return cosine_similarity(now, before, dim=1)
        # One product per position, without a copy of the states.
        cosine = torch.einsum("nd,nd->n", new, old) / (norms * old_norms)
        return self._all(torch.cat([self.text, self.vision]) @ cosine[:, None], share)[:, 0]

    def _text_share(self) -> Tensor:
        """Which part of each sample's positions is text [s, 1]."""
        text = (self.text > 0).sum(dim=1, keepdim=True)
        return text / (text + (self.vision > 0).sum())

    def _all(self, means: Tensor, share: Tensor) -> Tensor:
        """Means over text and over images, joined to one over all positions of each sample."""
        text, vision = means[: len(self.text)], means[len(self.text) :]
        return share * text + (1 - share) * vision if len(vision) else text


def _apart(
    watch: _Watch,
    profiles: Tensor | None,
    margins: Sequence[Array],
    encoded: Sequence[Encoded],
    grid: tuple[int, int] | None,
) -> list[Seen]:
    """Bring everything to the host at once, and take the samples apart."""
    count = len(encoded)
    means = torch.stack(watch.means)
    text, vision, after = means[:, :count], means[:, count:-count], means[:, -count:]
    pairs = (text * vision).sum(dim=2)
    if watch.reading != "token_wise":
        pairs = cosine_similarity(text, vision.expand_as(text), dim=2) if vision.numel() else pairs
    adjacent, hidden = _host(torch.stack(watch.adjacent)), _host(text[1:])
    own_hidden, alike = _host(after[1:]), _host(pairs)
    looks = None if profiles is None else _host(profiles).reshape(len(hidden), 3, count, -1)
    parts = [adjacent, hidden, own_hidden, alike, *([] if looks is None else [looks])]
    _refuse_infinite(encoded, *parts)
    return [
        Seen(
            adjacent=adjacent[:, s],
            vision_text=alike[:, s] if looks is not None else None,
            hidden=hidden[:, s],
            own_hidden=own_hidden[:, s],
            grid=None if looks is None else _on_grid(looks[:, 0, s, 1:], sample.grids, grid),
            own_attention=None if looks is None else looks[:, 1, s, 1:],
            asking=None if looks is None else looks[:, 2, s, 1:],
            share=None if looks is None else looks[:, 0, s, 0],
            margins=margins[s],
        )
        for s, sample in enumerate(encoded)
    ]


def _host(values: Tensor) -> Array:
    return values.double().cpu().numpy()


def _refuse_infinite(encoded: Sequence[Encoded], *parts: Array) -> None:
    if not all(np.isfinite(part).all() for part in parts):
        names = ", ".join(repr(sample.sample.id) for sample in encoded[:5])
        raise ValueError(
            "pre-study: the teacher's states, attention or logits are not finite on samples "
            f"{names}; check its weights, or read it with --dtype float32"
        )


def _on_grid(
    profile: Array, grids: Sequence[tuple[int, int]], wanted: tuple[int, int] | None
) -> Array:
    """Mean over images of a profile [L, V] on one grid of visual tokens [L, rows · columns].

    An image with another grid is brought to it by averaging areas [ours].
    """
    wanted = wanted or grids[0]
    ends = np.cumsum([rows * columns for rows, columns in grids])[:-1]
    total = np.zeros((len(profile), wanted[0] * wanted[1]))
    for part, grid in zip(np.split(profile, ends, axis=1), grids, strict=True):
        if grid != wanted:
            image = torch.from_numpy(part).reshape(len(part), 1, *grid)
            part = interpolate(image, size=wanted, mode="area").reshape(len(part), -1).numpy()
        total += part
    return total / len(grids)


def _margins(vlm: Vlm, hidden: Tensor, batch: Batch, encoded: Sequence[Encoded]) -> list[Array]:
    """p_top1 − p_top2 at each position that predicts a token of an answer, by sample.

    Teacher-forced, softmax at τ = 1, with the true answer before it; the end of the turn, which
    every answer has, is left out [ours: METHOD panel d]. The head runs at these positions only.
    """
    sample, row, position = answer_positions(batch)
    apart = torch.bincount(sample, minlength=len(batch.samples)).tolist()
    states = hidden[row, position - 1]
    parts = [_gap(lm_head(vlm)(part)) for part in states.split(POSITIONS_AT_ONCE) if len(part)]
    gaps = _host(torch.cat(parts)) if parts else np.zeros(0)
    _refuse_infinite(encoded, gaps)
    return [part[:-1] for part in np.split(gaps, np.cumsum(apart)[:-1])]


def _gap(logits: Tensor) -> Tensor:
    logits = logits.float()
    best = logits.topk(2, dim=1).values
    share = (best - logits.logsumexp(dim=1, keepdim=True)).exp()
    return share[:, 0] - share[:, 1]
