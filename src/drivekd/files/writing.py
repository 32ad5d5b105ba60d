"""Files that an error names when they cannot be written, and that are there only when complete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO


@contextmanager
def writing(path: Path, draft: Path | None = None) -> Iterator[None]:
    """Make the folder of a file that is written inside, and name the file where that fails.

    Args:
        path: the file.
        draft: the name it is written under at first, which no error shows.

    Raises:
        OSError: the system's own, which does not know the file when the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(draft)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def atomic_file(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Give a place to write a file at, which then replaces the file completely or not at all.

    With `sync` it is on disk when the block ends.
    """
    draft = draft_of(path)
    try:
        with writing(path, draft):
            yield draft
            if sync:
                flush(draft)
            draft.replace(path)
        if sync:
            flush(path.parent)
    finally:
        with suppress(OSError):  # its folder may be none
            draft.unlink()


def write_json(path: Path, content: Any, *, sync: bool = False) -> None:
    """Write plain data as a JSON file for programs and people, completely or not at all."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    with atomic_file(path, sync=sync) as draft:
        # Half a surrogate pair, which an id may hold, has no UTF-8 but an escape in JSON.
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def new_file(path: Path) -> Iterator[TextIO]:
    """A text file that gets its name when the block ends, and is gone where that fails.

    Raises:
        ValueError: something has this name already.
    """
    if path.exists():
        raise ValueError(f"{path} exists already: name a new file")
    with atomic_file(path) as draft, draft.open("w", encoding="utf-8") as file:
        yield file


def draft_of(path: Path) -> Path:
    """What a file or folder is called until it is complete."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give a place to fill a folder at, which then replaces it on disk, or not at all."""
    draft = draft_of(folder)
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        yield draft
        for path in sorted(draft.rglob("*")):
            if path.is_file():
                share(path)
            flush(path)
        flush(draft)
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
        flush(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def share(path: Path) -> None:
    """Give a file to whom the umask lets read: safetensors makes its files for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def filling(out: Path, kept: str) -> Iterator[None]:
    """Say which folder could not be written to, and that nothing finished is lost.

    Args:
        out: the folder.
        kept: what is finished and stays, such as `finished pictures`.

    Raises:
        OSError, MemoryError: in place of one that the system raised inside.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # one of ours: a sentence already
            raise
        if isinstance(error, FileExistsError | NotADirectoryError):  # no room will help
            raise
        place = f"{out} (at {error.filename})" if error.filename else f"{out}"
        raise OSError(
            error.errno,
            f"cannot write to {place}: {error.strerror}; {kept} are kept, and once there is room "
            "and permission the same command makes the others",
        ) from error
    except MemoryError as error:
        raise MemoryError(f"filling {out}: {error}; {kept} are kept") from None


@dataclass(slots=True)
class Rows:
    """Takes rows one by one: a line each, or the elements of one list."""

    file: TextIO
    lines: bool
    count: int = 0

    def add(self, row: Any) -> None:
        between = "" if self.lines else ",\n" if self.count else "[\n"
        self.file.write(between + json.dumps(row, ensure_ascii=False) + "\n" * self.lines)
        self.count += 1


@contextmanager
def new_rows(path: Path) -> Iterator[Rows]:
    """A new file of rows: `.jsonl` gets one a line, any other name one list."""
    with new_file(path) as file:
        rows = Rows(file, path.suffix == ".jsonl")
        yield rows
        if not rows.lines:
            file.write("\n]\n" if rows.count else "[]\n")
