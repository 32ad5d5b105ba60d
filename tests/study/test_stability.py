"""Stability over wordings: planted teachers get the right verdict, figures are those by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.runs import CAPABILITIES, tiny_student, write_data

from drivekd.cli import app
from drivekd.data.formats.readers import read
from drivekd.data.sample import Message, Sample
from drivekd.distill.teachers.teacher import freeze
from drivekd.models.vlm import Vlm, save
from drivekd.report.page import write_page
from drivekd.report.stability import draw_stability
from drivekd.study.curves import unit
from drivekd.study.forward import Seen
from drivekd.study.measuring import Asked, ask
from drivekd.study.prestudy import run
from drivekd.study.stability import WORST, Case, Steadiness, Verdict, curves, judge
from drivekd.study.stability_file import write
from drivekd.study.tables import stability as table

LAYERS, V = 3, 8
GRIDS = ((2, 2), (2, 2))
SAYS_SO = {"deaf": "use", "one map": "use with care", "noise": "do not use"}


def seen(profile: np.ndarray) -> Seen:
    none = np.zeros(LAYERS)
    vectors = np.zeros((LAYERS, 2))
    return Seen(
        adjacent=none,
        vision_text=None,
        hidden=vectors,
        own_hidden=vectors,
        grid=None,
        own_attention=profile,
        asking=profile,
        share=none,
        margins=np.zeros(0),
    )


def asked(scene: int, number: int, profiles: np.ndarray, capability: str = "planning") -> Asked:
    sample = Sample(
        f"s{scene}q{number}",
        (Message("user", f"<image><image>Question {number}?"),),
        {"CAM_FRONT": Path("a.png"), "CAM_BACK": Path("b.png")},
        capability=capability,
        scene=f"scene{scene}",
    )
    words = tuple(f"Question {number}, wording {k}?" for k in range(len(profiles)))
    return Asked(sample, words, GRIDS, tuple(map(seen, profiles)))


def planted(teacher: str, scenes: int = 8, questions: int = 3) -> Steadiness:
    """A teacher that looks at a question's own place, at one place only, or wherever it happens."""
    random, found = np.random.default_rng(3), Steadiness()

    def spot() -> np.ndarray:
        return random.random((LAYERS, V)) ** 4

    for scene in range(scenes):
        everywhere, group = spot(), []
        for number in range(questions):
            own = spot()
            maps = {"deaf": own, "one map": everywhere}
            group.append(asked(scene, number, np.stack([maps.get(teacher, spot())] * 3)))
            if teacher == "noise":
                group[-1] = asked(scene, number, np.stack([spot() for _ in range(3)]))
        found.add(group)
    return found


def verdict_of(found: Steadiness, capability: str = "planning", layers: Any = (1, 2)) -> Verdict:
    judged = judge(curves(found.sums, seed=0, draws=200), capability, layers)
    assert judged is not None
    return judged


@pytest.mark.parametrize("teacher", ["deaf", "one map", "noise"])
def test_planted_teachers_get_the_verdict_that_they_deserve(teacher: str) -> None:
    judged = verdict_of(planted(teacher))
    assert judged.verdict == SAYS_SO[teacher], judged
    assert judged.n == 24 and judged.scenes == 8
    if teacher == "deaf":
        assert judged.cosine.mean == pytest.approx(1) and judged.beyond.high == 0
        assert judged.spared is not None and judged.spared.mean == pytest.approx(1)
        assert judged.other is not None and judged.other.mean < 0.8
    if teacher == "one map":  # steady, but whether because it minds the question nobody can tell
        assert judged.spared is None and "nothing to compare with" in judged.reasons[0]
    if teacher == "noise":
        assert judged.spared is not None and abs(judged.spared.mean) < 0.1
        assert judged.beyond.mean > 0.5 and len(judged.reasons) == 2


def test_a_small_change_that_is_all_wording_is_no_reason_against_a_teacher() -> None:
    found = Steadiness()
    random = np.random.default_rng(0)
    for scene in range(8):
        maps = 1 + 0.1 * random.random((2, 3, LAYERS, V))
        found.add([asked(scene, number, each) for number, each in enumerate(maps)])
    judged = verdict_of(found)
    assert judged.cosine.mean > 0.99 and judged.spared is not None and judged.spared.mean < 0.1
    assert judged.verdict == "use with care"


def test_few_scenes_or_no_other_question_give_no_clear_verdict() -> None:
    for scenes, said in ((1, "fewer than 5"), (4, "fewer than 5"), (8, None)):
        judged = verdict_of(planted("deaf", scenes))
        assert judged.verdict == ("use with care" if said else "use")
        assert (judged.cosine.low is None) == (scenes < 5)
        assert said is None or said in judged.reasons[0]
    alone = verdict_of(planted("deaf", questions=1))
    assert alone.verdict == "use with care" and alone.spared is None and alone.other is None


def test_a_question_without_others_about_its_pictures_is_said(tmp_path: Path) -> None:
    found, about = planted("deaf", questions=1), {"layers": LAYERS, "seed": 0}
    content = write(found, [], about, tmp_path)
    said = "planning questions with other questions about the same pictures: need 2, have 0"
    assert said in content["lacks"] and len(content["lacks"]) == 3


def test_figures_are_those_by_hand() -> None:
    random = np.random.default_rng(1)
    groups = [
        [asked(scene, q, random.random((3 + q, LAYERS, V)) ** 3) for q in range(3)]
        for scene in range(3)
    ]
    found = Steadiness(drop=0.4)
    for group in groups:
        found.add(group)
    got = curves(found.sums, seed=0, draws=3)
    cosine, beyond, other = [], [], []
    for group in groups:
        maps = [np.stack([unit(s.asking) for s in each.seen]) for each in group]
        for i, mine in enumerate(maps):
            pairs = [(a * b).sum(axis=1) for a, b in combinations(mine, 2)]
            cosine.append(np.mean(pairs, axis=0))
            beyond.append(np.min(pairs, axis=0) < 0.6)
            across = [
                np.mean([(a * b).sum(axis=1) for a in mine for b in others], axis=0)
                for j, others in enumerate(maps)
                if j != i
            ]
            other.append(np.mean(across, axis=0))
    for rows in ("question", "all"):
        expected = {"cosine": cosine, "beyond": beyond, "other": other}
        for name, values in expected.items():
            assert got[f"{name}/{rows}/planning"].mean == pytest.approx(np.mean(values, axis=0))
        spared = (np.mean(cosine, 0) - np.mean(other, 0)) / (1 - np.mean(other, 0))
        assert got[f"spared/{rows}/planning"].mean == pytest.approx(spared)
    judged = judge(got, "planning", (2,), drop=0.4)
    assert judged is not None and judged.cosine.mean == pytest.approx(np.mean(cosine, 0)[1])


def test_two_wordings_are_too_few_and_the_same_question_is_no_other() -> None:
    found = Steadiness()
    maps = np.random.default_rng(0).random((3, LAYERS, V))
    found.add([asked(0, 1, maps[:2]), asked(0, 2, maps), asked(0, 2, maps)])
    assert found.sums.count("cosine/question/planning") == 2
    # Both have the first as another question, not each other.
    across = [(unit(a) * unit(b)).sum(axis=1) for a in maps[:2] for b in maps]
    total = found.sums["other/question/planning"]
    assert total.sums["scene0"] / total.n == pytest.approx(np.mean(across, axis=0))


def test_the_worst_cases_are_kept_and_no_more() -> None:
    found = planted("noise", scenes=12)
    assert set(found.worst) == {("planning", layer) for layer in range(1, LAYERS + 1)}
    for (_, layer), kept in found.worst.items():
        assert len(kept) == WORST and [c.cosine for c in kept] == sorted(c.cosine for c in kept)
        assert all(
            case.layer == layer and least(case) == pytest.approx(case.cosine) for case in kept
        )


def least(case: Case) -> float:
    maps = unit(case.maps.astype(np.float64))
    i, j = (case.numbers.index(k) for k in case.apart)
    return float(
        min((a * b).sum() for a, b in combinations(maps, 2)) if i == j else maps[i] @ maps[j]
    )


# --------------------------------------------------------------------------- a whole teacher


def teacher() -> Vlm:
    """Large random queries and keys: where words look is decided by what they are."""
    vlm = tiny_student(seed=5, text_layers=LAYERS, initializer_range=0.2)
    layers: Any = vlm.model.get_submodule("model.language_model.layers")
    with torch.no_grad():
        for each in layers:
            for part in (each.self_attn.q_proj, each.self_attn.k_proj):
                part.weight.mul_(8)
    return freeze(vlm)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    return list(read(write_data(tmp_path, scenes=6)))


def read_all(vlm: Vlm, samples: list[Sample]) -> Steadiness:
    found = Steadiness()
    for group in ask(vlm, samples):
        found.add(group)
    return found


def test_a_teacher_that_cannot_tell_wordings_apart_is_of_use(samples: list[Sample]) -> None:
    vlm = teacher()
    words: Any = vlm.model.get_input_embeddings()
    digits = [vlm.tokenizer.convert_tokens_to_ids(str(n)) for n in range(3)]
    with torch.no_grad():
        words.weight[digits] = words.weight[digits[0]].clone()
    numbered = [
        replace(
            s,
            messages=(
                Message("user", s.messages[0].content.replace(s.question, f"0 {s.question}")),
                s.messages[1],
            ),
            paraphrases=(f"1 {s.question}", f"2 {s.question}"),
        )
        for s in samples
    ]
    judged = verdict_of(read_all(vlm, numbered), layers=(1, 2, 3))
    assert judged.verdict == "use" and judged.cosine.mean == pytest.approx(1, abs=1e-5)
    assert judged.other is not None and judged.other.mean < 0.95


def test_a_teacher_to_whom_wordings_are_other_questions_is_not(samples: list[Sample]) -> None:
    words = ("It stops no wait.", "How many cars are there? Turn, keep red.")
    changed = [replace(s, paraphrases=words) for s in samples]
    judged = verdict_of(read_all(teacher(), changed), layers=(1, 2, 3))
    assert judged.verdict != "use" and judged.spared is not None and judged.spared.mean < 0.3


# --------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "teacher"
    save(teacher(), folder)
    return folder


@pytest.fixture(autouse=True)
def few_general_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivekd.study.prestudy.GENERAL_PICTURES", 2)


def data_file(folder: Path, change: Any = lambda row: row) -> Path:
    path = write_data(folder)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    made = []
    for row in rows:
        asks = row["messages"][0]["content"].rpartition("\n")[2]
        row["paraphrases"] = [f"Please tell: {asks}", f"{asks} Answer shortly."]
        changed = change(row)
        made += [changed] if changed else []
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


def stability(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "stability.json").read_text(encoding="utf-8"))
    return content


def prestudy(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as ended:
        app.main(["prestudy", *map(str, arguments)])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


@pytest.mark.usefixtures("no_debug")
def test_the_command_writes_figures_picture_table_and_page(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, saved: Path
) -> None:
    data, out = data_file(tmp_path / "data"), tmp_path / "out"
    given = ("--teacher", saved, "--data", data, "--out", out)
    code, printed, _ = prestudy(capsys, *given, "--stability", "--drop", "0.2")
    assert code in (0, None) and "use with care" in printed and "stability.png" in printed
    content = stability(out)
    assert content["drop"] == 0.2 and content["lacks"] == []
    assert {each["capability"] for each in content["verdicts"]} == set(CAPABILITIES)
    assert all(each["reasons"] == ["fewer than 5 scenes"] for each in content["verdicts"])
    assert "cosine/all/planning" in content["curves"] and len(content["worst"]) == WORST
    with np.load(out / "stability.npz") as maps:
        for number, case in enumerate(content["worst"]):
            whole = [
                unit(np.concatenate([maps[f"{number}/{word}/{c}"].ravel() for c in case["images"]]))
                for word in case["apart"]
            ]
            assert whole[0] @ whole[1] == pytest.approx(case["cosine"], abs=1e-5)
            assert all((out / name).is_file() for name in case["images"].values())
            assert len(set(case["wordings"])) == 3
    with Image.open(out / "stability.png") as picture:
        assert picture.height > 1000
    page = write_page(out).read_text(encoding="utf-8")
    assert 'id="stability"' in page and "use with care" in page and "image/webp" in page


@pytest.mark.usefixtures("no_debug")
def test_a_drop_without_stability_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = ("--teacher", "none", "--data", "none.jsonl", "--out", tmp_path, "--drop", "0.2")
    code, _, err = prestudy(capsys, *given)
    assert code == 2 and "--stability" in err and len(err.strip().splitlines()) == 1


def without_pictures(row: dict[str, Any]) -> dict[str, Any]:
    asked = {"role": "user", "content": "What?"}
    return {**row, "images": [], "cameras": [], "messages": [asked, row["messages"][1]]}


def test_what_lacks_data_is_said_and_the_rest_is_there(tmp_path: Path, saved: Path) -> None:
    def change(row: dict[str, Any]) -> dict[str, Any] | None:
        kind = row["question_type"]
        if kind == "perception":
            return without_pictures(row)
        if kind == "reasoning":
            return row if row["id"].startswith("s0") else None
        one_token = {"role": "assistant", "content": "2"}
        return {**row, "messages": [row["messages"][0], one_token]}

    out = tmp_path / "out"
    run(str(saved), data_file(tmp_path, change), out, drop=0.3)
    content = stability(out)
    assert content["lacks"] == [
        "perception questions with pictures in 3 wordings: need 2, have 0",
        "reasoning questions with pictures in 3 wordings: need 2, have 1",
    ]
    assert [each["capability"] for each in content["verdicts"]] == ["planning"]
    assert content["verdict"] == "use with care" and content["worst"]
    said = " ".join(table(content).split())
    assert all(f"not enough data: {each}" in said for each in content["lacks"])


def test_nothing_to_compare_is_said_and_drawn(tmp_path: Path, saved: Path) -> None:
    def change(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "paraphrases": row["paraphrases"][: int(row["id"][-1]) % 2]}

    out = tmp_path / "out"
    run(str(saved), data_file(tmp_path, change), out, drop=0.3, max_samples=9)
    content = stability(out)
    assert len(content["lacks"]) == 3 and "planning questions" in content["lacks"][2]
    assert content["verdict"] is None and content["verdicts"] == content["worst"] == []
    assert all(path.is_file() for path in draw_stability(content, out))
    page = write_page(out).read_text(encoding="utf-8")
    assert 'id="stability"' in page and content["lacks"][0] in page


@pytest.mark.real_data
@pytest.mark.usefixtures("no_debug")
def test_a_tiny_teacher_reads_drivelms_questions_in_words_made_by_rule(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, saved: Path, real_data: Path
) -> None:
    given = ("--data", real_data / "drivelm" / "test_eval.json", "--max-samples", "40")
    given = ("--teacher", saved, *given, "--out", tmp_path, "--stability")
    code, printed, _ = prestudy(capsys, *given)
    assert code in (0, None) and "choice" in printed and "stability over wordings" in printed
    study = json.loads((tmp_path / "prestudy.json").read_text(encoding="utf-8"))
    names = {"intra/attention/perception", "margin/driving", "dispersion/attention/all"}
    assert names <= set(study["curves"])
    content = stability(tmp_path)
    assert content["data"]["samples"] == study["data"]["samples"] == 40
    n = sum(content["curves"][f"cosine/question/{name}"]["n"] for name in CAPABILITIES)
    assert n == 40 and all(each["verdict"] == "use with care" for each in content["verdicts"])
