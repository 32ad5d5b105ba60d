"""Whose attention a store holds: readers, layers and teachers, told without loading a teacher."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drivekd.distill.saving.trainer_state import digest
from drivekd.distill.targets.store import VERSION
from drivekd.distill.teachers import teacher
from drivekd.distill.teachers.teacher import Term
from drivekd.models import vlm as vlms
from drivekd.recipe import Recipe

#: What of a teacher's folder decides its attention, besides weights.
DECISIVE = ("config.json", "preprocessor_config.json", "processor_config.json")

#: A file is told from another by so many pieces of so many bytes, spread over it.
PIECES, PIECE = 1024, 4096

#: Settings of an image processor that decide what a model sees of a picture.
SEEN = (
    "size", "do_resize", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean",
    "image_std", "crop_to_patches", "patch_size", "temporal_patch_size", "merge_size",
)  # fmt: skip


def manifest(
    recipe: Recipe,
    student: vlms.Vlm,
    terms: Sequence[Term],
    records: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """All that stored numbers depend on besides the samples; layers count from 1."""
    return {
        "version": VERSION,
        "dtype": recipe.cache.dtype,
        "reader": {
            "family": student.family.name,
            "vocabulary": digest([json.dumps(sorted(student.tokenizer.get_vocab().items()))]),
            "template": digest([str(student.tokenizer.chat_template)]),
            "image_processor": _eyes(student),
        },
        "capabilities": {
            term.capability: {
                "signal": term.signal,
                "layers": {str(n + 1): [m + 1 for m in of] for n, of in term.matches.items()},
                "teacher": dict(records[term.capability]),
            }
            for term in terms
        },
    }


def record(vlm: vlms.Vlm, source: str, given: Mapping[str, vlms.Vlm]) -> dict[str, Any]:
    """A teacher as the manifest knows it."""
    loaded = source not in given
    return {
        **teacher.identity(vlm),
        "depth": teacher.depth(source) if loaded else len(vlms.decoder_layers(vlm)),
        "image_processor": _eyes(vlm),
        "files": _looks(source) if loaded else {},
    }


def records(
    recipe: Recipe, given: Mapping[str, vlms.Vlm], there: Mapping[str, Any]
) -> dict[str, dict[str, Any]] | None:
    """Every capability's teacher without loading any; None where one may be another."""
    dtype = "bfloat16" if recipe.train.bf16 else "float32"
    known: dict[str, dict[str, Any]] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, capability in recipe.capabilities.items():
        source = capability.teacher
        if source in given:
            known[source] = known.get(source) or record(given[source], source, given)
            found[name] = known[source]
            continue
        then = there["capabilities"].get(name, {}).get("teacher")
        if then is None or not _looks_like(source, then):
            return None
        found[name] = {**then, "dtype": dtype}
    return found


def _looks_like(source: str, then: Mapping[str, Any]) -> bool:
    files = _looks(source)
    return bool(files == then["files"] if files else source == then["source"])


def _looks(source: str) -> dict[str, str]:
    """Digest of each decisive file of a local folder by its name; none of what is elsewhere."""
    folder = Path(vlms.locate(source))
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return {
        path.name: _look(path)
        for path in found
        if path.suffix == ".safetensors" or path.name in DECISIVE
    }


def _look(path: Path) -> str:
    """Digest of a file's size and of pieces of it."""
    size = path.stat().st_size
    total = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for place in range(0, size, max(PIECE, size // PIECES)):
            file.seek(place)
            total.update(file.read(PIECE))
    return total.hexdigest()


def _eyes(vlm: vlms.Vlm) -> str:
    """Digest of what an image processor does to a picture."""
    settings = {name: getattr(vlm.image_processor, name, None) for name in SEEN}
    return digest([json.dumps(settings, default=repr)])


def identities(records: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    return {
        name: {key: each[key] for key in ("source", "sha256", "dtype")}
        for name, each in records.items()
    }


def check_same(there: Mapping[str, Any], here: Mapping[str, Any], folder: Path) -> None:
    """Refuse a store of other targets than those of a run.

    Raises:
        ValueError: naming every difference.
    """
    old, new = _leaves(there), _leaves(here)
    differences = [
        f"{key}: {old.get(key, 'none')} there, {new.get(key, 'none')} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if differences:
        raise ValueError(
            f"cache.dir {folder} holds other targets than this run compares with: "
            f"{'; '.join(differences)}. Choose another cache.dir, or delete the folder"
        )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted key to value, digests shortened, of everything that must agree."""
    leaves: dict[str, str] = {}
    for key, value in tree.items():
        if f"{prefix}{key}".endswith(_FREE):
            continue
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = str(value)[:12] if key in _LONG else str(value)
    return leaves


_FREE = (".teacher.source", ".teacher.files")
"""Names of places: weights are compared by content."""

_LONG = ("sha256", "vocabulary", "template", "image_processor")
"""Digests."""
