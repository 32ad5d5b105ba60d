"""The main job: its arms, its worlds, its clock and the questions that it shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from drivekd.data.sample import CAPABILITIES, Message, Sample
from drivekd.demo import run as demo
from drivekd.recipe import load


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    """Dotted key to value."""
    if not isinstance(tree, Mapping) or not tree:
        return {name: tree}
    return {k: v for key, part in tree.items() for k, v in flat(part, f"{name}.{key}").items()}


FULL = {
    f".capabilities.{c}.{key}": value
    for c in ("perception", "planning")  # reasoning has full maps of these layers already
    for key, value in (
        ("signal", "full"),
        ("student_layers", "1..penultimate"),
        ("teacher_layers", "1..penultimate"),
    )
}


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("drivekd", {}),
        ("full_everywhere", FULL),
        ("ce_only", {".capabilities": {}, ".mixing": {}}),
        ("blind", {".capabilities": {}, ".mixing": {}, ".data.images": "grey"}),
        ("mismatched", {".data.mismatch": True}),
    ],
)
def test_an_arm_changes_its_own_keys_only(arm: str, expected: dict[str, Any]) -> None:
    base = load("demo")
    made = flat(demo.arm_recipe(arm, Path("runs") / arm).model_dump(mode="json"))
    known = flat(base.model_dump(mode="json"))
    changed = {key: value for key, value in made.items() if known.get(key, None) != value}
    named = {".name": arm, ".output_dir": f"runs/{arm}"}
    if arm == "drivekd":
        del named[".name"], changed[".name"]
    assert changed == named | expected
    gone = {key for key in known if key not in made}
    emptied = [key for key, value in expected.items() if value == {}]
    assert gone == {key for key in known if any(key.startswith(f"{e}.") for e in emptied)}


@pytest.mark.parametrize("name", ["my #2", "a: b", "[x]", "123", "~"])
def test_any_folder_can_be_written_to(name: str) -> None:
    for arm in ("drivekd", "ce_only"):
        assert demo.arm_recipe(arm, Path(name) / arm).output_dir == str(Path(name) / arm)
    assert demo.arm_recipe("blind", Path(name)).output_dir == name


def sample(number: int, capability: str, scene: str, template: str) -> Sample:
    turns = (Message("user", "?"), Message("assistant", "yes"))
    return Sample(
        str(number), turns, {}, source="test:1", capability=capability, scene=scene,
        template=template,
    )  # fmt: skip


def test_every_template_is_shown_even_from_a_used_scene() -> None:
    templates = ("colour", "count", "lane", "cause")
    samples = [sample(i, "perception", "one", t) for i, t in enumerate(templates)]
    samples += [sample(9, "perception", "two", "count")]
    picked = demo.chosen(samples, {})
    assert [s.template for s in picked] == list(templates)
    assert picked[1].scene == "two"


def test_right_and_wrong_answers_are_shown(tmp_path: Path) -> None:
    samples = [
        sample(10 * i + j, capability, f"scene{j}", capability)
        for i, capability in enumerate(CAPABILITIES)
        for j in range(5)
    ]
    right = {s.id: s.capability != "planning" and int(s.id) % 10 != 3 for s in samples}
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps({"id": i, "correct": c}) + "\n" for i, c in right.items()))
    picked = demo.chosen(samples, demo.verdicts(file))
    assert len({s.id for s in picked}) == len(picked)
    for capability in CAPABILITIES:
        shown = {right[s.id] for s in picked if s.capability == capability}
        assert shown == ({False} if capability == "planning" else {True, False})


def test_a_quick_look_leaves_the_full_world_alone(tmp_path: Path) -> None:
    full, quick = demo.worlds(tmp_path, None), demo.worlds(tmp_path, 19)
    assert full == demo.worlds(tmp_path, 20)
    assert [scenes for _, scenes in full] == [demo.TRAIN_SCENES, demo.DEMO_SCENES]
    assert [folder.name for folder, _ in quick] == ["student-16", "demo-8"]
    assert not {folder for folder, _ in full} & {folder for folder, _ in quick}


def test_the_time_of_an_interrupted_call_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(demo.time, "monotonic", lambda: clock[0])

    def interrupted() -> None:
        with demo.timed(tmp_path / "run"):
            clock[0] += 40
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    clock[0] += 1000  # nothing runs
    with demo.timed(tmp_path / "run") as seconds:
        clock[0] += 2.5
        assert seconds() == 42.5
    assert json.loads((tmp_path / "run" / "seconds.json").read_text()) == {"seconds": 42.5}
