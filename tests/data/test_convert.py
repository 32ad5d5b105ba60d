from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datafiles import bench, picture, row, scenes, six, write
from drivekd.data.check.leakage import exposed_by
from drivekd.data.convert import convert, describe
from drivekd.data.corrupt.run import corrupt_data
from drivekd.data.formats.readers import read
from drivekd.data.formats.rows import line_count
from drivekd.data.info import count
from drivekd.data.sample import CAMERAS, Sample

TURNS = [
    {"from": "human", "value": "<image>\nWhat?"},
    {"from": "gpt", "value": "A car."},
    {"from": "human", "value": "Sure?"},
    {"from": "gpt", "value": "Yes."},
]
SOURCES: dict[str, Any] = {
    "drivekd": [row(), six("Where is <c1,CAM_BACK,0.1000,0.2000>?"), row(question_type=None)],
    "ours": [
        row(id="q7", capability="mine", template="t", scene="s", frame="f", split="val"),
        six("Who?", order=CAMERAS[::-1], cameras=list("abcdef"), meta={"regions": [49]}),
    ],
    "drivelm": scenes("Is <c2,CAM_BACK,1.5,2.5> behind <c1,CAM_FRONT,800.0,450.0>?", tag=[0]),
    "drivebench": [bench("What are the important objects?", "robust_qas", 2), bench("Why?")],
    "sharegpt": [
        {"id": 1, "image": "a.jpg", "conversations": TURNS, "capability": "planning"},
        {"id": "2", "conversations": TURNS[2:], "system": "Be brief."},
    ],
}
#: what the target has no place for, whatever the source
NEVER_HELD = {
    "drivekd": {"id", "template", "scene", "frame", "meta", "images"},
    "sharegpt": {"capability", "template", "scene", "frame", "meta", "images"},
    "jsonl": set(),
}


def same(sample: Sample, other: Sample, but: set[str]) -> bool:
    changes = {name: getattr(other, name) for name in (*but, "source")}
    order = "images" in but or list(sample.images) == list(other.images)
    return replace(sample, **changes) == other and order


@pytest.mark.parametrize("to", NEVER_HELD)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", ["b.json", "b.jsonl"])
def test_a_round_trip_loses_what_it_says_and_nothing_else(
    tmp_path: Path, source: str, to: Any, name: str
) -> None:
    path = write(tmp_path / "a.json", SOURCES[source])
    result = convert(path, tmp_path / name, to)
    before, after = list(read(path)), list(read(tmp_path / name))
    assert len(before) == len(after) == result["rows"]
    assert set(result["lost"]) <= NEVER_HELD[to]
    for one, other in zip(before, after, strict=True):
        assert same(one, other, set(result["lost"]))
    for field, rows in result["lost"].items():
        differing = [not same(a, b, NEVER_HELD[to] - {field}) for a, b in zip(before, after)]  # noqa: B905
        assert sum(differing) == rows > 0
    assert describe(result).count("not held by") == len(result["lost"])


def test_what_was_lost_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", SOURCES["ours"])
    result = convert(path, tmp_path / "b.json", "drivekd")
    assert result["lost"] == {
        "images": 1, "id": 1, "template": 1, "scene": 1, "frame": 1, "meta": 2,
    }  # fmt: skip
    text = describe(result)
    assert "scene       not held by drivekd in 1 rows" in text
    assert "2 rows of format drivekd → drivekd" in text


def test_a_rows_own_type_is_kept_beside_its_capability(tmp_path: Path) -> None:
    rows = [row(question_type="prediction", capability="mine"), row(question_type=" ")]
    path = write(tmp_path / "a.json", rows)
    assert convert(path, tmp_path / "b.jsonl", "jsonl")["lost"] == {}
    first, second = read(tmp_path / "b.jsonl")
    assert (first.capability, first.meta["question_type"]) == ("mine", "prediction")
    assert second.capability is None
    assert convert(path, tmp_path / "b.json", "drivekd")["lost"]["meta"] == 1


def test_how_many_lines_there_are_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    totals: list[int | None] = []

    def seen(items: Iterable[Any], total: int | None = None, label: str = "") -> Iterable[Any]:
        totals.append(total)
        return items

    for module in ("convert", "info", "corrupt.run", "check.leakage"):
        monkeypatch.setattr(f"drivekd.data.{module}.track", seen)
    picture(tmp_path / "a.jpg", 1)
    path = write(tmp_path / "a.jsonl", [row()] * 3)
    convert(path, tmp_path / "b.jsonl", "jsonl")
    count(read(path), line_count(path))
    exposed_by(path, None)
    assert totals == [3, 3, 3]
    corrupt_data(path, tmp_path / "out", "NoImage", workers=1)
    assert totals[3:] == [3, 1, 3]  # questions read, pictures, questions written
    assert line_count(write(tmp_path / "a.json", [])) is None


def test_drivekd_rows_have_the_keys_of_the_public_samples(tmp_path: Path) -> None:
    convert(write(tmp_path / "a.json", SOURCES["drivelm"]), tmp_path / "b.json", "drivekd")
    (made,) = json.loads((tmp_path / "b.json").read_text())
    assert list(made) == ["messages", "images", "question_type"]
    assert made["question_type"] == "reasoning"
    assert made["images"] == [f"samples/{c}/x__{c}__1.jpg" for c in ("CAM_FRONT", "CAM_BACK")]


def test_sharegpt_keeps_turns_and_the_system_prompt(tmp_path: Path) -> None:
    convert(write(tmp_path / "a.json", SOURCES["sharegpt"]), tmp_path / "b.json", "sharegpt")
    first, second = json.loads((tmp_path / "b.json").read_text())
    assert first["conversations"] == TURNS
    assert second["system"] == "Be brief." and second["conversations"] == TURNS[2:]


def test_tags_in_the_unit_that_is_asked_for(tmp_path: Path) -> None:
    nested = scenes("Is <c1,CAM_FRONT,800.0,450.0> or <c2,CAM_FRONT,1700.0,4.0> far?")
    path = write(tmp_path / "a.json", nested)
    result = convert(path, tmp_path / "b.jsonl", "jsonl", tags="fraction", labels=False)
    assert result["tags_left"] == 1 and "1 rows keep tags" in describe(result)
    (sample,) = read(tmp_path / "b.jsonl")
    said = "<image>Is <c1,CAM_FRONT,0.5000,0.5000> or <c2,CAM_FRONT,1700.0,4.0> far?"
    assert sample.messages[0].content == said
    convert(tmp_path / "b.jsonl", tmp_path / "c.jsonl", "jsonl", tags="pixel")
    (back,) = read(tmp_path / "c.jsonl")
    assert "<c1,CAM_FRONT,800.0,450.0>" in back.question


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row(), row("no placeholder")])
    with pytest.raises(ValueError, match="exists already"):
        convert(path, path, "jsonl")
    with pytest.raises(ValueError, match="row 2: 0 <image>"):
        convert(path, tmp_path / "b.jsonl", "jsonl")
    with pytest.raises(ValueError, match=r"'coco'.*drivekd"):
        convert(path, tmp_path / "b.jsonl", "coco")
    with pytest.raises(ValueError, match="holds no samples"):
        convert(write(tmp_path / "c.jsonl", []), tmp_path / "b.jsonl", "jsonl")
    assert {p.name for p in tmp_path.iterdir()} == {"a.jsonl", "c.jsonl"}


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("source", "to", "lost"),
    [
        ("drivelm/train_sample.json", "jsonl", {}),
        ("drivelm/test_eval.json", "drivekd", dict.fromkeys(("id", "scene", "frame", "meta"), 66)),
        ("drivekd/demo.json", "drivekd", {}),
        ("drivekd/demo.json", "sharegpt", {"capability": 7, "meta": 7}),
    ],
)  # fmt: skip
def test_real_files(
    tmp_path: Path, real_data: Path, source: str, to: Any, lost: dict[str, int]
) -> None:
    path = real_data / source
    result = convert(path, tmp_path / "out.json", to)
    assert result["lost"] == lost
    after = list(read(tmp_path / "out.json", root=path.parent))
    assert all(same(one, other, set(lost)) for one, other in zip(read(path), after, strict=True))


@pytest.mark.real_data
def test_drivekds_own_samples_come_back_word_for_word(tmp_path: Path, real_data: Path) -> None:
    convert(real_data / "drivekd/demo.json", tmp_path / "out.json", "drivekd")
    before = json.loads((real_data / "drivekd/demo.json").read_text())
    for one, other in zip(before, json.loads((tmp_path / "out.json").read_text()), strict=True):
        paths = [path.removeprefix(".../").removeprefix("nuscenes/") for path in one["images"]]
        assert one | {"images": paths} == other
