from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from drivekd.cli import app

pytestmark = pytest.mark.usefixtures("no_debug")

VERBS = [
    "demo",
    "data info",
    "data corrupt",
    "data convert",
    "data check",
    "world make",
    "world show",
    "train",
    "prestudy",
    "cache",
    "evaluate",
    "compare",
    "bench",
    "ask",
    "serve",
    "export",
    "report",
]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line run in this process."""
    with pytest.raises(SystemExit) as ended:
        app.main(arguments)
    code = ended.value.code
    out, err = capsys.readouterr()
    return (code if isinstance(code, int) else 0 if code is None else 1), out, err


ONE = {
    "messages": [
        {"role": "user", "content": "<image>What is ahead?"},
        {"role": "assistant", "content": "A car."},
    ],
    "images": ["a.png"],
    "question_type": "planning",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    turns = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "Car."}]
    row = {"messages": turns, "images": ["a.jpg"], "question_type": "planning"}
    path = tmp_path / "a.json"
    path.write_text(json.dumps([row]))
    return path


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let `drivekd data info` meet an error inside."""

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr("drivekd.data.formats.readers.open_data", fail)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    code, out, _ = run(capsys, *verb.split(), "--help")
    assert code == 0
    assert f"Example: drivekd {verb} " in " ".join(out.split())


def test_help_is_there_at_once() -> None:
    """Half a second of one core at most, torch and transformers not imported."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "drivekd", "train", "--help"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # The best of three: a busy neighbour makes the processor slower, never faster.
    assert min(seconds() for _ in range(3)) < 0.5


def test_every_verb_is_listed_here() -> None:
    single = {command.callback.__name__ for command in app.app.registered_commands}  # type: ignore[union-attr]
    nested = {
        f"{group.name} {command.name}"
        for group in app.app.registered_groups
        for command in group.typer_instance.registered_commands  # type: ignore[union-attr]
    }
    assert single | nested == set(VERBS)


def test_without_a_verb_the_help_is_shown_but_nothing_was_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, _ = run(capsys)
    assert code == 2
    assert "Usage: drivekd" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, "drivekd 0.1.0\n", "")


def test_data_info(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    code, out, err = run(capsys, "data", "info", str(data), "--json")
    assert (code, err) == (0, "")
    counts = json.loads(out)
    assert counts["capabilities"] == {"planning": 1}
    assert counts["images_per_sample"] == {"1": 1}
    text = run(capsys, "data", "info", str(data))[1]
    assert "planning 1" in text and "format             drivekd" in text


def test_data_info_draws_a_sheet(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    sheet = data.parent / "sheets/s.png"
    assert run(capsys, "data", "info", str(data), "--sheet", str(sheet))[0] == 0
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_data_convert(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    out = data.parent / "b.json"
    code, said, err = run(capsys, "data", "convert", str(data), str(out), "--to", "sharegpt")
    assert (code, err) == (0, "")
    assert "1 rows of format drivekd → sharegpt" in said
    assert "capability  not held by sharegpt in 1 rows" in said
    assert json.loads(out.read_text())[0]["conversations"][0]["value"] == "<image>What?"


def test_data_check_ends_with_1_for_errors_and_0_for_warnings(
    capsys: pytest.CaptureFixture[str], data: Path
) -> None:
    out, fixed = data.parent / "out", data.parent / "fixed.json"
    arguments = ("data", "check", str(data), "--test", str(data))
    code, said, err = run(capsys, *arguments, "--out", str(out), "--fix", str(fixed))
    assert (code, err) == (1, "")
    assert "row 1: " in said and "image_missing" in said and "leak_name" in said
    report = json.loads((out / "check.json").read_text())
    assert report["errors"] == 2 and report["cleaned"]["dropped"] == 1
    assert "2 errors in a.json" in (out / "check.html").read_text()
    row = json.loads(data.read_text())[0] | {"images": [], "question_type": None}
    row["messages"][0]["content"] = "What?"
    data.write_text(json.dumps([row]))
    code, said, _ = run(capsys, "data", "check", str(data))
    assert code == 0 and "0 errors, 1 warnings" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("data info nowhere.json", "no data file nowhere.json"),
        ("data info .", ". is a folder"),
        ("data info empty.json", "empty.json is empty: expected JSON"),
        ("data info none.json", "none.json holds no samples"),
        ("data info none.jsonl", "none.jsonl holds no samples"),
        ("data info one.json --sheet one.json", "one.json is not: name a file.png"),
        ("data check check.json --out .", "check.json would take the place of check.json"),
        ("data check one.json --test gone.json", "no data file gone.json"),
        ("data check one.json --fix check.json/a.json", "check.json is a file, and a folder is"),
        ("data convert one.json none.json/a.json --to jsonl", "none.json is a file, and a folder"),
        ("data corrupt one.json none.json --name Fog", "none.json is a file, and a folder is"),
        ("data corrupt one.json none.json/o --name Fog", "none.json is a file, and a folder is"),
        ("data info one.json --sheet none.json/a.png", "none.json is a file, and a folder is"),
        ("data check one.json --out none.json", "none.json is a file, and a folder is needed"),
        ("data convert one.json /dev/full --to jsonl", "/dev/full exists already"),
        ("data check nowhere.json", "no data file nowhere.json"),
        ("data convert nowhere.json b.json --to drivekd", "no data file nowhere.json"),
        ("data convert a.json b.json", "Missing option '--to'"),
        ("train nowhere.yaml", "no recipe file nowhere.yaml"),
        ("train dmeo", "did you mean 'demo'"),
        ("train demo --set train.max_step=2", "did you mean `train.max_steps`"),
        ("train demo --set train.max_steps", "expected KEY=VALUE"),
        ("data", "Missing command. See `drivekd data --help`."),
        ("bogus", "No such command 'bogus'"),
        ("data info --nope x", "No such option"),
        ("data corrupt a.json o --name Fogg", "did you mean 'Fog'"),
        ("data corrupt a.json o --name Fog", "no data file a.json"),
        ("data corrupt a.json o --name Fog --severity 6", "5. See `drivekd data corrupt --help`."),
        ("world make --out w", "--scenes"),
        ("world make --out w --scenes 3 --split holdout", "'holdout' is not one of"),
        ("ask What? --model m --image a.png --image image_0=b.png", "image_0 was given twice"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.json").touch()
    Path("none.json").write_text("[]")
    Path("none.jsonl").touch()
    Image.new("RGB", (160, 90)).save("a.png")
    for name in ("one.json", "check.json"):
        Path(name).write_text(json.dumps([ONE]))
    code, out, err = run(capsys, *arguments.split())
    assert code == 2
    assert "Traceback" not in out + err
    assert said in err
    assert err.startswith("drivekd: error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/x"),
            2,
            "No space left on device: out/x",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "Permission denied: /x"),
        (OSError("libX11 is missing"), 2, "libX11 is missing"),
        (ValueError("two\nlines"), 2, "two lines"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "out of memory"),
    ],
)
def test_what_stops_a_verb_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    said: str,
) -> None:
    failing(monkeypatch, error)
    got, _, err = run(capsys, "data", "info", "x.json")
    assert got == code
    assert said in err
    assert err.strip().count("\n") == 0


def test_a_report_that_cannot_be_written_is_told_before_the_check(
    capsys: pytest.CaptureFixture[str], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drivekd.data.check.run.check", lambda *_, **__: pytest.fail("too late"))
    code, _, err = run(capsys, "data", "check", str(data), "--out", str(data))
    assert code == 2 and "a.json is a file, and a folder is needed" in err


def test_a_folder_in_place_of_a_file_is_told(
    capsys: pytest.CaptureFixture[str], data: Path
) -> None:
    (data.parent / "out/check.json").mkdir(parents=True)
    code, _, err = run(capsys, "data", "check", str(data), "--out", str(data.parent / "out"))
    assert code == 2 and "check.json is a folder, and a file is needed there" in err


def test_a_failure_that_we_foresaw_needs_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raising = {"__name__": "drivekd.distill.train"}
    exec("def fail(*_, **__): raise RuntimeError('step 3: the loss is not finite')", raising)
    monkeypatch.setattr("drivekd.data.formats.readers.open_data", raising["fail"])
    code, _, err = run(capsys, "data", "info", "x.json")
    assert (code, err) == (1, "drivekd: error: step 3: the loss is not finite\n")


@pytest.mark.parametrize("how", ["option", "variable"])
def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    failing(monkeypatch, ValueError("inside"))
    if how == "variable":
        monkeypatch.setenv("DRIVEKD_DEBUG", "1")
    with pytest.raises(ValueError, match="inside"):
        app.main(["data", "info", "x.json", *(["--debug"] if how == "option" else [])])


def test_a_fault_of_ours_is_not_called_a_mistake_of_the_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing(monkeypatch, RuntimeError("ours"))
    with pytest.raises(RuntimeError, match="ours"):
        app.main(["data", "info", "x.json"])


def test_train_passes_the_resolved_recipe_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def train(recipe: Any, *, resume: bool) -> Path:
        seen.append((recipe, resume))
        return Path("out/there")

    monkeypatch.setattr("drivekd.distill.train.train", train)
    monkeypatch.setattr("drivekd.distill.saving.summary.text", lambda final: f"summary of {final}")
    code, out, _ = run(
        capsys,
        *("train", "demo", "--set", "train.max_steps=3", "--max-samples", "7"),
        *("--out", "o #2", "--resume"),
    )
    assert (code, out) == (0, "summary of out/there\n\nout/there\n")
    ((recipe, resume),) = seen
    assert (recipe.train.max_steps, recipe.data.max_samples) == (3, 7)
    assert (recipe.output_dir, resume) == ("o #2", True)


def test_cache_fills_the_store_that_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def fill(recipe: Any) -> Path:
        seen.append(recipe)
        return Path(recipe.cache.dir)

    monkeypatch.setattr("drivekd.distill.targets.filling.fill", fill)
    code, out, _ = run(capsys, "cache", "demo", "--set", "cache.dtype=uint8", "--out", "o #2")
    assert (code, out) == (0, "o #2\n")
    assert seen[0].cache.model_dump() == {"dir": "o #2", "dtype": "uint8", "max_gb": 50.0}


def test_the_installed_command_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "drivekd", "data", "info", "gone.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("drivekd: error: no data file gone.json")


def test_data_corrupt(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    Image.new("RGB", (32, 24), (9, 99, 199)).save(tmp_path / "a.jpg")
    out = tmp_path / "out"
    given = ("data", "corrupt", str(data), str(out), "--name", "noimage", "--severity", "3")
    assert run(capsys, *given) == (0, f"{out / 'a.jsonl'}\n", "")
    with Image.open(out / "a.jpg") as image:
        assert (image.size, image.getextrema()) == ((32, 24), ((0, 0),) * 3)
    (data.parent / "a.jpg").unlink()
    code, printed, err = run(capsys, *given[:3], str(tmp_path / "again"), "--name", "Fog")
    assert (code, printed) == (2, "")
    assert err.startswith(f"drivekd: error: {data}, row 1: image {tmp_path / 'a.jpg'}: cannot be")
