"""From any format that is read to Drive-KD rows, ShareGPT rows, or our own JSONL.

Every row that is written is read again at once and compared: what the target could not hold is
counted, not guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from drivekd.data.formats import conversation
from drivekd.data.formats.readers import open_data
from drivekd.data.formats.rows import Row, line_count
from drivekd.data.sample import Message, Sample
from drivekd.data.tags import Unit, in_unit
from drivekd.files.progress import track
from drivekd.files.writing import new_rows

#: what a round trip may lose beside images; `source` is where a sample was read, and always another
_FIELDS = ("id", "messages", "capability", "template", "scene", "frame", "meta", "paraphrases")
_SHAREGPT_ROLES = {"system": "system", "user": "human", "assistant": "gpt"}


def convert(
    path: str | Path,
    out: str | Path,
    to: str,
    *,
    format: str = "auto",
    root: str | Path | None = None,
    labels: bool = True,
    tags: Unit | None = None,
) -> dict[str, Any]:
    """Write the samples of a data file, read as by `readers.read`, in another format.

    The new file `out` gets one row a line with the ending `.jsonl`, else one list. Formats are
    `drivekd` (`messages`, `images`, `question_type` and nothing else), `sharegpt`
    (`conversations`, `images`, `system`, `id`) and `jsonl` (everything a sample holds). `tags`
    converts object tags to this unit.

    Returns:
        `{"file", "format", "to", "root", "rows", "lost": {field: rows}, "tags_left": n}`: what
        the target could not hold, and rows with tags that are a place in neither unit.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row is wrong, `to` is none of these, or `out` exists already.
    """
    path, out = Path(path), Path(out)
    if to not in _WRITERS:
        raise ValueError(f"cannot write {to!r}: choose one of {', '.join(_WRITERS)}")
    opened = open_data(path, format, root=root, labels=labels)
    lost: Counter[str] = Counter()
    left = 0
    with new_rows(out) as rows:
        for read in track(opened.samples(), line_count(path), "converting"):
            sample = read if tags is None else _in_unit(read, tags)
            if tags is not None:
                left += any(tag.unit != tags for tag in sample.tags)
            rows.add(row := _WRITERS[to](sample, opened.root))
            again = Row(row, f"{out}, row {rows.count}", opened.root)
            lost.update(_lost(sample, _READERS[to](again)))
    about = {"file": str(out), "format": opened.format, "to": to, "root": str(opened.root)}
    return {**about, "rows": rows.count, "lost": dict(lost), "tags_left": left}


def _in_unit(sample: Sample, unit: Unit) -> Sample:
    messages = [Message(m.role, in_unit(m.content, unit)) for m in sample.messages]
    wordings = tuple(in_unit(words, unit) for words in sample.paraphrases)
    return replace(sample, messages=tuple(messages), paraphrases=wordings)


def _lost(sample: Sample, again: Sample) -> Iterator[str]:
    """Yield the fields that reading the row again does not give back."""
    if list(again.images.items()) != list(sample.images.items()):  # in their order
        yield "images"
    yield from (name for name in _FIELDS if getattr(again, name) != getattr(sample, name))


def _paths(sample: Sample, root: Path) -> list[str]:
    """Image paths as a file writes them: from the root on."""
    return [file.relative_to(root).as_posix() for file in sample.images.values()]


def _turns(sample: Sample) -> list[dict[str, str]]:
    return [asdict(message) for message in sample.messages]


def _drivekd(sample: Sample, root: Path) -> dict[str, Any]:
    kind = sample.capability or sample.meta.get("question_type")
    return {"messages": _turns(sample), "images": _paths(sample, root), "question_type": kind}


def _sharegpt(sample: Sample, root: Path) -> dict[str, Any]:
    messages = list(sample.messages)
    system = messages.pop(0).content if messages[0].role == "system" else ""
    turns = [{"from": _SHAREGPT_ROLES[m.role], "value": m.content} for m in messages]
    row = {"id": sample.id, "conversations": turns, "images": _paths(sample, root)}
    return {**row, "system": system} if system else row


def jsonl_row(sample: Sample, root: Path) -> dict[str, Any]:
    """Write a sample as a row of our JSONL, which holds everything; image paths from the root."""
    row: dict[str, Any] = {
        "id": sample.id,
        "messages": _turns(sample),
        "images": _paths(sample, root),
        "cameras": list(sample.images),
        **{name: getattr(sample, name) for name in ("capability", "template", "scene", "frame")},
        "paraphrases": list(sample.paraphrases),
        "meta": dict(sample.meta),
    }
    return {key: value for key, value in row.items() if value not in (None, [], {})}


_WRITERS: dict[str, Callable[[Sample, Path], dict[str, Any]]] = {
    "drivekd": _drivekd,
    "sharegpt": _sharegpt,
    "jsonl": jsonl_row,
}
_READERS: dict[str, Callable[[Row], Sample]] = {
    "drivekd": conversation.drivekd,
    "sharegpt": conversation.sharegpt,
    "jsonl": conversation.drivekd,
}


def describe(result: Mapping[str, Any]) -> str:
    """Say what was written and what was lost."""
    lines = [
        f"{result['rows']} rows of format {result['format']} → {result['to']}: {result['file']}",
        f"image paths start from {result['root']} (--root, data.root)",
    ]
    for field, rows in result["lost"].items():
        lines.append(f"{field:<11} not held by {result['to']} in {rows} rows")
    if result["tags_left"]:
        lines.append(f"{result['tags_left']} rows keep tags that are no place in either unit")
    if not result["lost"]:
        lines.append("nothing was lost")
    return "\n".join(lines)
