from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from datafiles import bench, row, scenes, write
from drivekd.data.formats.readers import open_data, read
from drivekd.data.info import count, describe
from drivekd.data.sample import CAMERAS, IMAGE_PLACEHOLDER

messages = partial(row, answer="There.")


def drivelm(question: str, kind: str = "prediction", cameras: tuple[str, ...] = CAMERAS) -> Any:
    nested = scenes(question, kind)
    paths = nested["s1"]["key_frames"]["s1f1"]["image_paths"]
    for camera in set(CAMERAS) - set(cameras):
        del paths[camera]
    return nested


# ---- the real files ----------------------------------------------------------------------------


@pytest.mark.real_data
def test_drivelm_training_sample(real_data: Path) -> None:
    counts = count(read(real_data / "drivelm/train_sample.json"))
    assert counts["capabilities"] == {"perception": 337, "reasoning": 280, "planning": 173}
    assert counts["images_per_sample"] == {"1": 445, "2": 26, "6": 319}
    assert counts["question_types"]["prediction"] == 271
    assert (counts["samples"], counts["scenes"], counts["frames"]) == (790, 2, 9)
    assert (counts["images"], counts["images_missing"], counts["unassigned"]) == (54, 0, 0)


@pytest.mark.real_data
def test_drivelm_challenge(real_data: Path) -> None:
    samples = list(read(real_data / "drivelm/test_eval.json"))
    assert count(samples)["capabilities"] == {"perception": 17, "reasoning": 22, "planning": 27}
    assert all(sample.meta["tag"] for sample in samples)


@pytest.mark.real_data
def test_questions_of_one_frame_share_their_prefix_for_packing(real_data: Path) -> None:
    prefixes = {
        (sample.messages[0].content.rpartition(IMAGE_PLACEHOLDER)[0], *sample.images.values())
        for sample in read(real_data / "drivelm/train_sample.json")
    }
    assert len(prefixes) == 32


@pytest.mark.real_data
def test_drivekd_public_samples(real_data: Path) -> None:
    samples = list(read(real_data / "drivekd/demo.json"))
    counts = count(samples)
    assert counts["capabilities"] == {"perception": 2, "reasoning": 2, "planning": 3}
    assert counts["images_per_sample"] == {"1": 3, "6": 4}
    assert list(samples[1].images)[:2] == ["CAM_FRONT_LEFT", "CAM_FRONT"]  # the file's own order
    assert list(samples[0].images) == ["image_0"]


# ---- DriveLM and DriveBench --------------------------------------------------------------------


def test_a_question_that_names_cameras_gets_only_those_in_the_fixed_order(tmp_path: Path) -> None:
    question = "Is <c2,CAM_BACK,1,2> behind <c1,CAM_FRONT_LEFT,3,4>?"
    (sample,) = read(write(tmp_path / "a.json", drivelm(question)))
    assert list(sample.images) == ["CAM_FRONT_LEFT", "CAM_BACK"]
    expected = f"CAM_FRONT_LEFT: <image>\nCAM_BACK: <image>\n{question}"
    assert sample.messages[0].content == expected
    assert (sample.capability, sample.scene, sample.frame) == ("reasoning", "s1", "s1f1")
    assert sample.answer == "Yes."


def test_any_other_question_gets_all_six(tmp_path: Path) -> None:
    (sample,) = read(write(tmp_path / "a.json", drivelm("What is in CAM_FRONT?", "behavior")))
    assert tuple(sample.images) == CAMERAS
    assert sample.messages[0].content.startswith("CAM_FRONT: <image>\nCAM_FRONT_LEFT: <image>\n")


@pytest.mark.parametrize("below", ["nuscenes", "."])
def test_images_are_found_from_samples_on(tmp_path: Path, below: str) -> None:
    image = tmp_path / below / "samples/CAM_BACK/x__CAM_BACK__1.jpg"
    image.parent.mkdir(parents=True)
    image.touch()
    (sample,) = read(write(tmp_path / "a.json", drivelm("<c1,CAM_BACK,1,2>?")))
    assert sample.images["CAM_BACK"].samefile(image)


def test_images_below_another_root(tmp_path: Path) -> None:
    path = write(tmp_path / "json/a.json", [messages()])
    (sample,) = read(path, root=tmp_path / "pictures")
    assert sample.images == {"image_0": tmp_path / "pictures/a.jpg"}


def test_drivebench_rows(tmp_path: Path) -> None:
    rows = [
        bench("Predict the behavior of the ego vehicle.", "behavior"),
        bench("See <c1,CAM_BACK,0.1,0.2>?", "robust_qas", None),
    ]
    first, second = read(write(tmp_path / "b.json", rows))
    assert (first.capability, first.scene, first.frame) == ("reasoning", "s1", "f1")
    assert (first.template, "inferred" in first.meta) == ("ego_behavior", False)
    assert tuple(first.images) == CAMERAS
    assert (second.capability, list(second.images)) == (None, ["CAM_BACK"])
    assert second.meta == {"question_type": "robust_qas"}


@pytest.mark.parametrize(
    ("question", "tag", "capability"),
    [
        ("What are the important objects in the scene?", 2, "perception"),
        ("In this scenario, what are safe actions to take?", 1, "planning"),
        ("What object should the ego vehicle notice first?", 3, "reasoning"),
        ("Anything at all?", 1, "planning"),
        ("What is the moving status of object <c1,CAM_BACK,0.1,0.2>? A. Up.", 0, "perception"),
        ("Predict the behavior of the ego vehicle. A. Up. B. Down.", 0, "reasoning"),
        ("Is <c1,CAM_BACK,0.1,0.2> a traffic sign or a road barrier?", 0, "reasoning"),
        ("Would it stop?", 0, "reasoning"),
        ("What is odd here?", 0, None),
        ("What is the visual description of <c1,CAM_BACK,0.1,0.2>?", None, "perception"),
        ("Is it odd?", None, None),
    ],
)  # fmt: skip
def test_the_capability_of_a_corruption_row_is_inferred_and_marked(
    tmp_path: Path, question: str, tag: int | None, capability: str | None
) -> None:
    (sample,) = read(write(tmp_path / "b.json", [bench(question, "robust_qas", tag)]))
    assert sample.capability == capability
    assert sample.meta.get("inferred") == ("capability" if capability else None)


def test_prompts_without_camera_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "b.json", [bench("Is <c2,CAM_BACK,0.1,0.2> far?"), bench("Why?")])
    first, second = read(path, labels=False)
    assert first.messages[0].content == "<image>Is <c2,CAM_BACK,0.1,0.2> far?"
    assert second.messages[0].content == "<image>" * 6 + "Why?"


# ---- conversations -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt"])
def test_drivekd_rows_as_list_or_lines(tmp_path: Path, name: str) -> None:
    rows = [messages(id="x"), messages(question_type="prediction"), messages(question_type=None)]
    path = tmp_path / name
    path.write_text("\n".join(map(json.dumps, rows)) if name != "a.json" else json.dumps(rows))
    samples = list(read(path))
    assert [s.capability for s in samples] == ["perception", "reasoning", None]
    assert [s.id for s in samples] == ["x", "2", "3"]
    assert samples[1].source == f"{path}, row 2"


@pytest.mark.parametrize("key", ["data", "items", "samples"])
def test_rows_in_a_list_under_a_key(tmp_path: Path, key: str) -> None:
    path = write(tmp_path / "a.json", {"version": 1, key: [messages(), messages(id="x")]})
    assert [sample.id for sample in read(path)] == ["1", "x"]


@pytest.mark.parametrize(
    ("kind", "capability"),
    [
        ("Perception", "perception"),
        ("prediction", "reasoning"),
        (" behaviour ", "reasoning"),
        (" ", None),
        (" parking ", "parking"),
        ("plan", "planning"),
        ("robust_qas", None),
        ("parking", "parking"),
    ],
)
def test_aliases_of_question_types(tmp_path: Path, kind: str, capability: str | None) -> None:
    (sample,) = read(write(tmp_path / "a.json", [messages(question_type=kind)]))
    assert (sample.capability, sample.meta["question_type"]) == (capability, kind)


def test_question_and_answer_in_place_of_messages(tmp_path: Path) -> None:
    rows = [
        {"question": "<image>Who?", "answer": "I.", "images": ["a.jpg"], "question_type": "plan"},
        {"question": "<image>Who?", "images": ["a.jpg"]},
    ]
    first, second = read(write(tmp_path / "a.json", rows))
    assert (first.answer, first.capability, second.answer) == ("I.", "planning", None)
    assert first.meta == {"question_type": "plan"}


def test_nothing_that_a_row_says_gets_lost(tmp_path: Path) -> None:
    rows = [
        messages() | {"question": "Q", "answer": "A", "system": "Be brief.", "extra": [1]},
        messages(meta={"regions": [49]}, system=""),
    ]
    rows[0]["meta"] = "plain"
    first, second = read(write(tmp_path / "a.json", rows))
    kept = {"question": "Q", "answer": "A", "meta": "plain", "extra": [1]}
    assert first.meta == kept | {"question_type": "perception"}
    assert [m.role for m in first.messages] == ["system", "user", "assistant"]
    assert second.meta == {"regions": [49], "question_type": "perception"}
    assert len(second.messages) == 2


def test_tags_of_a_sample(tmp_path: Path) -> None:
    turns = messages("<image>Is <c1,CAM_FRONT,0.1,0.2> it?", answer="<c2,CAM_FRONT,0.3,0.4>.")
    (sample,) = read(write(tmp_path / "a.json", [turns]))
    assert [(tag.name, tag.camera, tag.x) for tag in sample.tags] == [
        ("c1", "CAM_FRONT", 0.1),
        ("c2", "CAM_FRONT", 0.3),
    ]


@pytest.mark.parametrize(
    ("value", "format"),
    [
        ([messages()], "drivekd"),
        ([{"id": "x"}, messages()], "drivekd"),
        ([bench("Why?")], "drivebench"),
        ([{"conversations": []}], "sharegpt"),
        (scenes("Why?"), "drivelm"),
        (messages(), "drivekd"),
        ({"data": [bench("Why?")]}, "drivebench"),
    ],
)
def test_what_was_detected_is_told(tmp_path: Path, value: Any, format: str) -> None:
    assert open_data(write(tmp_path / "a.json", value)).format == format


def test_wrong_rows_do_not_end_the_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [3, messages("Where?"), messages()])
    entries = list(open_data(path).entries)
    assert [getattr(entry.result, "check", None) for entry in entries] == [
        "row",
        "placeholders",
        None,
    ]
    assert [entry.where for entry in entries] == [f"{path}, row {n}" for n in (1, 2, 3)]


def test_a_row_of_the_embedded_world(tmp_path: Path) -> None:
    labels = "".join(f"{camera}: <image>\n" for camera in CAMERAS)
    row = messages(
        labels + "What colour is <c1,CAM_BACK,0.1000,0.2000><r49>?",
        images=[f"images/7/{camera}.png" for camera in CAMERAS],
        cameras=list(CAMERAS),
        template="colour",
        scene="w7",
        frame="w7",
        meta={"regions": [49]},
        split="val",
    )
    (sample,) = read(write(tmp_path / "questions.jsonl", [row]))
    assert tuple(sample.images) == CAMERAS
    assert sample.images["CAM_BACK"] == tmp_path / "images/7/CAM_BACK.png"
    assert (sample.template, sample.scene, sample.frame) == ("colour", "w7", "w7")
    assert sample.meta == {"regions": [49], "split": "val", "question_type": "perception"}
    assert sample.question == "What colour is <c1,CAM_BACK,0.1000,0.2000><r49>?"


def test_llava_and_sharegpt_conversations(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "<image>\nWhat?"},
        {"from": "gpt", "value": "A car."},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "Yes."},
    ]
    rows = [
        {"id": 1, "image": "a.jpg", "conversations": turns},
        {"id": 2, "conversations": turns[2:], "system": "Be brief.", "capability": "planning"},
    ]
    first, second = read(write(tmp_path / "c.json", rows))
    assert [m.role for m in first.messages] == ["user", "assistant"] * 2
    assert first.images == {"image_0": tmp_path / "a.jpg"} and first.capability is None
    assert second.messages[0].role == "system" and second.images == {}
    assert (second.capability, second.answer) == ("planning", "Yes.")


def test_zero_is_an_id(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "yes"}]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"id": n, "messages": turns} for n in (0, 1, 2)]))
    assert [sample.id for sample in read(path)] == ["0", "1", "2"]


def test_content_in_parts(tmp_path: Path) -> None:
    row = messages()
    row["messages"][0]["content"] = [{"type": "image"}, {"type": "text", "text": "Where?"}]
    (sample,) = read(write(tmp_path / "a.json", [row]))
    assert sample.messages[0].content == "<image>Where?"


def test_two_images_of_one_camera_are_told_apart(tmp_path: Path) -> None:
    images = ["samples/CAM_FRONT/1.jpg", "samples/CAM_FRONT/2.jpg"]
    (sample,) = read(write(tmp_path / "a.json", [messages("<image><image>Which?", images=images)]))
    assert list(sample.images) == ["image_0", "image_1"]


# ---- a user's mistakes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image",
    [
        "../a.jpg",
        "x/../../a.jpg",
        "/etc/passwd",
        "https://a.b/c.jpg",
        "samples/CAM_BACK/../../x",
    ],
)
def test_a_path_that_leaves_the_data_is_refused(tmp_path: Path, image: str) -> None:
    path = write(tmp_path / "a.json", [messages(), messages(images=[image])])
    with pytest.raises(ValueError, match=r"a\.json, row 2: .*(data\.root|download)"):
        list(read(path))


def test_an_absolute_path_inside_the_data_is_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.json", [messages(images=[str(tmp_path / "b/a.jpg")])])
    assert next(read(path)).images == {"image_0": tmp_path / "b/a.jpg"}
    monkeypatch.chdir(tmp_path)
    assert next(read("a.json")).images == {"image_0": Path("b/a.jpg")}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (messages("Where?"), "0 <image> in the user turns but 1 images"),
        (messages(images=["a.jpg", "b.jpg"]), "1 <image> in the user turns but 2 images"),
        (messages(images=3), "`images` must be a list of paths"),
        (messages(cameras=["CAM_FRONT", "CAM_BACK"]), "`cameras` must name each"),
        (messages(images=["a.jpg"] * 100_000), "100000 images in one row, expected at most 1000"),
        (messages(id={"a": 1}), "`id` must be text"),
        (messages(images=["x" * 300]), "is no file name"),
        (messages(images=[""]), "image '' is no file name"),
        (messages(images=["a\0.jpg"]), "is no file name"),
        (messages("<image>" + "x" * 10_000_000, images=[]), "1 <image> in the user turns but 0"),
        ({"messages": "hello"}, "`messages` must be a list"),
        ({"messages": [{"role": "robot", "content": ""}]}, "got 'robot'"),
        ({"messages": [{"role": "user", "content": 3}]}, "must be text, got 3"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "no user turn"),
        ({"messages": ["hello"]}, "a turn must be"),
        ({"question": "x"}, "no known format has the keys ['question']"),
        ({"image_path": {}, "question": "x"}, "`image_path` must map cameras"),
        ({"image_path": {"CAM_FRONT": 3}, "question": "x"}, "must map cameras to paths, got 3"),
        ({"image_path": {"CAM_FRONT": "x"}}, "`question` must be text, got nothing"),
        ({"conversations": [{"from": "bot", "value": ""}]}, "got 'bot'"),
        ([1], "expected a mapping, got list"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, value: Any, said: str) -> None:
    path = write(tmp_path / "a.jsonl", [value])
    with pytest.raises(ValueError) as caught:
        list(read(path))
    assert f"{path}, row 1: " in str(caught.value) and said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"s": {"key_frames": {"f": {"image_paths": {}}}}}, "scene s, frame f: no `QA`"),
        ({"s": {}}, "scene s: no `key_frames`"),
        (
            drivelm("<c1,CAM_LEFT,1,2>?"),
            "the question names ['CAM_LEFT'], but the frame has images",
        ),
        (drivelm("<c1,CAM_BACK,1,2>?", cameras=("CAM_FRONT",)), "the question names ['CAM_BACK']"),
        (drivelm(3), "prediction row 1: expected a mapping with a question"),  # type: ignore[arg-type]
        (3, "expected a list or a mapping"),
        ([], "holds no samples"),
        ({}, "holds no samples"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, value: Any, said: str) -> None:
    path = write(tmp_path / "a.json", value)
    with pytest.raises(ValueError) as caught:
        list(read(path))
    assert str(path) in str(caught.value) and said in str(caught.value)


def test_broken_json_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"messages": [}]')
    with pytest.raises(ValueError, match=r"a\.json, line 1, column 1[67]: .*JSON"):
        read(tmp_path / "a.json")
    (tmp_path / "a.jsonl").write_text(json.dumps(messages()) + "\n\n{oops\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, row 3, column 2: .*JSON"):
        list(read(tmp_path / "a.jsonl"))
    (tmp_path / "b.json").write_bytes(b'["\xff"]')
    with pytest.raises(ValueError, match=r"UTF-8.*byte 2"):
        read(tmp_path / "b.json")
    (tmp_path / "b.jsonl").write_bytes(b'\n["\xff"]')
    with pytest.raises(ValueError, match=r"row 2: .*UTF-8.*byte 2"):
        list(read(tmp_path / "b.jsonl"))


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", "[]"), ("a.json", "{}"), ("a.jsonl", ""), ("a.jsonl", "\n")]
)
def test_no_samples_are_an_error(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="holds no samples"):
        list(open_data(tmp_path / name).samples())
    with pytest.raises(ValueError, match="holds no samples"):
        read(tmp_path / name)


def test_wrong_files_and_formats(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        read(tmp_path / "gone.json")
    with pytest.raises(ValueError, match="is a folder"):
        read(tmp_path)
    path = write(tmp_path / "a.json", [messages()])
    with pytest.raises(ValueError, match="auto, drivelm, drivekd"):
        read(path, "coco")
    with pytest.raises(ValueError, match="scenes"):
        read(path, "drivelm")


def test_counts_for_people(tmp_path: Path) -> None:
    rows = [messages(template="colour"), messages(question_type=None)]
    rows[1]["messages"].pop()
    counts = count(read(write(tmp_path / "a.json", rows)))
    assert (counts["unassigned"], counts["unanswered"], counts["images_missing"]) == (1, 1, 1)
    assert counts["templates"] == {"colour": 1}
    assert counts["turns"] == {"1": 1, "2": 1}
    assert counts["question_words"] == {"mean": 1.0, "longest": 1}
    assert counts["answer_words"] == {"mean": 1.0, "longest": 1}
    text = describe(counts)
    assert "perception 1" in text and "images missing" in text and "frames" not in text
