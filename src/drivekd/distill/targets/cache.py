"""Teachers' attention of every sample in parts that fit into any batch, kept by content.

A token attends to the prefix that its sample shares with others and to the sample itself. So a
map falls into the prefix's part, kept once, and each sample's own part, and any packed or padded
batch is put together from those [ours]. Equal to live teachers up to the rounding of a forward
pass in another layout. A part's key is a hash of the tokens and of the bytes of the pictures, so
that the same content is the same part in any data file, in memory and on disk (storing.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drivekd.distill.teachers.teacher import Targets, Term, Trace, text_rows
from drivekd.files.identity import identities
from drivekd.models.batch import Batch, Encoded, Row, collate
from drivekd.models.vlm import Vlm

Parts = dict[tuple[str, int], Tensor]
"""Rows of a map by capability and 0-based student layer, float32."""

Get = Callable[[int, int], Parts]
"""The part of a sample by its number: of its prefix (side 0), or its own (side 1)."""


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
        """Find the prefix and the own tokens, which begin at `start`, among a map's rows."""
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
    """The samples of a run and the keys of their parts.

    Attributes:
        vlm: lays out the teachers' batches.
        terms: all of attention.
        encoded: the samples.
        shapes: of each sample.
        keys: of each sample, those of its prefix's part and of its own.
        number: of each sample, by its identity as an object.
    """

    vlm: Vlm
    terms: tuple[Term, ...]
    encoded: Sequence[Encoded]
    shapes: tuple[Shape, ...]
    keys: tuple[tuple[str, str], ...]
    number: Mapping[int, int]


def layout_of(
    vlm: Vlm, terms: Sequence[Term], encoded: Sequence[Encoded], images: str = "real"
) -> Layout:
    """Cut samples into parts; `images`: what is shown of pictures, as `data.images`."""
    pictures = identities(path for each in encoded for path in each.images)
    return Layout(
        vlm,
        tuple(terms),
        encoded,
        tuple(map(_shape, encoded)),
        tuple(_keys(each, [images, *(pictures[path] for path in each.images)]) for each in encoded),
        {id(each.sample): number for number, each in enumerate(encoded)},
    )


def _keys(encoded: Encoded, pictures: Sequence[str]) -> tuple[str, str]:
    """Hash the prefix, and the whole sample, with what its pictures show."""
    ids = encoded.input_ids.numpy()
    total = hashlib.sha256(repr((encoded.prefix, pictures, encoded.grids)).encode())
    total.update(ids[: encoded.prefix].tobytes())
    prefix = total.hexdigest()[:40]
    total.update(b"own" + ids[encoded.prefix :].tobytes())
    return prefix, total.hexdigest()[:40]


# ----------------------------------------------------------------------------- from parts to maps


def put_together(
    layout: Layout, get: Get, batch: Batch, rows: Int[Tensor, " R"]
) -> dict[str, Trace]:
    """Make of parts what the student is compared with; other samples' columns are 0, as live."""
    numbers = [layout.number[id(sample)] for sample in batch.samples]
    prefixes: dict[str, Parts] = {}
    for number in numbers:
        if (key := layout.keys[number][0]) not in prefixes:
            prefixes[key] = get(number, 0)
    parts = [(layout.shapes[n], prefixes[layout.keys[n][0]], get(n, 1)) for n in numbers]
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
    """Put together one map of a batch."""
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
    """Give each position its place in `rows`; meaningless for the others."""
    index_of = torch.zeros(n, dtype=torch.long, device=rows.device)
    index_of[rows] = torch.arange(len(rows), device=rows.device)
    return index_of


# ----------------------------------------------------------------------------- from maps to parts


def learn(layout: Layout, live: Targets, rows: Sequence[Row]) -> dict[str, Parts]:
    """Run the teachers once on rows of samples and cut what they see into parts by key."""
    batch = collate(layout.vlm, layout.encoded, rows)
    text = text_rows(batch)
    seen, index_of = live(batch, text), _index_of(text, batch.is_image.shape[1])
    maps = {
        (term.capability, layer): (term.whole, map_)
        for term in layout.terms
        for layer, map_ in seen[term.capability].maps.items()
    }
    parts: dict[str, Parts] = {}
    numbers = [number for row in rows for number in row]
    for number, (row, start) in zip(numbers, batch.places, strict=True):
        shape, (prefix, own) = layout.shapes[number], layout.keys[number]
        columns = torch.cat([torch.arange(shape.prefix), torch.arange(start, start + shape.own)])
        columns = columns.to(index_of.device)
        of_prefix: Parts = {}
        of_own: Parts = {}
        for name, (whole, map_) in maps.items():
            above, below = shape.places(whole, start, index_of)
            of_own[name] = map_[row][below][:, columns].cpu()
            if prefix not in parts:
                of_prefix[name] = map_[row][above, : shape.prefix].clone().cpu()
        parts.setdefault(prefix, of_prefix)
        parts[own] = of_own
    return parts


# ------------------------------------------------------------------------------ kept in memory


@dataclass(frozen=True)
class TargetCache:
    """Targets of a run's samples, as `teacher.Targets`: computed when a sample is first visited.

    What a batch lacks is computed in one pass, so teachers never run more often than without a
    cache. Rounding depends on what is computed together: a resumed run looks up in which batch a
    part was first needed and computes it with the rows of that batch, bit for bit as then. [ours]

    Attributes:
        live: the teachers' targets of a batch.
        layout: of the samples.
        groups: rows that are computed together, one group for each batch that lacks something.
        group_of: number of the group of each key.
        parts: what is known, by key.
    """

    live: Targets
    layout: Layout
    groups: tuple[tuple[Row, ...], ...]
    group_of: Mapping[str, int]
    parts: dict[str, Parts] = field(default_factory=dict)

    def __call__(self, batch: Batch, rows: Int[Tensor, " R"]) -> dict[str, Trace]:
        layout, parts = self.layout, self.parts
        needed = [key for s in batch.samples for key in layout.keys[layout.number[id(s)]]]
        lacking = [key for key in needed if key not in parts]
        for group in dict.fromkeys(self.group_of.get(key) for key in lacking):
            # Of no group is another process's batch, run here for the sake of its collectives.
            together = _rows_of(layout, batch) if group is None else self.groups[group]
            made = learn(layout, self.live, together)
            parts.update({key: of for key, of in made.items() if self.group_of.get(key) == group})
        return put_together(layout, lambda n, side: parts[layout.keys[n][side]], batch, rows)


def _rows_of(layout: Layout, batch: Batch) -> list[Row]:
    """Number the samples of a batch, row by row."""
    rows: dict[int, Row] = {}
    for sample, (row, _) in zip(batch.samples, batch.places, strict=True):
        rows[row] = (*rows.get(row, ()), layout.number[id(sample)])
    return list(rows.values())


def cached(live: Targets, layout: Layout, batches: Iterable[Sequence[Row]]) -> TargetCache:
    """Put a cache in front of live teachers; `batches`: all that will be asked for, in order."""
    groups: list[tuple[Row, ...]] = []
    group_of: dict[str, int] = {}
    for batch in batches:
        if new := _lacking(layout, group_of, batch):
            for number in (number for row in new for number in row):
                for key in layout.keys[number]:
                    group_of.setdefault(key, len(groups))
            groups.append(new)
    return TargetCache(live, layout, tuple(groups), group_of)


def _lacking(layout: Layout, known: Container[str], batch: Iterable[Row]) -> tuple[Row, ...]:
    """Leave of a batch's rows the samples whose own part is not known, each content once."""
    seen: set[str] = set()
    kept: list[Row] = []
    for row in batch:
        own = {layout.keys[number][1]: number for number in row}
        kept.append(tuple(n for key, n in own.items() if key not in known and key not in seen))
        seen.update(own)
    return tuple(row for row in kept if row)


PartBytes = Callable[[Encoded, Term], tuple[int, int]]
"""Bytes that a term's part takes: of a sample's prefix, and of its own tokens."""


def memory_bytes(encoded: Encoded, term: Term) -> tuple[int, int]:
    """Count what parts take in memory: every column, in float32."""
    prefix, n = encoded.prefix, len(encoded.input_ids)
    text = ~encoded.is_image
    above = prefix if term.whole else int(text[:prefix].sum())
    below = n - prefix if term.whole else int(text[prefix:].sum())
    each = 4 * len(term.matches)
    return above * prefix * each, below * n * each


def target_bytes(
    layout: Layout,
    part_bytes: PartBytes = memory_bytes,
    known: Iterable[str] = (),
) -> int:
    """Count the bytes of all parts whose keys are not known; `part_bytes`: how they are kept."""
    total, counted = 0, set(known)
    for encoded, keys in zip(layout.encoded, layout.keys, strict=True):
        for side, key in enumerate(keys):
            if key not in counted:
                total += sum(part_bytes(encoded, term)[side] for term in layout.terms)
                counted.add(key)
    return total
