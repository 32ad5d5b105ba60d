"""The folder of stored attention: shards that appear whole, and a manifest of whose they are.

- `manifest.json`: who reads the samples, what each capability compares, which teacher it has, the
  type of the stored numbers;
- `shard-<digest>.safetensors`: stored parts, `<key>/values/<capability>` and, where numbers are
  scaled, `<key>/scale/<capability>`. A key says what a sample, or the prefix that samples share,
  says and shows, so that any data file with the same samples finds them. Its metadata have the
  identities of the pictures by path, so that replaced ones are noticed.

A shard lists itself: an interrupted run leaves whole shards and nothing that has to fit to them.
Writers hold the folder's lock, readers need none. [ours]
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from drivekd.distill.targets.store_format import Packed
from drivekd.files.writing import atomic_file, share, write_json

VERSION = 2
"""Of manifest and shards."""

MANIFEST = "manifest.json"

SHARD_BYTES = 256_000_000
"""Size [bytes] from which on a shard is written; whatever was computed since is lost by a crash."""

OPEN = 64
"""Shards that a reader keeps mapped at the same time."""


@dataclass(frozen=True)
class Store:
    """What is in a folder.

    Attributes:
        folder: of the store.
        shards: by key.
        pictures: identity of the bytes of each picture by its path.
        opened: mapped files, the latest last.
    """

    folder: Path
    shards: Mapping[str, Path]
    pictures: Mapping[str, str]
    opened: dict[Path, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(path.stat().st_size for path in set(self.shards.values()))


def scan(folder: Path) -> Store:
    """Look through the shards of a folder; one that is not there holds none.

    Raises:
        ValueError: a shard is damaged or cut off.
    """
    shards: dict[str, Path] = {}
    pictures: dict[str, str] = {}
    for path in sorted(folder.glob("shard-*.safetensors")):
        handle = _open(path)
        pictures |= json.loads((handle.metadata() or {}).get("pictures", "{}"))
        shards |= {name.partition("/")[0]: path for name in handle.keys()}  # noqa: SIM118
    return Store(folder, shards, pictures)


def get(store: Store, key: str, capability: str) -> Packed:
    """Stored numbers of one part, mapped and not yet read.

    Raises:
        ValueError: its shard is damaged or cut off.
    """
    path = store.shards[key]
    handle = store.opened.pop(path, None) or _open(path)
    store.opened[path] = handle
    if len(store.opened) > OPEN:
        store.opened.pop(next(iter(store.opened)))
    values: Tensor = handle.get_tensor(f"{key}/values/{capability}")
    scale = f"{key}/scale/{capability}"
    if values.dtype != torch.uint8:
        return Packed(values, None)
    return Packed(values, handle.get_tensor(scale))


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} is damaged or cut off ({error}): delete this file and run again, the teachers "
            "then compute what it held"
        ) from error


def write_shard(
    folder: Path, parts: Mapping[str, Mapping[str, Packed]], pictures: Mapping[str, str]
) -> Path:
    """Write parts by key and capability; the file is there when it is complete.

    Args:
        folder: of the store.
        parts: what to write.
        pictures: that they show, see `Store`.

    Raises:
        OSError: it could not be written; shards that are there stay.
    """
    tensors: dict[str, Tensor] = {}
    for key, of in parts.items():
        for capability, packed in of.items():
            tensors[f"{key}/values/{capability}"] = packed.values.contiguous()
            if packed.scale is not None:
                tensors[f"{key}/scale/{capability}"] = packed.scale.contiguous()
    name = hashlib.sha256("".join(sorted(parts)).encode()).hexdigest()[:16]
    path = folder / f"shard-{name}.safetensors"
    try:
        with atomic_file(path, sync=True) as draft:
            save_file(tensors, draft, {"pictures": json.dumps(dict(pictures))})
            share(draft)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{path} could not be written: {error}. Finished shards are kept: make room, then run "
            "again"
        ) from error
    return path


def remove_drafts(folder: Path) -> None:
    """Remove what interrupted writers left; only for who holds the lock."""
    for path in folder.glob(".shard-*.partial"):
        path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------ the manifest


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None where nothing was written yet.

    Raises:
        ValueError: it cannot be read, or is of another version.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["version"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); delete the folder, or choose another cache.dir"
        ) from error
    if version != VERSION:
        raise ValueError(
            f"{path} is of version {version}, expected {VERSION}; choose another cache.dir, or "
            "delete the folder"
        )
    return dict(manifest)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a folder."""
    write_json(folder / MANIFEST, manifest, sync=True)
