"""A run and its store of the teachers' attention: whether it is there, filling it, reading it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drivekd.distill.processes import parallel
from drivekd.distill.processes.parallel import Ranks
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
from drivekd.files.identity import identities
from drivekd.files.lock import locked
from drivekd.files.progress import tell, track
from drivekd.models import vlm as vlms
from drivekd.models.batch import Encoded, rows_of
from drivekd.recipe import Recipe

#: Pictures named in an error.
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
        ValueError: the store holds other targets than the recipe compares with, or pictures have
            been replaced.
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
        layout, stored = layout_of(student, terms, encoded, recipe.data.images), store.scan(folder)
        _check_pictures(layout, stored)
        if not _missing(layout, stored):
            found = Stored(whose.identities(records), terms, _reader(stored, layout))
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
    layout = layout_of(student, terms, encoded, recipe.data.images)
    if not _all(ranks, not _missing(layout, _checked(folder, here))):
        with locked(folder) if ranks.first else nullcontext():
            parallel.wait(ranks)
            found = _checked(folder, here)
            _check_pictures(layout, found)
            _check_size(recipe, layout, found)
            parallel.wait(ranks)
            if ranks.first:
                store.remove_drafts(folder)
                store.write_manifest(folder, here)
            live = partial(teacher.targets, teachers)
            _write(recipe, layout, live, found, ranks)
            parallel.wait(ranks)
    reader = _reader(_checked(folder, here), layout)
    return Stored(whose.identities(records), tuple(terms), reader)


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


def _missing(layout: Layout, stored: Store) -> list[int]:
    """Number the samples of which a part is not stored, each content once."""
    first = {key: n for n, keys in reversed(list(enumerate(layout.keys))) for key in keys}
    return sorted({n for key, n in first.items() if key not in stored.shards})


def _check_pictures(layout: Layout, stored: Store) -> None:
    """Refuse pictures that the store knows with other bytes."""
    pictures = _pictures(layout.encoded)
    changed = [p for p, now in pictures.items() if stored.pictures.get(p, now) != now]
    if changed:
        more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        raise ValueError(
            f"cache.dir {stored.folder} holds attention on pictures that have been replaced since: "
            f"{', '.join(changed[:NAMED])}{more}. Put the old ones back, choose another cache.dir, "
            "or delete the folder"
        )


def _pictures(encoded: Iterable[Encoded]) -> dict[str, str]:
    """Identify the bytes of samples' pictures by their paths."""
    shown = identities(path for each in encoded for path in each.images)
    return {str(path.absolute()): identity for path, identity in shown.items()}


def _check_size(recipe: Recipe, layout: Layout, found: Store) -> None:
    """Say how large the store becomes, and refuse one that is too large."""
    numbers = _missing(layout, found)

    def size(dtype: store_format.Dtype) -> float:
        def part_bytes(encoded: Encoded, term: Term) -> tuple[int, int]:
            return store_format.packed_bytes(
                encoded.is_image,
                encoded.prefix,
                whole=term.whole,
                maps=len(term.matches),
                dtype=dtype,
            )

        return target_bytes(layout, part_bytes, found.shards) / 1e9

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


def _write(recipe: Recipe, layout: Layout, live: Targets, found: Store, ranks: Ranks) -> None:
    """Compute this process's share of what is missing, the samples of a row in one pass."""
    missing = set(_missing(layout, found))
    rows = rows_of(layout.encoded, max_tokens=recipe.data.max_row_tokens)
    jobs = [tuple(n for n in row if n in missing) for row in rows]
    share = ranks.share([row for row in jobs if row])
    made: dict[str, dict[str, Packed]] = {}
    seen: list[Encoded] = []
    for number, row in enumerate(track(share, label="attention of the teachers"), start=1):
        with torch.autocast(layout.vlm.device.type, torch.bfloat16, enabled=recipe.train.bf16):
            parts = learn(layout, live, [row])
        sides = {key: (n, side) for n in row for side, key in enumerate(layout.keys[n])}
        new = (key for key in sides if key not in found.shards and key not in made)
        made |= {key: _packed(layout, *sides[key], parts[key], recipe) for key in new}
        seen += [layout.encoded[n] for n in row]
        size = sum(packed.bytes for of in made.values() for packed in of.values())
        if size >= store.SHARD_BYTES or number == len(share):
            store.write_shard(found.folder, made, _pictures(seen))
            made, seen = {}, []


def _packed(
    layout: Layout, number: int, side: int, parts: Parts, recipe: Recipe
) -> dict[str, Packed]:
    """Pack one side of a sample's maps (0 its prefix, 1 its own) by capability."""
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


def _reader(found: Store, layout: Layout) -> Targets:
    """Make targets that are read from the store, batch by batch."""
    device = layout.vlm.device

    def parts(number: int, side: int) -> Parts:
        key, read = layout.keys[number][side], Parts()
        for term in layout.terms:
            mask = _mask(layout, number, side, term).to(device)
            maps = store_format.unpack(store.get(found, key, term.capability).to(device), mask)
            read |= {(term.capability, layer): maps[i] for i, layer in enumerate(term.matches)}
        return read

    return partial(put_together, layout, parts)
