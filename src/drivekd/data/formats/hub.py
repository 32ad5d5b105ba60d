"""Rows of a Hugging Face dataset, read as a stream; pictures that they hold become files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

from PIL import Image

from drivekd.data.formats.readers import Placed, open_rows
from drivekd.data.formats.rows import RowError, shown
from drivekd.data.paths import camera_of
from drivekd.data.pictures import UNREADABLE
from drivekd.data.sample import Sample
from drivekd.files.extras import require
from drivekd.files.writing import writing

#: what reads a single local file, by its ending
_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json"}


def read(
    path: str,
    *,
    title: str,
    name: str | None = None,
    split: str = "train",
    streaming: bool = True,
    root: str | Path | None = None,
    pictures: Path,
) -> Iterator[Sample]:
    """Read the samples of a dataset row by row; code that comes with a dataset is never run.

    A picture may be a path below `root`, or else below the dataset's own local folder, or what the
    `Image` feature holds: the bytes of a picture file, which are written once below `pictures`,
    under a name that follows from them. Other columns than the samples' are left behind.

    Args:
        path: ORG/NAME on the hub, or a local folder or file of parquet, arrow or JSON.
        title: what messages call it.
        name: of its configuration.
        split: of the dataset.
        streaming: read it as it comes, not from the cache of `datasets`.
        root: folder that image paths start from.
        pictures: folder for pictures that come as bytes.

    Raises:
        ValueError: `datasets` cannot read this, or a row is wrong; dataset and row are named.
        OSError: a picture cannot be written.
    """
    rows = _rows(path, name, split, streaming, title)
    place = Path(path)
    own = place if place.is_dir() else place.parent if place.is_file() else None
    folder = own if root is None else Path(root)
    opened = open_rows(title, _placed(rows, title, pictures), folder or Path())
    for sample in opened.samples():
        if folder is None:
            _refuse_paths(sample, pictures)
        yield replace(sample, meta={})


def _refuse_paths(sample: Sample, pictures: Path) -> None:
    for path in sample.images.values():
        if not path.is_relative_to(pictures):
            raise RowError(
                f"{sample.source}: image {shown(str(path))} is a path, and the dataset has no "
                "folder here: set data.root to the folder that holds the pictures, or embed them "
                "in the dataset",
                "image_path",
            )


def _rows(path: str, name: str | None, split: str, streaming: bool, title: str) -> Iterator[Any]:
    require("hub")
    import datasets

    number = 0
    try:
        rows = iter(_opened(datasets, path, name, split, streaming))
        while True:
            row = next(rows, None)
            if row is None:
                return
            number += 1
            yield row
    except Exception as error:  # of pyarrow, archives, clients: whatever stands behind `datasets`
        place = f"{title}, behind row {number}" if number else title
        reason = error.__cause__ or error
        said = f"{type(reason).__name__}: {' '.join(str(reason).split())[:300]}"
        raise ValueError(
            f"{place}: the package datasets cannot read it ({said}); check path, name and split"
            f"{' (a slice needs streaming: false)' if '[' in split else ''}"
        ) from error


def _opened(
    datasets: Any, path: str, name: str | None, split: str, streaming: bool
) -> Iterable[Mapping[str, Any]]:
    """A dataset whose pictures stay undecoded."""
    options: dict[str, Any] = {"name": name, "split": split, "streaming": streaming}
    if Path(path).is_file() and Path(path).suffix in _BUILDERS:
        options["data_files"] = {split.partition("[")[0]: path}
        path = _BUILDERS[Path(path).suffix]
    found = datasets.load_dataset(path, **options)
    if not streaming:
        found = found.to_iterable_dataset()
    features = {n: _undecoded(datasets, each) for n, each in (found.features or {}).items()}
    rows: Iterable[Mapping[str, Any]] = (
        found.cast(datasets.Features(features)) if features else found
    )
    return rows


def _undecoded(datasets: Any, feature: Any) -> Any:
    """The feature with pictures, sounds and the like as they are stored; JSON is no such thing."""
    if isinstance(feature, dict):
        return {name: _undecoded(datasets, each) for name, each in feature.items()}
    if hasattr(feature, "feature"):  # of lists
        return replace(feature, feature=_undecoded(datasets, feature.feature))
    stored = hasattr(feature, "decode") and not isinstance(feature, getattr(datasets, "Json", ()))
    return replace(feature, decode=False) if stored else feature


def _placed(rows: Iterable[Any], title: str, pictures: Path) -> Iterator[Placed]:
    """Rows as the readers take them, with their places; a wrong one is the error itself."""
    for number, row in enumerate(rows, 1):
        where = f"{title}, row {number}"
        try:
            yield where, _with_files(row, where, pictures)
        except RowError as error:
            yield where, error


def _with_files(row: Any, where: str, pictures: Path) -> Any:
    """A row without the empty columns of its table, its pictures as files or paths."""
    if not isinstance(row, Mapping):
        return row
    value = {key: _filled(each) for key, each in row.items() if each is not None}
    held = value.pop("images", value.pop("image", []))
    held = held if isinstance(held, list) else [held]
    if not held:
        return value
    paths = [each.get("path") if isinstance(each, Mapping) else each for each in held]
    cameras = [camera_of(path) if isinstance(path, str) else None for path in paths]
    if None not in cameras:  # the name of a file that is made says nothing of it
        value.setdefault("cameras", cameras)
    files = [_file(each, f"{where}: image {k}", pictures) for k, each in enumerate(held, 1)]
    return value | {"images": files}


def _filled(value: Any) -> Any:
    """A mapping without the keys that only other rows of its column have."""
    if not isinstance(value, Mapping):
        return value
    return {key: each for key, each in value.items() if each is not None}


def _file(held: Any, where: str, pictures: Path) -> str | Path:
    """A path as it is, or the file of bytes."""
    path, content = (
        (held.get("path"), held.get("bytes")) if isinstance(held, Mapping) else (held, None)
    )
    if isinstance(content, bytes):
        return _kept(content, where, pictures)
    if isinstance(path, str):
        return path
    raise RowError(
        f"{where} must be a path or hold the bytes of a picture file, got {shown(held)}",
        "image_path",
    )


def _kept(content: bytes, where: str, pictures: Path) -> Path:
    """The file that holds these bytes, which is there as a whole or not at all.

    Several processes may write it at once: each under a name of its own, which it then changes.
    """
    try:
        with Image.open(BytesIO(content)) as image:
            kind = str(image.format).lower()
    except UNREADABLE:
        raise RowError(
            f"{where} holds {len(content)} bytes that are no picture file", "image_path"
        ) from None
    path = pictures / f"{hashlib.sha256(content).hexdigest()}.{kind}"
    if not path.exists() or path.stat().st_size != len(content):  # cut off by a power failure
        draft = path.with_name(f".{uuid4().hex}.partial")
        with writing(path, draft):
            try:
                draft.write_bytes(content)
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)
    return path
