"""Read driving questions in any of the public formats.

| format | one row is | written by |
|---|---|---|
| `drivekd` | `messages`, `images`, `question_type` (list or JSONL) | Drive-KD, our world |
| `drivelm` | scene → key_frames → QA (one mapping) | DriveLM-nuScenes, its challenge |
| `drivebench` | `question`, `answer`, `image_path`, `question_type` (list) | DriveBench |
| `sharegpt` | `conversations`, `image` or `images` (list or JSONL) | ShareGPT, LLaVA |

Our own JSONL is Drive-KD's row with `cameras`, `capability`, `template`, `scene`, `frame`, `meta`,
`paraphrases`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from drivekd.data.formats import conversation, drivebench, drivelm
from drivekd.data.formats.rows import Row, RowError, content, shown
from drivekd.data.sample import Sample

_READERS: dict[str, Callable[[Row], Sample]] = {
    "drivelm": drivelm.sample,
    "drivekd": conversation.drivekd,
    "drivebench": drivebench.sample,
    "sharegpt": conversation.sharegpt,
}
FORMATS = ("auto", *_READERS)

#: keys that only this format's rows have; the first that a row has counts
_MARKS = (
    ({"messages"}, "drivekd"),
    ({"conversations"}, "sharegpt"),
    ({"image_path"}, "drivebench"),
    ({"question", "images"}, "drivekd"),
)
#: what `auto` knows, in words
KNOWN = (
    "`messages` (drivekd), `conversations` (sharegpt), `image_path` (drivebench), or scenes with "
    "`key_frames` (drivelm)"
)
#: rows that `auto` looks at before it gives up
_LOOK = 100

#: a place in a file, and the value there
Placed = tuple[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a file (DriveLM's flattened), and its sample or why it is none."""

    where: str
    value: Any
    result: Sample | RowError


@dataclass(frozen=True, slots=True)
class Opened:
    """A data file whose format is known; its entries can be gone through once."""

    path: Path
    format: str
    root: Path
    entries: Iterator[Entry]

    def samples(self) -> Iterator[Sample]:
        """Yield the samples alone; raise the first wrong row, or that there is none."""
        empty = True
        for entry in self.entries:
            if isinstance(entry.result, RowError):
                raise entry.result
            empty = False
            yield entry.result
        if empty:
            raise ValueError(f"{self.path} holds no samples")


def read(
    path: str | Path, format: str = "auto", *, root: str | Path | None = None, labels: bool = True
) -> Iterator[Sample]:
    """Read the samples of a data file.

    Images need not exist: their paths are resolved below `root`, or else the file's folder.

    Args:
        path: a JSON or JSONL file.
        format: one of `FORMATS`; `auto` looks at the keys of the first rows.
        root: folder that relative image paths start from.
        labels: name each image's camera in the prompt; for formats whose questions do not hold
            placeholders of their own (DriveLM, DriveBench).

    Returns:
        The samples in the file's order; rows are checked as they are reached.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the format is unknown, or a row is wrong; file and row are named.
    """
    samples = open_data(path, format, root=root, labels=labels).samples()
    return chain([next(samples)], samples)  # an error of the first row, or of no row, at once


def open_data(
    path: str | Path, format: str = "auto", *, root: str | Path | None = None, labels: bool = True
) -> Opened:
    """Open a data file whose wrong rows come as errors among its entries; otherwise as `read`."""
    path = Path(path)
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is unknown: choose one of {', '.join(FORMATS)}")
    folder = Path(root) if root is not None else path.parent
    format, placed = _placed(path, format)
    return _opened(path, format, folder, placed, labels)


def open_rows(name: str, placed: Iterator[Placed], folder: Path) -> Opened:
    """Open rows from elsewhere, each with the place that an error about it names."""
    format, placed = _detected(placed)
    return _opened(Path(name), format, folder, placed, labels=True)


def _opened(
    path: Path, format: str, folder: Path, placed: Iterator[Placed], labels: bool
) -> Opened:
    entry = partial(_entry, read=_READERS[format], folder=folder, labels=labels)
    return Opened(path, format, folder, (entry(where, value) for where, value in placed))


def _entry(
    where: str, value: Any, *, read: Callable[[Row], Sample], folder: Path, labels: bool
) -> Entry:
    if isinstance(value, RowError):
        return Entry(where, None, value)
    if not isinstance(value, Mapping):
        return Entry(where, value, _no_mapping(value, where))
    try:
        return Entry(where, value, read(Row(value, where, folder, labels)))
    except RowError as error:
        return Entry(where, value, error)


def _no_mapping(value: Any, where: str) -> RowError:
    return RowError(f"{where}: expected a mapping, got {type(value).__name__}")


def _placed(path: Path, format: str) -> tuple[str, Iterator[Placed]]:
    """Return the format of a file, and its rows with their places."""
    held = content(path)
    if isinstance(held, Mapping):
        if format == "drivelm" or (format == "auto" and _format_of(held) is None):
            return "drivelm", drivelm.flat(held, path)
        held = iter([(1, held)])  # a file of a single row
    elif format == "drivelm":
        raise ValueError(f"{path}: DriveLM files are one mapping of scenes, this has rows")
    placed = ((f"{path}, row {number}", value) for number, value in held)
    return _detected(placed) if format == "auto" else (format, placed)


def _detected(placed: Iterator[Placed]) -> tuple[str, Iterator[Placed]]:
    """Return the format of the first row that has a known one, or raise the first row's fault."""
    head: list[Placed] = []
    for where, value in islice(placed, _LOOK):
        head.append((where, value))
        if isinstance(value, Mapping) and (name := _format_of(value)):
            return name, chain(head, placed)
    if head:
        raise _unknown(*head[0])
    return "drivekd", iter(())


def _format_of(row: Mapping[str, Any]) -> str | None:
    return next((name for keys, name in _MARKS if keys <= row.keys()), None)


def _unknown(where: str, value: Any) -> RowError:
    if isinstance(value, RowError):
        return value
    if not isinstance(value, Mapping):
        return _no_mapping(value, where)
    return RowError(f"{where}: no known format has the keys {shown(list(value))}; expected {KNOWN}")
