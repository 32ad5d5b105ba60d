"""A run and its store of the teachers' attention: whether it is there, filling it, reading it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drivekd.data.sample import picture_identities
from drivekd.distill.processes import parallel
from drivekd.distill.processes.parallel import Ranks
from drivekd.distill.saving.trainer_state import digest
from drivekd.distill.targets import store, store_format, whose
from drivekd.distill.targets.cache import (
    Layout,
    Parts,
    layout_of,
    learn,
    put_together,
    target_bytes,
)
from drivekd.distill.targets.store import Store
from drivekd.distill.targets.store_format import Packed
from drivekd.distill.teachers import teacher
from drivekd.distill.teachers.teacher import Targets, Teacher, Term
from drivekd.files.lock import locked
from drivekd.files.progress import tell, track
from drivekd.models import vlm as vlms
from drivekd.models.batch import Encoded
from drivekd.recipe import Recipe

#: Characters of each half of a key: a digest of the words, one of the pictures.
HALF = 20

#: Samples named in an error.
NAMED = 5


@dataclass(frozen=True)
class Stored:
    """What a run needs of its teachers once everything is stored.

    Attributes:
        who: identity of each capability's teacher, as in a checkpoint.
        terms: one per capability, in the recipe's order.
        targets: of a batch, read from the store.
    """

    who: Mapping[str, Mapping[str, str]]
    terms: tuple[Term, ...]
    targets: Targets


@dataclass(frozen=True)
class _Keys:
    """Where things lie: the key of each sample, and that of each row's prefix."""

    own: tuple[str, ...]
    prefixes: tuple[str, ...]

    def missing(self, found: Store) -> tuple[list[int], list[int]]:
        """Numbers of the rows and samples that are not stored."""
        return (
            [n for n, key in enumerate(self.prefixes) if key not in found.shards],
            [n for n, key in enumerate(self.own) if key not in found.shards],
        )


def ready(
    recipe: Recipe,
    student: vlms.Vlm,
    encoded: Sequence[Encoded],
    given: Mapping[str, vlms.Vlm],
    ranks: Ranks,
) -> Stored | None:
    """Everything from the store, if all of it is there: no teacher is loaded then.

    A teacher in a local folder is told by its configuration and by pieces of its weights
    [ours: 4 MB a file], any other one by its name.

    Returns:
        None where something is missing or a teacher looks unlike the stored one: load the teachers
        and call `filled`.

    Raises:
        ValueError: the store holds other targets than the recipe compares with, or other samples
            of the same ids.
    """
    if not recipe.cache.dir or not recipe.capabilities:
        return None
    folder = Path(recipe.cache.dir)
    there = store.read_manifest(folder)
    records = None if there is None else whose.records(recipe, given, there)
    found: Stored | None = None
    if there is not None and records is not None:
        terms = _terms(recipe, student, {name: each["depth"] for name, each in records.items()})
        whose.check_same(there, whose.manifest(recipe, student, terms, records), folder)
        layout = _layout(recipe, student, terms, encoded)
        keys, stored = _keys(recipe, layout), store.scan(folder)
        _check_ids(layout, keys, stored)
        if not any(keys.missing(stored)):
            found = Stored(whose.identities(records), terms, _reader(stored, layout, keys))
    return found if _all(ranks, found is not None) else None


def filled(
    recipe: Recipe,
    student: vlms.Vlm,
    encoded: Sequence[Encoded],
    teachers: Sequence[Teacher],
    terms: Sequence[Term],
    given: Mapping[str, vlms.Vlm],
    ranks: Ranks,
) -> Stored:
    """Write what is missing, each process its share of the rows, and read from there.

    Raises:
        ValueError: the store holds other targets, would grow too large, has a damaged file, or is
            in use.
        OSError: it could not be written; finished files are kept, and the next run goes on there.
    """
    folder = Path(str(recipe.cache.dir))
    records: dict[str, dict[str, Any]] = {}
    for each in teachers:
        source = recipe.capabilities[each.terms[0].capability].teacher
        record = whose.record(each.vlm, source, given)
        records |= {term.capability: record for term in each.terms}
    here = whose.manifest(recipe, student, terms, records)
    layout = _layout(recipe, student, terms, encoded)
    keys = _keys(recipe, layout)
    if not _all(ranks, not any(keys.missing(_checked(folder, here)))):
        with locked(folder) if ranks.first else nullcontext():
            parallel.wait(ranks)
            found = _checked(folder, here)
            _check_ids(layout, keys, found)
            _check_size(recipe, layout, keys, found)
            parallel.wait(ranks)
            if ranks.first:
                store.remove_drafts(folder)
                store.write_manifest(folder, here)
            live = partial(teacher.targets, teachers)
            _write(recipe, layout, keys, live, found, ranks)
            parallel.wait(ranks)
    return Stored(
        whose.identities(records), tuple(terms), _reader(_checked(folder, here), layout, keys)
    )


def _all(ranks: Ranks, here: bool) -> bool:
    """Whether something holds in every process."""
    lacking = torch.tensor([not here], dtype=torch.float32, device=ranks.device)
    parallel.sum_(ranks, [lacking])
    return not bool(lacking)


def _checked(folder: Path, here: Mapping[str, Any]) -> Store:
    """What a folder holds, if it is of this run."""
    there, found = store.read_manifest(folder), store.scan(folder)
    if there is not None:
        whose.check_same(there, here, folder)
    elif found.shards:
        raise ValueError(
            f"cache.dir {folder} holds attention but no {store.MANIFEST} that says whose; delete "
            "the folder, or choose another cache.dir"
        )
    return found


# ------------------------------------------------------------------------------ what is in it


def _terms(recipe: Recipe, student: vlms.Vlm, depths: Mapping[str, int]) -> tuple[Term, ...]:
    own = len(vlms.decoder_layers(student))
    return tuple(
        teacher.term(name, use, own, depths[name]) for name, use in recipe.capabilities.items()
    )


def _layout(
    recipe: Recipe, student: vlms.Vlm, terms: Sequence[Term], encoded: Sequence[Encoded]
) -> Layout:
    data = recipe.data
    return layout_of(student, terms, encoded, data.questions_per_row, data.max_row_tokens)


def _keys(recipe: Recipe, layout: Layout) -> _Keys:
    """Digests of the token ids, and of the pictures by name and size as in a checkpoint."""
    pictures = picture_identities(path for each in layout.encoded for path in each.images)

    def key(each: Encoded, kind: str, end: int) -> str:
        files = [f"{pictures[p]} {grid}" for p, grid in zip(each.images, each.grids, strict=True)]
        words = f"{kind} {each.prefix} {each.input_ids[:end].numpy().tobytes().hex()}"
        return digest([words])[:HALF] + digest([recipe.data.images, *files])[:HALF]

    firsts = [layout.encoded[row[0]] for row in layout.rows]
    return _Keys(
        tuple(key(each, "sample", len(each.input_ids)) for each in layout.encoded),
        tuple(key(each, "prefix", each.prefix) for each in firsts),
    )


def _check_ids(layout: Layout, keys: _Keys, found: Store) -> None:
    """Refuse samples that the store knows by their ids, but with other content."""
    changed = []
    for number in keys.missing(found)[1]:
        name = layout.encoded[number].sample.id
        then, now = found.ids.get(name), keys.own[number]
        if then is not None:
            words, shown = then[:HALF] != now[:HALF], then[HALF:] != now[HALF:]
            changed.append(f"{name} ({' and '.join(['words'] * words + ['pictures'] * shown)})")
    if changed:
        more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        raise ValueError(
            f"cache.dir {found.folder} holds samples of these ids with other content: "
            f"{', '.join(changed[:NAMED])}{more}. Choose another cache.dir, or delete the folder"
        )


def _check_size(recipe: Recipe, layout: Layout, keys: _Keys, found: Store) -> None:
    """Say how large the store becomes, and refuse one that is too large."""
    rows, numbers = keys.missing(found)

    def size(dtype: store_format.Dtype) -> float:
        def part_bytes(encoded: Encoded, term: Term) -> tuple[int, int]:
            return store_format.packed_bytes(
                encoded.is_image,
                encoded.prefix,
                whole=term.whole,
                maps=len(term.matches),
                dtype=dtype,
            )

        return target_bytes(layout, part_bytes, rows, numbers) / 1e9

    dtype, limit = recipe.cache.dtype, recipe.cache.max_gb
    need, there = size(dtype), found.bytes / 1e9
    said = (
        f"attention of the teachers on {len(numbers)} samples takes {need:.3g} GB as {dtype} "
        f"({1000 * need / max(1, len(numbers)):.3g} MB a sample)"
    )
    if need + there > limit:
        smaller = f", cache.dtype: uint8 ({size('uint8'):.3g} GB)" if dtype != "uint8" else ""
        raise ValueError(
            f"cache.dir {found.folder}: {said} besides {there:.3g} GB that are there, more than "
            f"cache.max_gb = {limit:g}; give a larger cache.max_gb{smaller} or fewer samples "
            "(data.max_samples)"
        )
    tell(f"{found.folder}: {said} besides {there:.3g} GB that are there, limit {limit:g} GB")


# ------------------------------------------------------------------------------ writing, reading


def _write(
    recipe: Recipe, layout: Layout, keys: _Keys, live: Targets, found: Store, ranks: Ranks
) -> None:
    """This process's share of what is missing, row by row."""
    rows, numbers = keys.missing(found)
    jobs = {row: [layout.rows[row][0]] for row in rows}  # where nothing but the prefix is missing
    for row in dict.fromkeys(layout.row_of[n] for n in numbers):
        jobs[row] = [n for n in layout.rows[row] if keys.own[n] not in found.shards]
    parts: dict[str, dict[str, Packed]] = {}
    ids: dict[str, str] = {}
    size = 0
    share = ranks.share(sorted(jobs.items()))
    for row, members in track(share, label="attention of the teachers"):
        with torch.autocast(layout.vlm.device.type, torch.bfloat16, enabled=recipe.train.bf16):
            prefix, own = learn(layout, live, members)
        new = {keys.own[n]: _packed(layout, n, 1, own[n], recipe) for n in members}
        if keys.prefixes[row] not in found.shards:
            new[keys.prefixes[row]] = _packed(layout, members[0], 0, prefix, recipe)
        parts |= new
        ids |= {layout.encoded[n].sample.id: keys.own[n] for n in members}
        size += sum(packed.bytes for of in new.values() for packed in of.values())
        if size >= store.SHARD_BYTES or row == share[-1][0]:
            store.write_shard(found.folder, parts, ids)
            parts, ids, size = {}, {}, 0


def _packed(
    layout: Layout, number: int, side: int, parts: Parts, recipe: Recipe
) -> dict[str, Packed]:
    """One side of a sample's maps (0 its prefix, 1 its own) by capability."""
    return {
        term.capability: store_format.pack(
            torch.stack([parts[term.capability, layer] for layer in term.matches]),
            _mask(layout, number, side, term),
            recipe.cache.dtype,
        )
        for term in layout.terms
    }


def _mask(layout: Layout, number: int, side: int, term: Term) -> Tensor:
    each = layout.encoded[number]
    return store_format.masks(each.is_image, each.prefix, whole=term.whole)[side]


def _reader(found: Store, layout: Layout, keys: _Keys) -> Targets:
    """Targets that are read from the store, batch by batch."""
    device = layout.vlm.device

    def parts(key: str, number: int, side: int) -> Parts:
        read: Parts = {}
        for term in layout.terms:
            mask = _mask(layout, number, side, term).to(device)
            maps = store_format.unpack(store.get(found, key, term.capability).to(device), mask)
            read |= {(term.capability, layer): maps[i] for i, layer in enumerate(term.matches)}
        return read

    return partial(
        put_together,
        layout,
        lambda row: parts(keys.prefixes[row], layout.rows[row][0], 0),
        lambda number: parts(keys.own[number], number, 1),
    )
