"""`drivekd evaluate` and `compare` from the command line to their files."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.runs import tiny_student, write_data

from drivekd.cli import app
from drivekd.models.vlm import save
from evaluate.chat_server import fill, serving

pytestmark = pytest.mark.usefixtures("no_debug")

CONTROLS = ("", "black", "majority")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save(tiny_student(), folder)
    return folder


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[Any, str, str]:
    """Exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as ended:
        app.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def content(folder: Path, name: str = "scores.json") -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_answers_controls_verdicts_and_scores_are_written_and_kept(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path
) -> None:
    data, out = write_data(tmp_path / "data"), tmp_path / "out"
    given = ("evaluate", "--model", model, "--data", data, "--out", out, "--max-new-tokens", 6)
    judged = ("--judge", "scripted", "--runs", 3)
    code, printed, _ = call(capsys, *given, *judged)
    assert code == 0 and "planning" in printed and str(out / "report.html") in printed
    for control in CONTROLS:
        answers, verdicts = (rows(out / control / f"{n}.jsonl") for n in ("answers", "verdicts"))
        assert len({row["id"] for row in answers}) == len(answers) == 15  # greedy: asked once
        assert Counter(v["id"] for v in verdicts) == {row["id"]: 3 for row in answers}
        assert {v["run"] for v in verdicts} == {0, 1, 2}
    scores = content(out)
    assert set(scores["capabilities"]) == {"perception", "reasoning", "planning"}
    assert scores["judged"] and scores["controls"]
    settings = content(out, "evaluation.json")
    assert settings["model"] == str(model) and settings["judge"]["runs"] == 3
    assert len(content(out, "predictions.json")) == 15

    before = (out / "answers.jsonl").read_bytes(), (out / "scores.json").read_bytes()
    assert call(capsys, *given, *judged)[0] == 0
    assert before == ((out / "answers.jsonl").read_bytes(), (out / "scores.json").read_bytes())


def test_drawn_answers_are_judged_once_each(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path
) -> None:
    data, out = write_data(tmp_path / "data"), tmp_path / "out"
    given = ("--max-new-tokens", 6, "--temperature", 1.5, "--runs", 3, "--judge", "scripted")
    code, _, _ = call(capsys, "evaluate", "--model", model, "--data", data, "--out", out, *given)
    assert code == 0
    answers, verdicts = rows(out / "answers.jsonl"), rows(out / "verdicts.jsonl")
    assert len(answers) == len(verdicts) == 45
    assert {v["run"] for v in verdicts} == {0} and {v["answer_run"] for v in verdicts} == {0, 1, 2}
    assert len({row["reply"] for row in answers if row["id"] == "s0q0"}) > 1
    assert (out / "predictions-run2.json").is_file()


def test_predictions_of_another_system_are_scored_and_compared(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path
) -> None:
    data = write_data(tmp_path / "data", scenes=8)
    first, second = tmp_path / "first", tmp_path / "second"
    common = ("--max-new-tokens", 6, "--judge", "scripted")
    call(capsys, "evaluate", "--model", model, "--data", data, "--out", first, *common)
    theirs = content(first, "predictions.json")
    for row in theirs:
        row["pred"] = row["answer"]
    (tmp_path / "data" / "theirs.json").write_text(json.dumps(theirs))
    given = ("--data", tmp_path / "data" / "theirs.json", "--judge", "scripted")
    code, _, err = call(capsys, "evaluate", *given, "--out", second)
    assert code == 0, err
    assert content(second)["average"]["accuracy"] == 100
    assert not (second / "black").exists() and (second / "majority").is_dir()
    code, printed, err = call(capsys, "compare", first, second, "--out", tmp_path / "c.json")
    assert code == 0, err
    assert "better" in printed and (tmp_path / "c.json").is_file()


def test_a_judge_on_a_server_is_asked_with_the_key_of_the_environment(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, out = write_data(tmp_path / "data", scenes=2), tmp_path / "out"
    monkeypatch.setenv("MY_KEY", "secret-of-the-judge")
    given = ("evaluate", "--model", model, "--data", data, "--out", out, "--max-new-tokens", 4)
    with serving(fill) as server:
        judge = ("--judge", server.url, "--judge-model", "m", "--judge-key-env", "MY_KEY")
        code, _, err = call(capsys, *given, *judge, "--price", "1,1", "--max-cost", 10)
    assert code == 0, err
    assert server.headers and all("secret-of-the-judge" in head for head in server.headers)
    assert all(verdict["status"] == "scored" for verdict in rows(out / "verdicts.jsonl"))
    for path in out.rglob("*"):
        assert not path.is_file() or b"secret-of-the-judge" not in path.read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--judge", "http://127.0.0.1:9"), "--judge-model"),
        (("--judge", "scripted", "--judge-model", "m"), "--judge-model belongs to a judge"),
        (("--judge", "scripted", "--price", "1"), "two numbers"),
        (("--judge", "scripted", "--max-cost", "1"), "prices"),
        (("--judge", "local:/no/such/folder"), "/no/such/folder"),
        (("--system", "/no/such/file"), "/no/such/file"),
        (("--train", "/no/such/file"), "/no/such/file"),
        (("--top-p", "0"), "top_p"),
        (("--judge", "scripted", "--rubric", "/no/such/file"), "/no/such/file"),
        (("--rubric", "/no/such/file"), "--rubric is for a judge"),
        (("--retry-unscored",), "--retry-unscored is for a judge"),
        (("--max-cost", "0"), "--max-cost is for a judge"),
        (("--no-controls", "--train", "x"), "--train is for the controls"),
        (("--judge", "scripted", "--judge-temperature", "1"), "--judge is scripted"),
        (("--key-env", "MY_KEY"), "--judge-key-env"),
        (("--server", "127.0.0.1:8000"), "http://127.0.0.1:8000/v1"),
    ],
)
def test_a_slip_is_one_line_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    options: tuple[str, ...],
    said: str,
) -> None:
    data, out = write_data(tmp_path / "data", scenes=2), tmp_path / "out"
    given = ("evaluate", "--model", "/no/such/model", "--data", data, "--out", out)
    code, _, err = call(capsys, *given, *options)
    assert code == 2
    assert said in err and len(err.strip().splitlines()) == 1
    assert not (out / "answers.jsonl").exists()


QUESTION = "What does the car do? Please select: A. Going ahead. B. Turn left. C. Turn right."


def predictions(folder: Path, *replies: str, scenes: int = 8) -> Path:
    """DriveBench rows of one question each, of which B is right, with these replies in turn."""
    rows = [
        {
            "scene_token": f"s{n}",
            "frame_token": f"f{n}",
            "question_type": "perception",
            "question": QUESTION,
            "answer": "B",
            "tag": [0],
            "image_path": {"CAM_FRONT": "a.jpg"},
            "pred": replies[n % len(replies)],
        }
        for n in range(scenes)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "predictions.json"
    path.write_text(json.dumps(rows))
    return path


def test_options_that_a_question_lists_are_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = predictions(tmp_path, "The answer is B.", "Turn left.", "A", "Perhaps.")
    code, printed, err = call(capsys, "evaluate", "--data", data, "--out", tmp_path / "out")
    assert code == 0, err
    scores = content(tmp_path / "out")
    assert scores["capabilities"]["perception"]["accuracy"] == 50
    assert scores["unreadable"] == {"perception": 2} and "text" not in scores
    assert "2 replies unreadable" in printed


def test_verdicts_of_other_answers_or_judges_do_not_stay(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    data = predictions(tmp_path, "B")
    given = ("evaluate", "--data", data, "--out", out)
    assert call(capsys, *given, "--judge", "scripted")[0] == 0
    assert rows(out / "verdicts.jsonl") and content(out, "evaluation.json")["judge"]
    with serving(lambda prompt: "", lambda n, body: "body 401 {}") as server:
        code, _, err = call(capsys, *given, "--judge", server.url, "--judge-model", "gpt")
    assert code == 1 and "401" in err
    assert content(out, "evaluation.json")["judge"]["model"] == "gpt"
    assert not (out / "verdicts.jsonl").exists()
    predictions(tmp_path, "nonsense")
    assert call(capsys, *given)[0] == 0
    assert "judged" not in content(out) and not (out / "majority" / "verdicts.jsonl").exists()


def test_what_a_judge_is_told_makes_it_another_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    given = ("evaluate", "--data", predictions(tmp_path, "B"), "--judge", "scripted", "--out")
    described = {"key_frames": {"f0": {"key_object_infos": {}}}}
    (tmp_path / "d.json").write_text(json.dumps({"s0": described}))
    call(capsys, *given, first)
    assert call(capsys, *given, second, "--descriptions", tmp_path / "d.json")[0] == 0
    code, _, err = call(capsys, "compare", first, second)
    assert code == 2 and "judge" in err
    assert call(capsys, "compare", first, second, "--accuracy-only")[0] == 0


def test_a_folder_holds_one_evaluation(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path
) -> None:
    data, out = write_data(tmp_path / "data", scenes=2), tmp_path / "out"
    given = ("evaluate", "--model", model, "--data", data, "--out", out, "--max-new-tokens", 2)
    assert call(capsys, *given, "--max-samples", 6)[0] == 0
    before = (out / "answers.jsonl").read_bytes()
    code, _, err = call(capsys, *given, "--max-samples", 4)
    assert code == 2 and "write elsewhere" in err
    code, _, err = call(capsys, "evaluate", "--data", out / "predictions.json", "--out", out)
    assert code == 2 and "of another model" in err
    assert call(capsys, *given, "--dtype", "bfloat16")[0] == 2
    assert (out / "answers.jsonl").read_bytes() == before
    assert call(capsys, *given)[0] == 0
    assert len(rows(out / "answers.jsonl")) == 10


@pytest.mark.parametrize(
    ("change", "said"),
    [({"answer": "."}, "sample '1'.*empty"), ({"id": "same"}, "occurs twice")],
)
def test_what_cannot_be_scored_is_named_at_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, change: dict[str, str], said: str
) -> None:
    path = predictions(tmp_path, "B", scenes=2)
    path.write_text(json.dumps([row | change for row in json.loads(path.read_text())]))
    given = ("--judge", "scripted", "--out", tmp_path / "out")
    code, _, err = call(capsys, "evaluate", "--data", path, *given)
    assert code == 2 and re.search(said, err)
    assert not (tmp_path / "out" / "verdicts.sqlite").exists()


@pytest.mark.real_data
@pytest.mark.parametrize("judge", ["scripted", "local"])
def test_drivelm_is_answered_and_judged(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    model: Path,
    real_data: Path,
    text_model: Path,
    judge: str,
) -> None:
    data, out = real_data / "drivelm" / "test_eval.json", tmp_path / "out"
    who = "scripted" if judge == "scripted" else f"local:{text_model}"
    given = (
        "--max-new-tokens",
        4,
        "--judge",
        who,
        "--max-samples",
        66 if judge == "scripted" else 5,
    )
    code, printed, err = call(
        capsys, "evaluate", "--model", model, "--data", data, "--out", out, *given
    )
    assert code == 0, err
    statuses = Counter(verdict["status"] for verdict in rows(out / "verdicts.jsonl"))
    assert statuses == ({"scored": 66} if judge == "scripted" else {"bad_reply": 5})
    assert "judged scores" in printed
    assert ("no score: " if judge == "local" else "unscored 0") in printed
