"""Read driving questions in any of the public formats.

| format | one row is | written by |
|---|---|---|
| `drivekd` | `messages`, `images`, `question_type` (list or JSONL) | Drive-KD, our world |
| `drivelm` | scene → key_frames → QA (one mapping) | DriveLM-nuScenes, its challenge |
| `drivebench` | `question`, `answer`, `image_path`, `question_type` (list) | DriveBench |
| `sharegpt` | `conversations`, `image` or `images` (list or JSONL) | ShareGPT, LLaVA |
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from drivekd.data import conversation, drivebench, drivelm
from drivekd.data.rows import Row, content
from drivekd.data.sample import Sample

#: formats of rows; `drivelm` is the one format that is nested
_ROWS: dict[str, Callable[[Row], Sample]] = {
    "drivekd": conversation.drivekd,
    "drivebench": drivebench.sample,
    "sharegpt": conversation.sharegpt,
}
FORMATS = ("auto", "drivelm", *_ROWS)

#: a key that only this format's rows have
_MARKS = {"messages": "drivekd", "conversations": "sharegpt", "image_path": "drivebench"}


def read(
    path: str | Path, format: str = "auto", *, root: str | Path | None = None
) -> Iterator[Sample]:
    """Read the samples of a data file.

    Images need not exist: their paths are worked out, below `root` or else the file's own folder.

    Args:
        path: a JSON or JSONL file.
        format: one of `FORMATS`; `auto` looks at the keys of the first row.
        root: folder that relative image paths start from.

    Returns:
        The samples in the file's order; rows are checked as they are reached.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the format is unknown, or a row is wrong; file and row are named.
    """
    path = Path(path)
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is unknown: choose one of {', '.join(FORMATS)}")
    folder = Path(root) if root is not None else path.parent
    held = content(path)
    if isinstance(held, Mapping):
        if format in ("auto", "drivelm") and "messages" not in held and "conversations" not in held:
            return _checked(drivelm.samples(held, path, folder), path)
        held = iter([(1, held)])  # a file of a single row
    return _checked(_rows(held, path, folder, format), path)


def _rows(
    numbered: Iterator[tuple[int, Any]], path: Path, folder: Path, format: str
) -> Iterator[Sample]:
    for number, value in numbered:
        where = f"{path}, row {number}"
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: expected a mapping, got {type(value).__name__}")
        if format == "auto":
            format = _format(value, where)
        if format == "drivelm":
            raise ValueError(f"{where}: DriveLM files are one mapping of scenes, this has rows")
        yield _ROWS[format](Row(value, where, folder))


def _format(value: Mapping[str, Any], where: str) -> str:
    for key, name in _MARKS.items():
        if key in value:
            return name
    raise ValueError(
        f"{where}: no known format has the keys {', '.join(map(str, value)) or '(none)'}; expected "
        "`messages` (drivekd), `conversations` (sharegpt), `image_path` (drivebench), or scenes "
        "with `key_frames` (drivelm)"
    )


def _checked(samples: Iterator[Sample], path: Path) -> Iterator[Sample]:
    """The same samples; an empty file is an error at once, not a silent end."""
    first = next(samples, None)
    if first is None:
        raise ValueError(f"{path} holds no samples")
    return chain([first], samples)


def exclude_frames(samples: Iterable[Sample], tokens: Collection[str]) -> Iterator[Sample]:
    """The samples of other key frames than these.

    DriveBench was drawn from DriveLM's training frames: without this, training on DriveLM leaks
    (`drivelm.frame_tokens` reads the tokens from the benchmark's files).
    """
    left_out = frozenset(tokens)
    return (sample for sample in samples if sample.frame not in left_out)
