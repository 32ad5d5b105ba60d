"""Teachers' attention of every sample, computed once and kept where no batch layout changes it.

A token attends to the prefix that its sample shares with others and to the sample itself. So a
map falls into the prefix's part, kept once, and each sample's own part, and any packed or padded
batch is put together from those [ours]. Equal to live teachers up to the rounding of a forward
pass in another layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drivekd.distill import corpus
from drivekd.distill.teachers.teacher import Targets, Term, Trace, text_rows
from drivekd.models.batch import Batch, Encoded, collate
from drivekd.models.vlm import Vlm

Parts = dict[tuple[str, int], Tensor]
"""Rows of a map by capability and 0-based student layer, float32."""

Known = Callable[[int], Parts]
"""The prefix's part by the number of a row, or a sample's own part by its number."""


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


def _shape(encoded: Encoded) -> Shape:
    prefix, text = encoded.prefix, ~encoded.is_image
    places = text[:prefix].nonzero().squeeze(1), text[prefix:].nonzero().squeeze(1)
    return Shape(prefix, len(encoded.input_ids) - prefix, *places)


@dataclass(frozen=True)
class Layout:
    """The samples of a run, and which of them share a prefix, in whatever batch they come.

    Attributes:
        vlm: lays out the teachers' batches.
        terms: all of attention.
        encoded: the samples.
        rows: those that share a row of packed data, and with it a prefix.
        at_once: samples of a row that the teachers see together; None: all.
        shapes: of each sample.
        row_of: number of each sample's row.
        number: of each sample, by its identity as an object.
    """

    vlm: Vlm
    terms: tuple[Term, ...]
    encoded: Sequence[Encoded]
    rows: tuple[tuple[int, ...], ...]
    at_once: int | None
    shapes: tuple[Shape, ...]
    row_of: tuple[int, ...]
    number: Mapping[int, int]


def layout_of(
    vlm: Vlm,
    terms: Sequence[Term],
    encoded: Sequence[Encoded],
    at_once: int | None = None,
    max_row_tokens: int | None = None,
) -> Layout:
    """The arguments are those of `Layout`, and the longest row."""
    rows = corpus.rows(encoded, pack=True, max_tokens=max_row_tokens, at_once=at_once)
    row_of = {number: r for r, row in enumerate(rows) for number in row}
    return Layout(
        vlm,
        tuple(terms),
        encoded,
        rows,
        at_once,
        tuple(_shape(each) for each in encoded),
        tuple(row_of[number] for number in range(len(encoded))),
        {id(each.sample): number for number, each in enumerate(encoded)},
    )


# ----------------------------------------------------------------------------- from parts to maps


def put_together(
    layout: Layout, prefix_of: Known, own_of: Known, batch: Batch, rows: Int[Tensor, " R"]
) -> dict[str, Trace]:
    """What the student is compared with; columns of other samples are 0, as in a live map."""
    numbers = [layout.number[id(sample)] for sample in batch.samples]
    own = [own_of(number) for number in numbers]
    prefixes = {row: prefix_of(row) for row in dict.fromkeys(layout.row_of[n] for n in numbers)}
    parts = [
        (layout.shapes[number], prefixes[layout.row_of[number]], mine)
        for number, mine in zip(numbers, own, strict=True)
    ]
    index_of = _index_of(rows, batch.is_image.shape[1])
    return {
        term.capability: Trace(
            {
                layer: _map(batch, parts, (term, layer), len(rows), index_of)
                for layer in term.matches
            }
        )
        for term in layout.terms
    }


def _map(
    batch: Batch,
    parts: Sequence[tuple[Shape, Parts, Parts]],
    of: tuple[Term, int],
    text: int,
    index_of: Tensor,
) -> Float[Tensor, "B R n"]:
    """One map of a batch, from the parts of its samples."""
    (term, layer), (b, n) = of, batch.is_image.shape
    total = torch.zeros(b, n if term.whole else text, n, device=batch.is_image.device)
    begun: set[int] = set()
    for (shape, prefix, own), (row, start) in zip(parts, batch.places, strict=True):
        out, name = total[row], (term.capability, layer)
        above, below = shape.places(term.whole, start, index_of)
        if row not in begun:
            begun.add(row)
            out[above, : shape.prefix] = prefix[name].to(out)
        part = own[name].to(out)
        out[below, : shape.prefix] = part[:, : shape.prefix]
        out[below, start : start + shape.own] = part[:, shape.prefix :]
    return total


def _index_of(rows: Int[Tensor, " R"], n: int) -> Int[Tensor, " n"]:
    """The place of each position in `rows`; meaningless for the others."""
    index_of = torch.zeros(n, dtype=torch.long, device=rows.device)
    index_of[rows] = torch.arange(len(rows), device=rows.device)
    return index_of


# ----------------------------------------------------------------------------- from maps to parts


def learn(layout: Layout, live: Targets, members: Sequence[int]) -> tuple[Parts, dict[int, Parts]]:
    """Run the teachers on samples of one row: the prefix's part, and each sample's own.

    The teachers see these samples and nothing else, some at a time, whatever batch asked for
    them; so a resumed run computes again, bit for bit, what the interrupted one knew.
    """
    prefix: Parts = {}
    own: dict[int, Parts] = {}
    step = layout.at_once or len(members)
    for start in range(0, len(members), step):
        prefix, more = _take(layout, live, members[start : start + step])
        own |= more
    return prefix, own


def _take(layout: Layout, live: Targets, members: Sequence[int]) -> tuple[Parts, dict[int, Parts]]:
    """Both of samples that the teachers see together."""
    batch = collate(layout.vlm, [layout.encoded[number] for number in members], pack=True)
    rows = text_rows(batch)
    found, index_of = live(batch, rows), _index_of(rows, batch.is_image.shape[1])
    maps = {
        (term.capability, layer): (term.whole, map_[0])
        for term in layout.terms
        for layer, map_ in found[term.capability].maps.items()
    }
    own: dict[int, Parts] = {}
    for number, (_, start) in zip(members, batch.places, strict=True):
        shape = layout.shapes[number]
        columns = torch.cat([torch.arange(shape.prefix), torch.arange(start, start + shape.own)])
        parts: Parts = {}
        for name, (whole, map_) in maps.items():
            below = map_[shape.places(whole, start, index_of)[1]]
            parts[name] = below[:, columns.to(below.device)].cpu()
        own[number] = parts
    first = layout.shapes[members[0]]
    prefix = {
        name: map_[first.places(whole, 0, index_of)[0], : first.prefix].clone().cpu()
        for name, (whole, map_) in maps.items()
    }
    return prefix, own


# ------------------------------------------------------------------------------ kept in memory


@dataclass(frozen=True)
class TargetCache:
    """Targets of the samples of a run, as `teacher.Targets`: computed at a row's first visit.

    Attributes:
        live: the teachers' targets of a batch.
        layout: of the samples.
        prefixes: what is known of each row.
        own: what is known of each sample.
    """

    live: Targets
    layout: Layout
    prefixes: dict[int, Parts] = field(default_factory=dict)
    own: dict[int, Parts] = field(default_factory=dict)

    def __call__(self, batch: Batch, rows: Int[Tensor, " R"]) -> dict[str, Trace]:
        layout = self.layout
        for row in dict.fromkeys(layout.row_of[layout.number[id(s)]] for s in batch.samples):
            if row not in self.prefixes:
                self.prefixes[row], own = learn(layout, self.live, layout.rows[row])
                self.own.update(own)
        return put_together(layout, self.prefixes.__getitem__, self.own.__getitem__, batch, rows)


PartBytes = Callable[[Encoded, Term], tuple[int, int]]
"""Bytes that a term's part takes: of a sample's prefix, and of its own tokens."""


def memory_bytes(encoded: Encoded, term: Term) -> tuple[int, int]:
    """Of parts kept in memory: every column, in float32."""
    prefix, n = encoded.prefix, len(encoded.input_ids)
    text = ~encoded.is_image
    above = prefix if term.whole else int(text[:prefix].sum())
    below = n - prefix if term.whole else int(text[prefix:].sum())
    each = 4 * len(term.matches)
    return above * prefix * each, below * n * each


def target_bytes(
    layout: Layout,
    part_bytes: PartBytes = memory_bytes,
    rows: Iterable[int] | None = None,
    numbers: Iterable[int] | None = None,
) -> int:
    """Bytes that targets take: the prefix's part of these rows, the own one of these samples.

    Args:
        layout: of the samples.
        part_bytes: how they are kept; by default in memory.
        rows: by number; by default all.
        numbers: of samples; by default all.
    """
    rows = range(len(layout.rows)) if rows is None else rows
    numbers = range(len(layout.encoded)) if numbers is None else numbers
    above = [layout.encoded[layout.rows[row][0]] for row in rows]
    below = [layout.encoded[number] for number in numbers]
    return sum(
        sum(part_bytes(each, term)[0] for each in above)
        + sum(part_bytes(each, term)[1] for each in below)
        for term in layout.terms
    )
