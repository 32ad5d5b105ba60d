"""Rows of a JSON or JSONL file, each with the words that an error about it starts with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data file.

    Attributes:
        value: what the row says.
        where: file and row, counted from 1; every error about the row starts with it.
        folder: the folder that relative image paths start from.
    """

    value: Mapping[str, Any]
    where: str
    folder: Path


def content(path: Path) -> Mapping[str, Any] | Iterator[tuple[int, Any]]:
    """What a file holds: one mapping (nested formats), or its rows with their numbers.

    A `.jsonl` file is read line by line and never held in memory as a whole.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or holds neither a mapping nor rows.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name the JSON or JSONL file in it")
    if not path.is_file():
        raise FileNotFoundError(f"no data file {path}: check the path (and data.train or --data)")
    if path.suffix == ".jsonl":
        return _lines(path)
    try:
        whole = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSONL under another name
            return _lines(path)
        raise ValueError(f"{path}, line {error.lineno}: no valid JSON ({error.msg})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error.reason})") from None
    if isinstance(whole, list):
        return iter(enumerate(whole, 1))
    if isinstance(whole, dict):
        return whole
    raise ValueError(f"{path}: expected a list or a mapping, got {type(whole).__name__}")


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, row {number}: no valid JSON ({error.msg})") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no UTF-8 text ({error.reason})") from None


def need(row: Row, key: str, kind: type | tuple[type, ...], what: str) -> Any:
    """The value of a key that a row must have.

    Raises:
        ValueError: it is absent or of another kind; `what` says what was expected.
    """
    value = row.value.get(key)
    if not isinstance(value, kind):
        got = "nothing" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"
        raise ValueError(f"{row.where}: `{key}` must be {what}, got {got}")
    return value


def optional_text(row: Row, key: str) -> str | None:
    """The value of a key that a row may have, as text."""
    value = row.value.get(key)
    return None if value is None else str(value)
