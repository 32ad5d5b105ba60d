"""Every check finds its planted fault, and only that; a clean file has no finding."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datafiles import bench, picture, row, scenes, six, write
from drivekd.data.check.findings import CHECKS
from drivekd.data.check.run import check, table
from drivekd.data.formats.readers import read
from drivekd.data.sample import CAMERAS

MCQ = "<image>What does it do? Please select the correct answer from the following options: "


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a.jpg, b.jpg and the six pictures that `six` names."""
    picture(tmp_path / "a.jpg", 1)
    picture(tmp_path / "b.jpg", 2)
    for seed, camera in enumerate(CAMERAS, 10):
        picture(tmp_path / f"samples/{camera}/x__{camera}__1.jpg", seed)
    return tmp_path


def clean() -> list[Any]:
    return [
        row("<image>What is at <c1,CAM_FRONT,0.4678,0.6772>?", "A car (red)."),
        row(MCQ + "A. Going ahead. B. Turn left. C. Turn right.", "Final: {A. Going ahead.}"),
        six("What are the important objects?", "<c1,CAM_BACK,0.1000,0.2000> is, in short."),
        six("Is <c2,CAM_BACK_LEFT,0.9000,0.5000> moving?", "Yes.", question_type="planning"),
        row("<image>Why?", "Because of that.", question_type="reasoning"),
    ]


def found(report: dict[str, Any]) -> dict[str, int]:
    return {each["check"]: each["rows"] for each in report["checks"]}


def test_a_clean_file_has_no_finding(folder: Path) -> None:
    report = check(write(folder / "a.jsonl", clean()))
    assert report["checks"] == [] and (report["errors"], report["warnings"]) == (0, 0)
    assert (report["rows"], report["format"], report["unit"]) == (5, "drivekd", "fraction")
    assert report["images"] == {"files": 7, "bad": 0}
    assert report["capabilities"] == {"perception": 3, "planning": 1, "reasoning": 1}
    assert "0 errors, 0 warnings" in table(report)


#: check → rows that are added to the clean ones, and words of the message
PLANTED: dict[str, tuple[list[Any], str]] = {
    "row": ([{"messages": "hello"}], "`messages` must be a list"),
    "image_path": ([row(images=["../../etc/passwd"])], "leaves the data's folder"),
    "placeholders": ([row("<image><image>Where?")], "2 <image> in the user turns but 1 images"),
    "camera_absent": (
        [six("Is <c1,CAM_BACK,0.1,0.2> far?", order=("CAM_FRONT",))],
        "names CAM_BACK, has CAM_FRONT",
    ),
    "image_missing": ([row(images=["gone.jpg"])], "gone.jpg: there is no such file"),
    "image_unreadable": ([row(images=["text.jpg"])], "text.jpg: cannot be read as an image"),
    "tag_unit": (
        [row("<image>What is at <c1,CAM_FRONT,714.3,503.6>?")],
        "<c1,CAM_FRONT,714.3,503.6> is in pixels, the file in fractions",
    ),
    "tag_range": (
        [row("<image>What is it?", "It is <c1,CAM_FRONT,4.32,0.85>.")],
        "<c1,CAM_FRONT,4.32,0.85> is outside the picture",
    ),
    "answer_option": (
        [row(MCQ + "A. Going ahead. B. Stopped.", "C")], "answers C, offered are A, B"
    ),
    "option_repeat": (
        [row(MCQ + "A. Stopped. B. Turn left. C. stopped", "B")], "options A and C are both"
    ),
    "truncated": (
        [row("<image>Which are they?", "They are <c1,CAM_FRONT,0.8441,0.83")], "tag is not closed"
    ),
    "empty_turn": ([row("<image> ", "Yes.")], "turn 1 (user) holds no words"),
    "contradiction": (
        [row("<image>Is it safe?", "Yes."), row("<image>Is it safe?", "No, it is not.")],
        "answers 'No, it is not.', row 6 asks the same",
    ),
    "duplicate": (
        [row("<image>Is it far?", "Yes."), row("<image>Is it far?", "yes")],
        "says what row 6 says",
    ),
    "answers_differ": (
        [row("<image>What is it?", "A car."), row("<image>What is it?", "A bus.")],
        "answers 'A bus.', row 6 asks",
    ),
    "camera_order": (
        [six("Where?", order=(*CAMERAS[:4], "CAM_BACK_RIGHT", "CAM_BACK_LEFT"))],
        "BACK_RIGHT, BACK_LEFT; earlier rows FRONT, FRONT_LEFT",
    ),
    "unassigned": ([row("<image>Who?", question_type=None)], "question_type is absent"),
    "unanswered": ([row("<image>Who?", None)], "the last turn is not the assistant's"),
    "majority": (
        [
            row(f"<image>Is {n} ok?", "No." if n else "Yes.", template="ok", question_type=kind)
            for n, kind in enumerate(("perception", "reasoning", "planning", "planning") * 5)
        ],
        "ok: 95 % of 20 answers are 'no'",
    ),
    "imbalance": (
        [row(f"<image>Is {n} ok?", f"{n}") for n in range(40)], "planning: 1 of 45 rows"
    ),
}  # fmt: skip
IN_PAIRS = {"contradiction": 2, "answers_differ": 2, "imbalance": 2}


def test_every_check_is_planted_somewhere() -> None:
    leaks = {name for name in CHECKS if name.startswith("leak_")}
    assert set(CHECKS) == set(PLANTED) | leaks and len(leaks) == 4


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_and_nothing_else(folder: Path, name: str) -> None:
    (folder / "text.jpg").write_text("no picture")
    rows, said = PLANTED[name]
    report = check(write(folder / "a.jsonl", clean() + rows))
    assert found(report) == {name: IN_PAIRS.get(name, 1)}
    severity = CHECKS[name][0]
    assert bool(report["errors"]) == (severity == "error")
    assert bool(report["warnings"]) == (severity == "warning")
    (each,) = report["checks"]
    assert any(said in shown["message"] for shown in each["shown"]), each["shown"]
    assert (name in table(report) and f"1 {severity}" in table(report)) or name in IN_PAIRS


def test_every_turn_is_looked_at(folder: Path) -> None:
    several = row(MCQ + "A. Going ahead. B. Stopped.", "C")
    several["messages"] += [{"role": "user", "content": "Sure?"}]
    several["messages"] += [{"role": "assistant", "content": "Yes, of course."}]
    report = check(write(folder / "a.jsonl", [several]))
    assert found(report) == {"answer_option": 1}
    several["messages"][1]["content"] = "B. It stands behind the"
    report = check(write(folder / "a.jsonl", [several]))
    assert found(report) == {"truncated": 1}


@pytest.mark.parametrize(
    ("answer", "cut"),
    [
        ("Final: {A. Going", True),
        ("The car and the", True),
        ("It is red, blue,", True),
        ("A", False),
        ("keep going at the same speed", False),
        ("The lights are on", False),
        ("1) stop 2) go", False),
    ],
)
def test_where_an_answer_breaks_off(folder: Path, answer: str, cut: bool) -> None:
    report = check(write(folder / "a.jsonl", [row("<image>What?", answer)]))
    assert found(report) == ({"truncated": 1} if cut else {})


@pytest.mark.parametrize(
    ("rows", "where"),
    [
        ([b'{"messages": [}'], "no valid JSON"),
        ([b"\xff\xfe{\x00"], "no UTF-8 text"),
        ([b'{"messages": [], "messages": []}'], "the key 'messages' is given twice"),
        ([b'{"messages": NaN}'], "NaN is no number in JSON"),
        ([b'{"messages": 1e999}'], "'1e999' is too large"),
        ([b'{"messages": "\\ud800"}'], "half a surrogate pair"),
        ([b"[" * 100_000], "nested deeper than 64 levels"),
        ([b"[" * 70 + b"]" * 70], "nested deeper than 64 levels"),
        ([b"9" * 5000], "integer string conversion"),
    ],
)
def test_rows_that_are_no_json_do_not_hide_the_others(
    folder: Path, rows: list[bytes], where: str
) -> None:
    whole = [json.dumps(each).encode() for each in clean()]
    (folder / "a.jsonl").write_bytes(b"\n".join([*whole[:2], *rows, *whole[2:]]))
    report = check(folder / "a.jsonl")
    assert found(report) == {"row": 1} and report["rows"] == 6
    (each,) = report["checks"]
    assert each["shown"][0]["where"].endswith("row 3") and where in each["shown"][0]["message"]


def test_a_picture_that_was_cut_short_is_found(folder: Path) -> None:
    whole = (folder / "a.jpg").read_bytes()
    (folder / "a.jpg").write_bytes(whole[: len(whole) // 2])
    report = check(write(folder / "a.jsonl", clean()))
    assert found(report) == {"image_unreadable": 3}
    assert "truncated" in report["checks"][0]["shown"][0]["message"]


def test_the_unit_is_the_one_of_most_tags(folder: Path) -> None:
    rows = [scenes(f"What is <c1,CAM_BACK,{x}.5,300.0>?", scene=f"s{x}") for x in range(2, 8)]
    rows.append(scenes("What is <c1,CAM_BACK,0.4,0.5>?", scene="s9"))
    rows.append(scenes("What is <c1,CAM_BACK,1700.0,0.5>?", scene="s10"))
    merged = {key: value for each in rows for key, value in each.items()}
    for camera in CAMERAS:
        os.link(folder / f"samples/{camera}/x__{camera}__1.jpg", folder / f"{camera}.jpg")
    report = check(write(folder / "a.json", merged))
    assert report["unit"] == "pixel"
    assert found(report) == {"tag_unit": 1, "tag_range": 1}


# ---- leakage -----------------------------------------------------------------------------------


def leaking(folder: Path, train: Any, test: Any) -> dict[str, Any]:
    report = check(write(folder / "train.jsonl", [train]), write(folder / "test.jsonl", [test]))
    assert report["leakage"] is not None
    return report


def test_no_leak(folder: Path) -> None:
    mine, other = row("<image>Who?", scene="s1", frame="f1"), row("<image>Who?", images=["b.jpg"])
    report = leaking(folder, mine, other | {"scene": "s2", "frame": "f2"})
    assert report["checks"] == []
    shared = {"scenes": 0, "frames": 0, "names": 0, "pictures": 0, "unseen": 0, "skipped": 0}
    assert report["leakage"] == {"test": str(folder / "test.jsonl"), **shared}


@pytest.mark.parametrize(("key", "name"), [("scene", "leak_scene"), ("frame", "leak_frame")])
def test_a_token_of_the_test_set_leaks(folder: Path, key: str, name: str) -> None:
    report = leaking(folder, row(**{key: "t1"}), row(images=["b.jpg"], **{key: "t1"}))
    assert found(report) == {name: 1} and report["leakage"][f"{key}s"] == 1
    assert "'t1'" in report["checks"][0]["shown"][0]["message"]


def test_an_image_name_leaks_also_from_another_folder(folder: Path) -> None:
    name = "n015-2018-08-03-15-00-36+0800__CAM_FRONT__1533280036112460"
    picture(folder / f"train/{name}.jpg", 5)
    picture(folder / f"test/{name}.png", 6)
    mine, other = row(images=[f"train/{name}.jpg"]), row(images=[f"test/{name}.png"])
    report = leaking(folder, mine, other)
    assert found(report) == {"leak_name": 1} and report["leakage"]["names"] == 1


def test_names_that_every_frame_has_are_no_leak(folder: Path) -> None:
    picture(folder / "images/7/CAM_FRONT.png", 5)
    picture(folder / "images/9/CAM_FRONT.png", 6)
    mine, other = (row(images=[f"images/{n}/CAM_FRONT.png"]) for n in (7, 9))
    assert leaking(folder, mine, other)["checks"] == []


@pytest.mark.parametrize("quality", [30, 50, 95])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_picture_that_was_saved_again_leaks(folder: Path, quality: int, scale: float) -> None:
    with Image.open(folder / "a.jpg") as image:
        size = (round(scale * image.width), round(scale * image.height))
        image.resize(size).save(folder / "again.jpg", quality=quality)
    report = leaking(folder, row(images=["again.jpg"]), row())
    assert found(report) == {"leak_picture": 1} and report["leakage"]["pictures"] == 1
    message = report["checks"][0]["shown"][0]["message"]
    assert "again.jpg is like" in message and "a.jpg (" in message


def test_pictures_without_contrast_are_like_nothing(folder: Path) -> None:
    for name, grey in (("x.png", 90), ("y.png", 91)):
        Image.new("RGB", (320, 180), (grey, grey, grey)).save(folder / name)
    report = leaking(folder, row(images=["x.png"]), row(images=["y.png"]))
    assert report["checks"] == [] and report["images"]["bad"] == 0
    assert report["leakage"]["unseen"] == 1
    assert "1 test pictures are missing or blank: not compared" in table(report)


# ---- clean copies ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_clean_copy_and_the_list_of_what_is_not_in_it(folder: Path, name: str) -> None:
    bad = [row(images=["gone.jpg"]), {"messages": 3}, row("<image>Who?", question_type=None)]
    path = write(folder / name, [bad[0], *clean(), bad[1], clean()[0], bad[2]])
    before, fixed = path.read_bytes(), folder / f"fixed-{name}"
    report = check(path, fix=fixed)
    beside = folder / f"fixed-{name}.dropped.jsonl"
    named = {"file": str(fixed), "list": str(beside)}
    assert report["cleaned"] == {**named, "kept": 6, "dropped": 3}
    assert path.read_bytes() == before
    again = check(fixed)
    assert found(again) == {"unassigned": 1} and again["rows"] == 6
    dropped = [json.loads(line) for line in beside.read_text().splitlines()]
    reasons = [[why["check"] for why in each["why"]] for each in dropped]
    assert reasons == [["image_missing"], ["row"], ["duplicate"]]
    assert [each["where"] for each in dropped] == [f"{path}, row {n}" for n in (1, 7, 8)]
    rows = fixed.read_text().splitlines() if name == "a.jsonl" else json.loads(fixed.read_text())
    assert [json.loads(r) if isinstance(r, str) else r for r in rows] == [*clean(), bad[2]]


def test_a_clean_copy_of_nested_scenes(folder: Path) -> None:
    nested = scenes("Is <c1,CAM_BACK,100.0,200.0> far?") | scenes("What?", scene="s2")
    frame = nested["s1"]["key_frames"]["s1f1"]
    frame["key_object_infos"] = {"<c1,CAM_BACK,100.0,200.0>": {"Status": None}}
    frame["QA"]["planning"] = [{"Q": "Why?", "A": "So and"}, {"Q": "When?", "A": "Now."}]
    nested["s2"]["key_frames"]["s2f1"]["QA"]["prediction"] = [{"A": "no question"}]
    nested["s3"] = {"no": "frames"}
    path = write(folder / "a.json", nested)
    report = check(path, fix=folder / "b.json")
    assert report["cleaned"]["kept"] == 2 and report["cleaned"]["dropped"] == 3
    kept = json.loads((folder / "b.json").read_text())
    assert list(kept) == ["s1"]
    frame["QA"]["planning"].pop(0)
    assert kept["s1"] == nested["s1"]
    assert len(list(read(folder / "b.json"))) == 2


@pytest.mark.parametrize("taken", ["a.jsonl", "b.jsonl", "c.jsonl.dropped.jsonl"])
def test_nothing_is_overwritten(folder: Path, taken: str) -> None:
    path = write(folder / "a.jsonl", clean())
    write(folder / taken, clean())
    with pytest.raises(ValueError, match="exists"):
        check(path, fix=folder / taken.removesuffix(".dropped.jsonl"))
    assert sorted(p.name for p in folder.glob(".*")) == []


def test_a_copy_that_fails_leaves_nothing(folder: Path) -> None:
    path = write(folder / "a.jsonl", [])
    with pytest.raises(ValueError, match="holds no samples"):
        check(path, fix=folder / "b.jsonl")
    assert {p.name for p in folder.iterdir()} == {"a.jsonl", "a.jpg", "b.jpg", "samples"}


# ---- many rows, and the real files -------------------------------------------------------------


def test_findings_beyond_those_shown_are_counted(folder: Path) -> None:
    rows = [row(f"<image>What is {n}?", "The car and the") for n in range(500)]
    report = check(write(folder / "a.jsonl", rows))
    each = report["checks"][0]
    assert (each["check"], each["rows"], len(each["shown"])) == ("truncated", 500, 200)
    assert report["errors"] == 500


def test_a_benchmark_is_checked_too(folder: Path) -> None:
    rows = [
        bench(MCQ.removeprefix("<image>") + "A. Going ahead. B. Stopped."),
        bench("What are the important objects?", "robust_qas", 2, answer="None."),
        bench("Is <c1,CAM_SIDE,0.1,0.2> far?"),
    ]
    report = check(write(folder / "a.json", rows))
    assert found(report) == {"camera_absent": 1} and report["format"] == "drivebench"


@pytest.mark.real_data
def test_every_known_fault_of_the_public_samples(real_data: Path) -> None:
    report = check(real_data / "drivekd/demo.json")
    assert found(report) == {
        "image_missing": 7, "tag_range": 1, "truncated": 1, "camera_order": 2,
    }  # fmt: skip
    rows = {each["check"]: [r["where"][-1] for r in each["shown"]] for each in report["checks"]}
    assert (rows["tag_range"], rows["truncated"], rows["camera_order"]) == (
        ["3"],
        ["2"],
        ["3", "6"],
    )
    assert report["errors"] == 9


@pytest.mark.real_data
def test_drivelm_has_no_error_but_those_of_leaking_into_its_challenge(real_data: Path) -> None:
    train, test = real_data / "drivelm/train_sample.json", real_data / "drivelm/test_eval.json"
    report = check(train, test)
    leaks = dict.fromkeys(("leak_scene", "leak_frame", "leak_name", "leak_picture"), 790)
    assert found(report) == leaks | {"duplicate": 15, "answers_differ": 4, "majority": 3}
    assert report["errors"] == 4 * 790 and report["unit"] == "pixel"
    assert report["leakage"] == {
        "test": str(test), "scenes": 2, "frames": 9, "names": 54, "pictures": 54, "unseen": 0,
        "skipped": 0,
    }  # fmt: skip


@pytest.mark.real_data
def test_the_benchmarks_frames_leak_by_their_list_alone(real_data: Path, tmp_path: Path) -> None:
    """DriveBench's questions are not needed to find and to drop what its frames share."""
    listed = real_data / "drivebench/visual_description.json"
    train = real_data / "drivelm/train_sample.json"
    report = check(train, listed, fix=tmp_path / "clean.json")
    assert report["leakage"]["frames"] == report["leakage"]["scenes"] == 1
    leaked = next(each for each in report["checks"] if each["check"] == "leak_frame")
    assert all("1b45a97a0e5e49fe9cd345dd4bd729c3" in each["where"] for each in leaked["shown"])
    kept = {sample.scene for sample in read(tmp_path / "clean.json", root=train.parent)}
    assert kept == {"f0f120e4d4b0441da90ec53b16ee169d"}


@pytest.mark.real_data
def test_real_pictures_saved_again_are_found_and_others_are_not(
    real_data: Path, tmp_path: Path
) -> None:
    """Another name, another folder, another size and quality: only the pixels can tell."""
    files = sorted((real_data / "drivelm/nuscenes/samples/CAM_FRONT").glob("*.jpg"))
    copied = files[::3]
    for number, file in enumerate(copied):
        with Image.open(file) as image:
            half = image.resize((image.width // 2, image.height // 2))
            half.save(tmp_path / f"{number}.jpg", quality=30)
    buffer = io.BytesIO()
    with Image.open(files[1]) as image:
        image.save(buffer, "PNG")
    (tmp_path / "train").mkdir()
    for number, file in enumerate(files):
        (tmp_path / f"train/t{number}.jpg").symlink_to(file)
    train = [row("<image>What?", images=[f"train/t{n}.jpg"]) for n in range(len(files))]
    test = [row("<image>What?", images=[f"{n}.jpg"]) for n in range(len(copied))]
    report = check(write(tmp_path / "a.jsonl", train), write(tmp_path / "b.jsonl", test))
    leaks = next(each for each in report["checks"] if each["check"] == "leak_picture")
    numbers = [int(re.findall(r"row (\d+)", each["where"])[0]) - 1 for each in leaks["shown"]]
    assert numbers == list(range(0, len(files), 3))
