"""Rows of a Hugging Face dataset: the samples that a file of the same rows gives, or one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import datafiles
from drivekd.data.formats import hub
from drivekd.data.formats.readers import read
from drivekd.data.sample import Sample

TITLE = "ORG/NAME (train)"


def content(seed: int = 1) -> bytes:
    """A picture file as a dataset holds it."""
    buffer = BytesIO()
    Image.new("RGB", (8, 6), (seed, 20, 30)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `datasets` would hand over, undecoded; the tests put rows in."""
    given: list[Any] = []
    monkeypatch.setattr(hub, "_rows", lambda *_: iter(given))
    return given


def samples(tmp_path: Path, **options: Any) -> list[Sample]:
    return list(hub.read("ORG/NAME", title=TITLE, pictures=tmp_path / "pictures", **options))


def plain(sample: Sample) -> Sample:
    return replace(sample, source="", meta={}, images=dict.fromkeys(sample.images, Path()))


def formats() -> Iterator[Any]:
    """Rows about one picture by their format, as a file has them."""
    turns = [{"from": "human", "value": "<image>Who?"}, {"from": "gpt", "value": "I."}]
    yield "drivekd", datafiles.row(id="a", scene="s", frame="f")
    yield (
        "sharegpt",
        {"id": "b", "conversations": turns, "image": "a.jpg", "capability": "planning"},
    )
    yield "question", {"id": "c", "question": "<image>Why?", "answer": "So.", "images": ["a.jpg"]}
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "Where?"}]
    yield "parts", datafiles.row(parts, id="d")


@pytest.mark.parametrize("kind", ["path", "bytes"])
def test_rows_of_a_table_are_rows_of_a_file(tmp_path: Path, rows: list[Any], kind: str) -> None:
    """A table has every column in every row, empty ones as None, and pictures as bytes or paths."""
    for _, row in formats():
        path = datafiles.write(tmp_path / "one.jsonl", [row])
        (expected,) = read(path)
        held = "a.jpg" if kind == "path" else {"bytes": content(), "path": "a.jpg"}
        many = held if "image" in row else [held]
        empty = dict.fromkeys(("images", "image", "meta", "system", "cameras", "conversations"))
        rows[:] = [{**empty, **row, "image" if "image" in row else "images": many, "depth": b"1"}]
        (found,) = samples(tmp_path, root=tmp_path)
        assert plain(found) == plain(expected)
        assert found.meta == {}
        assert found.source == f"{TITLE}, row 1"
        if kind == "path":
            assert found.images == expected.images


def test_bytes_become_files_once_and_name_their_camera(tmp_path: Path, rows: list[Any]) -> None:
    one, two = content(1), content(2)
    held = [
        {"bytes": one, "path": "samples/CAM_BACK/x__CAM_BACK__1.png"},
        {"bytes": two, "path": "samples/CAM_FRONT/x__CAM_FRONT__1.png"},
    ]
    rows += [
        datafiles.row("<image><image>Where?", images=held),
        datafiles.row(images=[{"bytes": two, "path": None}]),
    ]
    first, second = samples(tmp_path)
    assert list(first.images) == ["CAM_BACK", "CAM_FRONT"]
    assert list(second.images) == ["image_0"]
    assert first.images["CAM_FRONT"] == second.images["image_0"]
    assert [path.read_bytes() for path in first.images.values()] == [one, two]
    files = sorted((tmp_path / "pictures").iterdir())
    assert files == sorted(first.images.values())
    written = [path.stat().st_mtime_ns for path in files]
    assert samples(tmp_path) == [first, second]
    assert [path.stat().st_mtime_ns for path in files] == written


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (datafiles.row(images=[{"bytes": b"no", "path": None}]), "image 1 holds 2 bytes that are"),
        (datafiles.row(images=[{"bytes": None, "path": None}]), "image 1 must be a path or hold"),
        (datafiles.row(images=[Image.new("RGB", (1, 1))]), "image 1 must be a path or hold"),
        (datafiles.row(images=["/etc/a.jpg"]), "leaves the data's folder"),
        (datafiles.row(images=["hf://datasets/O/N/a.jpg"]), "is a URL"),
        (datafiles.row("Where?"), "0 <image> in the user turns but 1 images"),
        ({"text": "?"}, "no known format has the keys"),
        ("text", "expected a mapping, got str"),
    ],
)
def test_a_wrong_row_is_told_by_its_number(
    tmp_path: Path, rows: list[Any], row: Any, said: str
) -> None:
    fine = [datafiles.row(images=[{"bytes": content(), "path": None}])]
    for before in ([], fine):
        rows[:] = [*before, row]
        with pytest.raises(ValueError) as caught:
            samples(tmp_path, root=tmp_path)
        number = len(rows)
        if number == 2 and "format" in said:  # the format is known by then
            said = "must be a list of {role, content}"
        assert str(caught.value).startswith(f"{TITLE}, row {number}: ")
        assert said in str(caught.value)


def test_paths_need_a_folder(tmp_path: Path, rows: list[Any]) -> None:
    rows.append(datafiles.row())
    with pytest.raises(ValueError, match=r"row 1: .*a\.jpg.*data\.root"):
        samples(tmp_path)
    assert samples(tmp_path, root="somewhere")[0].images == {"image_0": Path("somewhere/a.jpg")}


def test_no_row_and_a_full_disk_are_told(
    tmp_path: Path, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"ORG/NAME \(train\).*no samples"):
        samples(tmp_path)
    rows.append(datafiles.row(images=[{"bytes": content(), "path": None}]))

    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:9])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"No space left.*pictures/[0-9a-f]{64}\.png"):
            samples(tmp_path)
    assert list((tmp_path / "pictures").iterdir()) == []


# ---------------------------------------------------------------------- with the package itself


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The package, with a cache of its own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_a_parquet_folder_with_pictures(
    tmp_path: Path, datasets: Any, streaming: bool, whole: bool
) -> None:
    held = {"bytes": content(), "path": "CAM_BACK.png"}
    given = [datafiles.row(f"<image>{n}?", images=[held], id=str(n)) for n in range(3)]
    table = datasets.Dataset.from_list(given)
    table = table.cast_column("images", datasets.List(datasets.Image()))
    (tmp_path / "set").mkdir()
    table.to_parquet(str(tmp_path / "set" / "train-0.parquet"))
    path = tmp_path / "set" if whole else tmp_path / "set" / "train-0.parquet"
    found = list(
        hub.read(str(path), title=TITLE, streaming=streaming, pictures=tmp_path / "pictures")
    )
    assert [sample.question for sample in found] == ["0?", "1?", "2?"]
    assert {path.read_bytes() for s in found for path in s.images.values()} == {content()}
    assert list(found[0].images) == ["CAM_BACK"]


def test_a_jsonl_folder_with_paths(tmp_path: Path, datasets: Any) -> None:
    datafiles.write(tmp_path / "set" / "train.jsonl", [datafiles.row(), datafiles.row("<image>B?")])
    found = list(hub.read(str(tmp_path / "set"), title=TITLE, pictures=tmp_path / "pictures"))
    assert [s.images["image_0"] for s in found] == [tmp_path / "set" / "a.jpg"] * 2


def test_columns_of_mixed_types_are_what_the_file_says(tmp_path: Path, datasets: Any) -> None:
    """Text in one turn and a list of parts in another, one picture here and a list there."""
    parts = datafiles.row([{"type": "image"}, {"type": "text", "text": "Where?"}], id="a")
    given = [parts, datafiles.row("<image>Who?", id="b")]
    path = datafiles.write(tmp_path / "set" / "train.jsonl", given)
    found = list(hub.read(str(path.parent), title=TITLE, pictures=tmp_path / "pictures"))
    assert [plain(each) for each in found] == [plain(each) for each in read(path)]


def test_cameras_that_only_other_rows_have_are_none(tmp_path: Path, datasets: Any) -> None:
    given = [
        {
            "scene_token": "s",
            "frame_token": f"f{camera}",
            "question_type": "perception",
            "question": "What?",
            "answer": "It.",
            "tag": [2],
            "image_path": {camera: f"nuscenes/samples/{camera}/1.jpg"},
        }
        for camera in ("CAM_FRONT", "CAM_BACK")
    ]
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_list(given).to_parquet(str(tmp_path / "set/train-0.parquet"))
    found = hub.read(str(tmp_path / "set"), title=TITLE, pictures=tmp_path / "pictures")
    assert [list(sample.images) for sample in found] == [["CAM_FRONT"], ["CAM_BACK"]]


def test_a_slice_of_a_file_is_taken_or_refused(tmp_path: Path, datasets: Any) -> None:
    path = datafiles.write(tmp_path / "a.jsonl", [datafiles.row(f"<image>{n}?") for n in range(4)])
    asked = {"title": TITLE, "split": "train[:3]", "pictures": tmp_path / "pictures"}
    assert len(list(hub.read(str(path), streaming=False, **asked))) == 3
    with pytest.raises(ValueError, match=r"train\[:3\].*streaming: false"):
        list(hub.read(str(path), **asked))


@pytest.mark.parametrize(
    ("name", "held"),
    [("a.jsonl", b""), ("set/a.jsonl.gz", b"\x1f\x8b\x08\x00cut"), ("set/a.zip", b"PK\x03\x04")],
)
def test_files_that_are_none_are_one_line(
    tmp_path: Path, datasets: Any, name: str, held: bytes
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(held)
    asked = str(path if name == "a.jsonl" else path.parent)
    with pytest.raises(ValueError, match="package datasets") as caught:
        list(hub.read(asked, title=TITLE, pictures=tmp_path / "pictures"))
    assert "\n" not in str(caught.value)


def test_the_reason_is_told_that_stands_behind_the_error(tmp_path: Path, datasets: Any) -> None:
    path = datafiles.write(tmp_path / "set" / "train.jsonl", [datafiles.row()])
    path.write_text(path.read_text() + "{cut")
    asked = {"title": TITLE, "streaming": False, "pictures": tmp_path / "pictures"}
    with pytest.raises(ValueError, match=r"package datasets [^(]*\((?!DatasetGenerationError)"):
        list(hub.read(str(path.parent), **asked))


def test_a_picture_that_was_cut_off_is_written_anew(tmp_path: Path, rows: list[Any]) -> None:
    rows[:] = [datafiles.row(images=[{"bytes": content()}])]
    (first,) = samples(tmp_path)
    (path,) = first.images.values()
    path.write_bytes(b"")
    samples(tmp_path)
    assert path.read_bytes() == content()


@pytest.mark.parametrize("asked", [{"split": "nope"}, {"path": "not/there"}])
def test_what_the_package_refuses_is_one_line(
    tmp_path: Path, datasets: Any, asked: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datafiles.write(tmp_path / "set" / "train.jsonl", [datafiles.row()])
    options = {"path": str(tmp_path / "set"), **asked}
    with pytest.raises(ValueError, match="package datasets") as caught:
        list(hub.read(**options, title=TITLE, pictures=tmp_path / "pictures"))
    assert "\n" not in str(caught.value)


def test_broken_json_in_the_middle_is_told(tmp_path: Path, datasets: Any) -> None:
    path = datafiles.write(tmp_path / "set" / "train.jsonl", [datafiles.row()])
    path.write_text(path.read_text() + json.dumps(datafiles.row())[:-9] + "\n")
    with pytest.raises(ValueError, match=r"package datasets .*\(ArrowInvalid"):
        list(hub.read(str(path.parent), title=TITLE, pictures=tmp_path / "pictures"))
