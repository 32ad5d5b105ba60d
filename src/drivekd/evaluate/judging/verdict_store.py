"""Paid replies of judges in an SQLite file, each committed before it is used."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Kept:
    """A reply, or the reason for which a request was answered with none worth reading."""

    text: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class VerdictStore:
    """A table of replies by key; a process that is killed loses none that was put in."""

    connection: sqlite3.Connection

    def get(self, key: str) -> Kept | None:
        row = self.connection.execute("SELECT text, error FROM replies WHERE key = ?", (key,))
        found = row.fetchone()
        return None if found is None else Kept(*found)

    def put(self, key: str, kept: Kept) -> None:
        self.connection.execute(
            "INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", (key, kept.text, kept.error)
        )

    def drop(self, keys: Iterable[str]) -> None:
        self.connection.executemany("DELETE FROM replies WHERE key = ?", ((k,) for k in keys))


@contextmanager
def opened(path: Path) -> Iterator[VerdictStore]:
    """The store in a file, made where there is none.

    Raises:
        ValueError: the file is no such store, or cannot be read or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, isolation_level=None, timeout=30)  # puts are committed
    except (OSError, sqlite3.Error) as error:
        raise _no_store(path, error) from error
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS replies"
            " (key TEXT PRIMARY KEY, text TEXT NOT NULL, error TEXT NOT NULL) WITHOUT ROWID"
        )
        yield VerdictStore(connection)
    except sqlite3.Error as error:
        raise _no_store(path, error) from error
    finally:
        connection.close()


def _no_store(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"verdicts {path}: {error}; expected a file that an earlier judging wrote, or a folder to"
        " write one in, and room"
    )


def key_of(identity: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], run: int) -> str:
    """A hash of all that a reply depends on: judge, endpoint, parameters, whole prompt, run."""
    text = json.dumps([dict(identity), list(messages), run], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
