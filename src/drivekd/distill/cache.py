"""Teachers' attention of every sample, computed once and kept where no batch layout changes it.

A token attends to the prefix that its sample shares with others and to the sample itself. So a
map falls into the prefix's part, kept once, and each sample's own part, and any packed or padded
batch is put together from those [ours]. Equal to live teachers up to the rounding of a forward
pass in another layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drivekd.distill import corpus
from drivekd.distill.teacher import Targets, Term, Trace, text_rows
from drivekd.models.batch import Batch, Encoded, collate
from drivekd.models.vlm import Vlm

Parts = dict[tuple[str, int], Tensor]
"""Rows of a map by capability and 0-based student layer, float32."""


@dataclass(frozen=True)
class Shape:
    """Which rows and columns of a map belong to a sample.

    Attributes:
        prefix: P tokens that samples of one row share.
        own: m tokens behind them.
        prefix_text: positions of the prefix that are text.
        own_text: the same of its own tokens, counted from their first.
    """

    prefix: int
    own: int
    prefix_text: Int[Tensor, " p"]
    own_text: Int[Tensor, " o"]

    def places(
        self, whole: bool, start: int, index_of: Int[Tensor, " n"]
    ) -> tuple[slice | Tensor, slice | Tensor]:
        """Where the prefix and the own tokens, which begin at `start`, lie among a map's rows."""
        if whole:
            return slice(0, self.prefix), slice(start, start + self.own)
        device = index_of.device
        return index_of[self.prefix_text.to(device)], index_of[self.own_text.to(device) + start]

    def entries(self, term: Term) -> tuple[int, int]:
        """Numbers kept of a map of this term: of the prefix's part and of the own one."""
        above = self.prefix if term.whole else len(self.prefix_text)
        below = self.own if term.whole else len(self.own_text)
        return above * self.prefix, below * (self.prefix + self.own)


def _shape(encoded: Encoded) -> Shape:
    prefix, text = encoded.prefix, ~encoded.is_image
    places = text[:prefix].nonzero().squeeze(1), text[prefix:].nonzero().squeeze(1)
    return Shape(prefix, len(encoded.input_ids) - prefix, *places)


@dataclass(frozen=True)
class TargetCache:
    """Targets of the samples of a run, as `teacher.Targets`: computed at a row's first visit.

    The teachers then see all of a row's samples and nothing else, some at a time, whatever batch
    asked for it; so a resumed run computes again, bit for bit, what the interrupted one knew.

    Attributes:
        live: the teachers' targets of a batch.
        vlm: lays out their batch.
        terms: all of attention.
        encoded: the samples.
        rows: those that share a row of packed data, and with it a prefix.
        at_once: samples of a row that the teachers see together; None: all.
        shapes: of each sample.
        row_of: number of each sample's row.
        number: of each sample, by its identity as an object.
        prefixes: what is known of each row.
        own: what is known of each sample.
    """

    live: Targets
    vlm: Vlm
    terms: tuple[Term, ...]
    encoded: Sequence[Encoded]
    rows: tuple[tuple[int, ...], ...]
    at_once: int | None
    shapes: tuple[Shape, ...]
    row_of: tuple[int, ...]
    number: Mapping[int, int]
    prefixes: dict[int, Parts] = field(default_factory=dict)
    own: dict[int, Parts] = field(default_factory=dict)

    def __call__(self, batch: Batch, rows: Int[Tensor, " R"]) -> dict[str, Trace]:
        """What the student is compared with; columns of other samples are 0, as in a live map."""
        numbers = [self.number[id(sample)] for sample in batch.samples]
        for row in dict.fromkeys(self.row_of[number] for number in numbers):
            if row not in self.prefixes:
                self._learn(row)
        index_of = _index_of(rows, batch.is_image.shape[1])
        return {
            term.capability: Trace(
                {
                    layer: self._map(batch, numbers, (term, layer), len(rows), index_of)
                    for layer in term.matches
                }
            )
            for term in self.terms
        }

    def _map(
        self,
        batch: Batch,
        numbers: Sequence[int],
        of: tuple[Term, int],
        text: int,
        index_of: Tensor,
    ) -> Float[Tensor, "B R n"]:
        """One map of a batch, put together from the parts."""
        (term, layer), (b, n) = of, batch.is_image.shape
        total = torch.zeros(b, n if term.whole else text, n, device=batch.is_image.device)
        begun: set[int] = set()
        for number, (row, start) in zip(numbers, batch.places, strict=True):
            shape, out, name = self.shapes[number], total[row], (term.capability, layer)
            above, own = shape.places(term.whole, start, index_of)
            if row not in begun:
                begun.add(row)
                out[above, : shape.prefix] = self.prefixes[self.row_of[number]][name].to(out)
            part = self.own[number][name].to(out)
            out[own, : shape.prefix] = part[:, : shape.prefix]
            out[own, start : start + shape.own] = part[:, shape.prefix :]
        return total

    def _learn(self, row: int) -> None:
        """Run the teachers on a row and keep its parts."""
        members = self.rows[row]
        step = self.at_once or len(members)
        for start in range(0, len(members), step):
            self._take(row, members[start : start + step])

    def _take(self, row: int, members: Sequence[int]) -> None:
        batch = collate(self.vlm, [self.encoded[number] for number in members], pack=True)
        rows = text_rows(batch)
        found, index_of = self.live(batch, rows), _index_of(rows, batch.is_image.shape[1])
        maps = {
            (term.capability, layer): (term.whole, map_[0])
            for term in self.terms
            for layer, map_ in found[term.capability].maps.items()
        }
        for number, (_, start) in zip(members, batch.places, strict=True):
            shape = self.shapes[number]
            columns = torch.cat(
                [torch.arange(shape.prefix), torch.arange(start, start + shape.own)]
            )
            parts: Parts = {}
            for name, (whole, map_) in maps.items():
                own = map_[shape.places(whole, start, index_of)[1]]
                parts[name] = own[:, columns.to(own.device)].cpu()
            self.own[number] = parts
        first = self.shapes[members[0]]
        self.prefixes[row] = {
            name: map_[first.places(whole, 0, index_of)[0], : first.prefix].clone().cpu()
            for name, (whole, map_) in maps.items()
        }


def _index_of(rows: Int[Tensor, " R"], n: int) -> Int[Tensor, " n"]:
    """The place of each position in `rows`; meaningless for the others."""
    index_of = torch.zeros(n, dtype=torch.long, device=rows.device)
    index_of[rows] = torch.arange(len(rows), device=rows.device)
    return index_of


def target_cache(
    live: Targets,
    vlm: Vlm,
    terms: Sequence[Term],
    encoded: Sequence[Encoded],
    at_once: int | None = None,
    max_row_tokens: int | None = None,
) -> TargetCache:
    """An empty cache; the arguments are those of `TargetCache`, and the longest row."""
    rows = corpus.rows(encoded, pack=True, max_tokens=max_row_tokens, at_once=at_once)
    row_of = {number: r for r, row in enumerate(rows) for number in row}
    return TargetCache(
        live,
        vlm,
        tuple(terms),
        encoded,
        rows,
        at_once,
        tuple(_shape(each) for each in encoded),
        tuple(row_of[number] for number in range(len(encoded))),
        {id(each.sample): number for number, each in enumerate(encoded)},
    )


def target_bytes(cache: TargetCache) -> int:
    """Memory [bytes] that the targets of all samples take."""
    entries = 0
    for row in cache.rows:
        shapes = [cache.shapes[number] for number in row]
        for term in cache.terms:
            kept = shapes[0].entries(term)[0] + sum(shape.entries(term)[1] for shape in shapes)
            entries += kept * len(term.matches)
    return 4 * entries
