"""`drivekd prestudy` from the command line to its files, with bad input and with real pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from tests.runs import tiny_student, write_data

from drivekd.cli import app
from drivekd.models.vlm import save
from drivekd.recipe import load
from drivekd.study.prestudy import run
from drivekd.study.tables import prestudy as table

pytestmark = pytest.mark.usefixtures("no_debug")


@pytest.fixture(autouse=True)
def few_general_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivekd.study.prestudy.GENERAL_PICTURES", 2)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "teacher"
    save(tiny_student(seed=3, text_layers=4, initializer_range=0.2), folder)
    return folder


def prestudy(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[Any, str, str]:
    """Exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as ended:
        app.main(["prestudy", *map(str, arguments)])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def studied(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "prestudy.json").read_text(encoding="utf-8"))
    return content


def changed(path: Path, name: str, change: Any) -> Path:
    """A copy of a data file beside it, rows changed; those that become None are left out."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [row for row in (change(row) for row in rows) if row is not None]
    copy = path.with_name(name)
    copy.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return copy


def reworded(row: dict[str, Any]) -> dict[str, Any]:
    question = row["messages"][0]["content"].rpartition("\n")[2]
    return {**row, "paraphrases": [f"Please tell: {question}", f"{question} Answer shortly."]}


def test_everything_is_written_and_train_accepts_the_fragment(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, teacher: Path
) -> None:
    data = changed(write_data(tmp_path), "reworded.jsonl", reworded)
    out = tmp_path / "out"
    given = ("--teacher", teacher, "--data", data, "--student", teacher, "--out", out)
    code, printed, _ = prestudy(capsys, *given)
    assert code in (0, None)
    content = studied(out)
    assert content["lacks"] == {} and content["data"]["samples"] == 15
    assert set(content["curves"]) >= {"adjacent", "vision_text", "margin/general"}
    assert "dispersion/attention/all" in content["curves"]
    assert len(content["curves"]["vision_text"]["mean"]) == content["layers"] + 1 == 5
    for said in ("perception", "reasoning", "planning", "prestudy.png", "answer margin"):
        assert said in printed
    with Image.open(out / "prestudy.png") as picture:
        assert picture.width > 800
    assert "<svg" in (out / "prestudy.svg").read_text(encoding="utf-8")
    alone = load(out / "recipe.fragment.yaml", ["name=mine", f"output_dir={tmp_path}"])
    assert set(alone.capabilities) == {"perception", "reasoning", "planning"}
    assert alone.student == str(teacher)
    below = tmp_path / "recipe.yaml"
    text = {"base": str(out / "recipe.fragment.yaml"), "name": "mine", "output_dir": "x"}
    below.write_text(yaml.safe_dump(text), encoding="utf-8")
    assert load(below).capabilities == alone.capabilities


def test_a_folder_keeps_to_one_teacher(tmp_path: Path, teacher: Path) -> None:
    data, other = write_data(tmp_path), tmp_path / "other"
    save(tiny_student(seed=4, text_layers=4), other)
    run(str(teacher), data, tmp_path / "out", max_samples=4)
    with pytest.raises(ValueError, match=r"out holds the pre-study of .*teacher: name another"):
        run(str(other), data, tmp_path / "out", max_samples=4)
    run(str(teacher), data, tmp_path / "out", max_samples=5)
    assert studied(tmp_path / "out")["data"]["samples"] == 5


def test_samples_that_cannot_be_studied_are_named(tmp_path: Path, teacher: Path) -> None:
    data = write_data(tmp_path)
    no_kind = changed(data, "none.jsonl", lambda row: {**row, "question_type": None})
    with pytest.raises(ValueError, match="none of 15 samples says which capability"):
        run(str(teacher), no_kind, tmp_path / "out")
    long = changed(data, "long.jsonl", lambda row: {**row, "paraphrases": ["on " * 40_000]})
    with pytest.raises(ValueError, match=r"row 1: sample 's0q0~1' is longer \(\d+ tokens"):
        run(str(teacher), long, tmp_path / "out")


def test_the_same_seed_gives_the_same_study(tmp_path: Path, teacher: Path) -> None:
    data = write_data(tmp_path)
    one, two, other = (
        run(str(teacher), data, tmp_path / str(n), max_samples=9, seed=seed)
        for n, seed in enumerate((0, 0, 1))
    )
    assert one == two and one["curves"] != other["curves"]


@pytest.mark.parametrize(
    ("change", "panel", "said"),
    [
        (lambda row: row, "c", "samples with paraphrases: need 2, have 0"),
        (
            lambda row: row if row["question_type"] != "planning" else None,
            "b",
            "planning samples: need 2, have 0",
        ),
        (
            lambda row: row if row["question_type"] != "reasoning" or "s0" in row["id"] else None,
            "b",
            "reasoning samples: need 2, have 1",
        ),
        (
            lambda row: {
                **row,
                "images": [],
                "cameras": [],
                "messages": [{"role": "user", "content": "What?"}, row["messages"][1]],
            },
            "a",
            "samples with images: need 2, have 0",
        ),
        (
            lambda row: {
                **row,
                "messages": [row["messages"][0], {"role": "assistant", "content": "2"}],
            },
            "d",
            "driving answers of two tokens or more: need 2, have 0",
        ),
        (
            lambda row: {**row, "messages": row["messages"][:1]},
            "d",
            "driving answers: need 2, have 0",
        ),
    ],
    ids=[
        "no paraphrases",
        "a capability missing",
        "one sample",
        "text only",
        "one token",
        "no answers",
    ],
)
def test_what_lacks_data_is_said_and_the_rest_is_there(
    tmp_path: Path, teacher: Path, change: Any, panel: str, said: str
) -> None:
    data = changed(write_data(tmp_path), "changed.jsonl", change)
    out = tmp_path / "out"
    content = run(str(teacher), data, out)
    assert json.loads(json.dumps(content)) == studied(out)
    assert said in content["lacks"][panel]
    assert f"not enough data: {said}" in " ".join(table(content).split())
    assert "adjacent" in content["curves"] and "margin/general" in content["curves"]
    load(out / "recipe.fragment.yaml", ["name=x", "student=y", "output_dir=z"])


def test_a_picture_that_cannot_be_read_ends_in_one_line_and_no_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, teacher: Path
) -> None:
    data = write_data(tmp_path)
    (tmp_path / "1_CAM_FRONT.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    code, _, err = prestudy(capsys, "--teacher", teacher, "--data", data, "--out", out)
    assert code == 2 and "1_CAM_FRONT.png" in err and len(err.strip().splitlines()) == 1
    assert not (out / "prestudy.json").exists() and not (out / "recipe.fragment.yaml").exists()


@pytest.mark.parametrize(
    ("error", "expected", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "--dtype bfloat16"),
    ],
    ids=["interrupt", "out of memory"],
)
def test_what_ends_a_reading_ends_in_one_line_and_no_files(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    teacher: Path,
    error: BaseException,
    expected: int,
    said: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("drivekd.study.measuring.read_row", fail)
    given = ("--teacher", teacher, "--data", write_data(tmp_path), "--out", tmp_path / "out")
    code, _, err = prestudy(capsys, *given)
    assert code == expected and said in err and len(err.strip().splitlines()) == 1
    assert not list((tmp_path / "out").glob("*prestudy*"))


@pytest.mark.parametrize(
    ("option", "value"),
    [("--teacher", "no/model"), ("--student", "no/model"), ("--data", "no.jsonl")],
)
def test_what_is_not_there_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, teacher: Path, option: str, value: str
) -> None:
    given: dict[str, str | Path] = {
        "--teacher": teacher,
        "--data": write_data(tmp_path),
        "--out": tmp_path / "out",
    }
    words = [word for pair in {**given, option: value}.items() for word in pair]
    code, _, err = prestudy(capsys, *words)
    assert code == 2 and value in err and len(err.strip().splitlines()) == 1
