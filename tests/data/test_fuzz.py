"""Whatever a file holds: samples or a clear error, soon, and no look outside the data's folder.

The default suite tries some hundred files; `make fuzz` goes on for DRIVEKD_FUZZ_SECONDS (300).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from datafiles import bench, picture, row, scenes, six
from drivekd.data.check.run import check, table
from drivekd.data.convert import convert, describe
from drivekd.data.formats.readers import FORMATS, open_data, read
from drivekd.data.info import count
from drivekd.data.info import describe as describe_counts
from drivekd.data.sample import CAMERAS

KEYS = (
    "messages", "conversations", "images", "image", "image_path", "image_paths", "question",
    "answer", "question_type", "role", "content", "from", "value", "type", "text", "id", "meta",
    "cameras", "capability", "template", "scene", "frame", "system", "tag", "pred", "scene_token",
    "frame_token", "key_frames", "QA", "Q", "A", "key_object_infos", "data", "items", "samples",
    "perception", "prediction", "planning", "behavior",
)  # fmt: skip
PATHS = (
    "a.jpg", "../secret.jpg", "../../etc/passwd", "/etc/passwd", "x/../../secret.jpg", "text.jpg",
    "https://a.b/c.jpg", "file:///etc/passwd", "samples/CAM_FRONT/../../../secret.jpg", "", " ",
    "samples/CAM_FRONT/x__CAM_FRONT__1.jpg", "C:\\x.jpg", "a\0.jpg", "x" * 5000, "x/" * 900,
    ".", "..", "~/x", "/samples/CAM_BACK//etc/passwd", ".../../secret.jpg", "a.jpg/", "folder",
)  # fmt: skip
WORDS = (
    "<image>", "<image>What is <c1,CAM_FRONT,0.4678,0.6772>?", "Yes.", "A", "Final: {B. Stop}",
    "Which? A. Stop. B. Go. B. Go.", "<c1,CAM_BACK,", "user", "assistant", "human", "gpt", "system",
    "perception", "robust_qas", "\u2028", "é" * 50, "<" * 2000, "<c1," * 500, "(" * 999, "\ud800",
    "{{ 7 * 7 }}", "A" * 100_000, "<c1,CAM_FRONT,1e999,-0>", "\n", "CAM_FRONT", "true", "\x1b[31m",
)  # fmt: skip

texts = st.sampled_from(WORDS) | st.sampled_from(PATHS) | st.text(max_size=20)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.just(10**400 // 7)
junk = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(KEYS) | st.sampled_from(CAMERAS) | texts, inner, max_size=5
        )
    ),
    max_leaves=25,
)
ROWS = (
    row(), six("Is <c1,CAM_BACK,0.1,0.2> it?"), bench("Why?"), bench("Is it?", "robust_qas"),
    row(id="x", scene="s", frame="f", template="t", capability="mine", cameras=["CAM_FRONT"]),
    {"id": 1, "image": "a.jpg", "conversations": [
        {"from": "human", "value": "<image>Q?"}, {"from": "gpt", "value": "A."}]},
    {"question": "<image>Q?", "answer": "A.", "images": ["a.jpg"]},
    scenes("Is <c1,CAM_BACK,100.0,200.0> it?", tag=[0]),
)  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*at, key))


@st.composite
def nearly_right(draw: Any) -> Any:
    """A row of one of the formats with one or two of its values replaced, repeated or left out."""
    value = json.loads(json.dumps(draw(st.sampled_from(ROWS))))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.sampled_from(list(places(value))))
        if not at:
            return draw(junk)
        inner = value
        for key in at[:-1]:
            inner = inner[key]
        how = draw(st.sampled_from(("replace", "replace", "leave out", "many")))
        if how == "many" and len(json.dumps(inner[at[-1]])) < 1000:
            inner[at[-1]] = [inner[at[-1]]] * 3000
            return value  # one object 3,000 times: another change in it would count as often
        if how == "leave out":
            del inner[at[-1]]
        else:
            inner[at[-1]] = draw(junk | texts | st.sampled_from(PATHS))
    return value


def spoiled(text: str, how: str) -> bytes:
    """The bytes of a file with something wrong about it as a whole."""
    if how == "utf-16":
        return text.encode("utf-16", "surrogatepass")
    raw = text.encode("utf-8", "surrogatepass")
    return {
        "bom": b"\xef\xbb\xbf" + raw,
        "latin-1": text.encode("latin-1", "replace"),
        "cut": raw[: len(raw) // 2],
        "deep": b"[" * 3000 + raw + b"]" * 3000,
        "braces": b'{"a":' * 70 + raw + b"}" * 70,
        "repeated": raw.replace(b'"content"', b'"role"').replace(b'"A"', b'"Q"'),
        "nul": raw + b"\x00\n" + raw,
        "crlf": raw.replace(b"\n", b"\r\n"),
    }.get(how, raw)


HOW = ("as is",) * 8 + (
    "utf-16", "bom", "latin-1", "cut", "deep", "braces", "repeated", "nul", "crlf",
)  # fmt: skip


@st.composite
def files(draw: Any) -> tuple[str, bytes]:
    """The name and the bytes of a data file."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(("a.json", "a.jsonl"))), draw(st.binary(max_size=200))
    rows = draw(st.lists(nearly_right() | junk, max_size=4))
    name = draw(st.sampled_from(("a.json", "a.jsonl", "a.txt")))
    shape = draw(st.sampled_from(("lines", "list", "one", "data")))
    whole = {"list": rows, "one": rows[0] if rows else {}, "data": {"data": rows}}.get(shape)
    ascii_ = draw(st.booleans())
    if shape == "lines":
        text = "\n".join(json.dumps(each, ensure_ascii=ascii_) for each in rows)
    else:
        text = json.dumps(whole, ensure_ascii=ascii_)
    return name, spoiled(text, draw(st.sampled_from(HOW)))


# ---- what may be opened ------------------------------------------------------------------------

_opened: list[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], str | bytes):
        _opened.append(os.path.normpath(Path(os.fsdecode(arguments[0])).absolute()))


sys.addaudithook(_watch)  # it cannot be taken away again, only be told to stop


@contextmanager
def only_below(folder: Path) -> Iterator[None]:
    """Fails where anything but files below the folder, Python and its libraries is opened."""
    global _opened
    _opened = opened = []
    try:
        yield
    finally:
        _opened = None
    allowed = [folder, sys.prefix, sys.base_prefix, Path(__file__).parents[2] / "src"]
    outside = [p for p in opened if not any(Path(p).is_relative_to(each) for each in allowed)]
    assert not outside, outside


# ---- the property ------------------------------------------------------------------------------


SLOW = 20.0  # [s] of processor time for one small file


def harmless(file: tuple[str, bytes], format: str) -> float:
    """Try everything on a file; returns the processor time taken [s]."""
    started = time.process_time()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "data"
        picture(Path(made) / "secret.jpg", 1)
        picture(folder / "a.jpg", 2)
        (folder / "text.jpg").write_text("no picture")
        (folder / "folder").mkdir()
        path = folder / file[0]
        path.write_bytes(file[1])
        with only_below(folder):
            looked_at(path, format)
            checked(path, format)
            converted(path, format)
    return time.process_time() - started


def looked_at(path: Path, format: str) -> None:
    try:
        for sample in read(path, format):
            for image in sample.images.values():
                assert Path(os.path.normpath(image)).is_relative_to(path.parent)
            for message in sample.messages:
                message.content.encode()
        assert describe_counts(count(read(path, format))).replace("\n", "").isprintable()
    except ValueError as error:
        clear(error, path)


def checked(path: Path, format: str) -> None:
    fixed = path.with_name("fixed" + path.suffix)
    try:
        report = check(path, path, format=format, fix=fixed)
    except ValueError as error:
        clear(error, path)
        assert not fixed.exists()
        return
    json.dumps(report, allow_nan=False).encode()
    for each in report["checks"]:
        assert all(str(path) in shown["where"] for shown in each["shown"])
    lines = table(report).splitlines()
    assert len(lines) <= 6 + 4 * len(report["checks"]) and all(map(str.isprintable, lines))
    assert report["cleaned"]["kept"] + report["cleaned"]["dropped"] == report["rows"]
    if report["cleaned"]["kept"]:
        kept = list(open_data(fixed, report["format"]).samples())
        assert len(kept) == report["cleaned"]["kept"]


def converted(path: Path, format: str) -> None:
    out = path.with_name("out.jsonl")
    try:
        result = convert(path, out, "jsonl", format=format, tags="fraction")
    except ValueError as error:
        clear(error, path)
        assert not out.exists()
        return
    describe(result).encode()
    assert len(list(read(out))) == result["rows"]
    if result["lost"]:
        before, after = list(read(path, format)), list(read(out))
        assert set(result["lost"]) <= {"meta", "template"}, (before, after)


def clear(error: ValueError, path: Path) -> None:
    text = str(error)
    assert str(path) in text and "\n" not in text and len(text) < 3000, text


CALM = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    derandomize=True,
)


ROUND = 25  # files between two looks at the clock


@CALM
@given(file=files(), format=st.sampled_from((*("auto",) * 4, *FORMATS)))
def test_any_file_is_read_or_refused(file: tuple[str, bytes], format: str) -> None:
    assert harmless(file, format) < SLOW


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_fuzzing_for_minutes() -> None:
    until = time.monotonic() + float(os.environ.get("DRIVEKD_FUZZ_SECONDS", "300"))
    formats = st.sampled_from((*("auto",) * 4, *FORMATS))
    rounds, first = 0, time.time_ns()  # other files each time; a failing one is shown

    def quick(file: tuple[str, bytes], format: str) -> None:
        assert harmless(file, format) < SLOW

    while time.monotonic() < until:
        tried = given(file=files(), format=formats)(quick)
        seed(first + rounds)(settings(CALM, max_examples=ROUND, derandomize=False)(tried))()
        rounds += 1
    print(f"{ROUND * rounds} files")
    assert rounds > 0


def test_the_watch_itself_sees(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out.txt").write_text("x")
    with pytest.raises(AssertionError, match=r"out\.txt"), only_below(tmp_path / "in"):
        (tmp_path / "out.txt").read_text()
