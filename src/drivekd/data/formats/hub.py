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

    A picture may be a path below `root`, or else below the dataset's local folder, or what the
    `Image` feature holds: the bytes of a picture file, which are written once below `pictures`,
    under a name that follows from them. Columns that no sample has are left behind. `title` names
    the dataset in messages; the others are those of `recipe.data.HubData`.

    Raises:
        ValueError: `datasets` cannot read this, or a row is wrong; dataset and row are named.
        OSError: a picture cannot be written.
    """
    rows = _rows(path, name, split, streaming, title)
    place = Path(path)
    local = place if place.is_dir() else place.parent if place.is_file() else None
    folder = local if root is None else Path(root)
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
        for row in _opened(datasets, path, name, split, streaming):
            number += 1
            yield row
    except Exception as error:  # of pyarrow, archives, clients: whatever `datasets` reads by
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
    """Open a dataset whose pictures stay undecoded."""
    options: dict[str, Any] = {"name": name, "split": split, "streaming": streaming}
    if Path(path).is_file() and Path(path).suffix in _BUILDERS:
        options["data_files"] = {split.partition("[")[0]: path}
        path = _BUILDERS[Path(path).suffix]
    rows: Any = datasets.load_dataset(path, **options)
    if not streaming:
        rows = rows.to_iterable_dataset()
    features = _undecoded(datasets, dict(rows.features or {}))
    return rows.cast(datasets.Features(features)) if features else rows  # type: ignore[no-any-return]


def _undecoded(datasets: Any, feature: Any) -> Any:
    """Return the feature with pictures, sounds and the like as they are stored, unlike JSON."""
    if isinstance(feature, dict):
        return {name: _undecoded(datasets, inner) for name, inner in feature.items()}
    if hasattr(feature, "feature"):  # of lists
        return replace(feature, feature=_undecoded(datasets, feature.feature))
    stored = hasattr(feature, "decode") and not isinstance(feature, getattr(datasets, "Json", ()))
    return replace(feature, decode=False) if stored else feature


def _placed(rows: Iterable[Any], title: str, pictures: Path) -> Iterator[Placed]:
    """Yield rows as the readers take them, with their places; a wrong one is the error itself."""
    for number, row in enumerate(rows, 1):
        where = f"{title}, row {number}"
        try:
            yield where, _with_files(row, where, pictures)
        except RowError as error:
            yield where, error


def _with_files(row: Any, where: str, pictures: Path) -> Any:
    """Return a row without the empty columns of its table, its pictures as files or paths."""
    if not isinstance(row, Mapping):
        return row
    value = {key: _filled(column) for key, column in row.items() if column is not None}
    held = value.pop("images", value.pop("image", []))
    held = held if isinstance(held, list) else [held]
    if not held:
        return value
    paths = [picture.get("path") if isinstance(picture, Mapping) else picture for picture in held]
    cameras = [camera_of(path) if isinstance(path, str) else None for path in paths]
    if None not in cameras:  # the name of a file that is made says nothing of it
        value.setdefault("cameras", cameras)
    files = [_file(picture, f"{where}: image {k}", pictures) for k, picture in enumerate(held, 1)]
    return value | {"images": files}


def _filled(value: Any) -> Any:
    """Leave out of a mapping the keys that only other rows of its column have."""
    if not isinstance(value, Mapping):
        return value
    return {key: inner for key, inner in value.items() if inner is not None}


def _file(held: Any, where: str, pictures: Path) -> str | Path:
    """Return a path as it is, or the file of bytes."""
    path, content = held, None
    if isinstance(held, Mapping):
        path, content = held.get("path"), held.get("bytes")
    if isinstance(content, bytes):
        return _kept(content, where, pictures)
    if isinstance(path, str):
        return path
    raise RowError(
        f"{where} must be a path or hold the bytes of a picture file, got {shown(held)}",
        "image_path",
    )


def _kept(content: bytes, where: str, pictures: Path) -> Path:
    """Return the complete file that holds these bytes.

    Several processes may write it at once: each drafts under another name.
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
