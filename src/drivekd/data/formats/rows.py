"""Rows of a JSON or JSONL file, each with the place that an error about it names.

Every reader of rows raises a `RowError`, which starts with that place.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: keys under which a file may hold its list of rows
_LISTS = ("data", "items", "samples")
#: levels of nesting that a file may have; DriveLM has nine
_DEPTH = 64


class RowError(ValueError):
    """A row that is wrong by itself: the rows after it can still be read.

    Attributes:
        check: the name of the check that it fails (drivekd.data.check.findings).
    """

    def __init__(self, message: str, check: str = "row") -> None:
        super().__init__(message)
        self.check = check


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data file.

    Attributes:
        where: file and row, counted from 1; every error about the row starts with it.
        folder: where relative image paths start.
        labels: whether prompts that the reader makes name the camera of each image.
    """

    value: Mapping[str, Any]
    where: str
    folder: Path
    labels: bool = True

    @property
    def number(self) -> str:
        """The row's number in its file, as text."""
        return self.where.rpartition(", row ")[2]


def content(path: Path) -> Mapping[str, Any] | Iterator[tuple[int, Any]]:
    """Read a file: one mapping (nested formats), or its rows with their numbers.

    A `.jsonl` file is read line by line, never into memory at once; a line that is no JSON comes as
    a `RowError` in the row's place. Rows may also be a list under `data`, `items` or `samples`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or holds neither a mapping nor rows.
    """
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder: name the JSON or JSONL file in it (in a recipe, {{path: {path}}} "
            "is the folder of a Hugging Face dataset)"
        )
    if not path.is_file():
        raise FileNotFoundError(f"no data file {path}: check the path (and data.train or --data)")
    if path.suffix == ".jsonl":
        return _lines(path)
    try:
        held = decoded(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        if not path.stat().st_size:
            raise ValueError(f"{path} is empty: expected JSON") from None
        if error.msg == "Extra data":  # JSONL under another name
            return _lines(path)
        raise ValueError(
            f"{path}, line {error.lineno}, column {error.colno}: no valid JSON ({error.msg})"
        ) from None
    except UnicodeDecodeError as error:
        at = f"byte {error.start}: {error.reason}"
        raise ValueError(f"{path} is no UTF-8 text ({at}): convert it first") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if isinstance(held, dict):
        lists = [held[key] for key in _LISTS if isinstance(held.get(key), list)]
        if len(lists) != 1:
            return held
        held = lists[0]
    if isinstance(held, list):
        return iter(enumerate(held, 1))
    raise ValueError(f"{path}: expected a list or a mapping, got {type(held).__name__}")


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                yield number, decoded(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                at = f"byte {error.start} of the row: {error.reason}"
                yield number, RowError(f"{path}, row {number}: no UTF-8 text ({at})")
            except json.JSONDecodeError as error:
                place = f"{path}, row {number}, column {error.colno}"
                yield number, RowError(f"{place}: no valid JSON ({error.msg})")
            except ValueError as error:
                yield number, RowError(f"{path}, row {number}: {error}")


def line_count(path: Path) -> int | None:
    """Count the lines of a JSONL file, None for another."""
    if path.suffix != ".jsonl":
        return None
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def decoded(text: str) -> Any:
    """Decode a JSON text more strictly than `json.loads`.

    A ValueError refuses a key given twice, NaN or a number that is not finite, half a surrogate
    pair (no text can hold it), and more than 64 levels.
    """
    try:
        value = _DECODER.decode(text)
        deep = text.count("[") + text.count("{") > _DEPTH and _too_deep(value, _DEPTH)
    except RecursionError:
        deep = True
    if deep:
        raise ValueError(f"nested deeper than {_DEPTH} levels")
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError(r"half a surrogate pair (\ud800 …), which is no character") from None
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} is given twice")
    return made


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {shown(text)} is too large")
    return number


_DECODER = json.JSONDecoder(
    object_pairs_hook=_without_repeats, parse_constant=_no_number, parse_float=_finite
)


def _too_deep(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_too_deep(child, levels - 1) for child in inner)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def shown(value: Any) -> str:
    """Quote a value for an error message: short, on one line, however large it is."""
    return _SHORT.repr(value)


def one_line(text: str) -> str:
    """Escape a file's text for a terminal: no line breaks, no control characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def need(row: Row, key: str, kind: type | tuple[type, ...], what: str) -> Any:
    """Return the value of a key that a row must have; a RowError says `what` was expected."""
    value = row.value.get(key)
    if not isinstance(value, kind):
        got = "nothing" if value is None else f"{type(value).__name__} {shown(value)}"
        raise RowError(f"{row.where}: `{key}` must be {what}, got {got}")
    return value


def optional_text(row: Row, key: str) -> str | None:
    """Return the text or number of a key that a row may have, as text; else a RowError."""
    value = row.value.get(key)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    raise RowError(f"{row.where}: `{key}` must be text, got {shown(value)}")
