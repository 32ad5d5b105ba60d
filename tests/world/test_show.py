"""The contact sheet: that it is drawn, what is on it, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drivekd.cli.app import main
from drivekd.world import show as showing
from drivekd.world.show import PANORAMA, TILE, show


def test_a_sheet_shows_every_picture_with_its_marks(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = show(world, tmp_path / "sheets" / "sheet.png", 2)
    with Image.open(out) as opened:
        assert opened.format == "PNG"
        sheet = np.asarray(opened.convert("RGB")).astype(int)
    assert sheet.shape[0] > 2 * 2 * TILE
    one = tmp_path / "one.png"
    with pytest.raises(SystemExit) as ended:
        main(["world", "show", str(world), "--out", str(one), "--scenes", "1"])
    assert not ended.value.code
    assert capsys.readouterr().out == f"{one}\n"
    with Image.open(one) as opened:
        assert opened.height < sheet.shape[0]
    for cameras, row in zip(PANORAMA, range(2), strict=True):
        for column, camera in enumerate(cameras):
            left = showing.MARGIN + column * (TILE + showing.GAP)
            top = showing.MARGIN + 44 + row * (TILE + 20 + showing.GAP) + 20
            with Image.open(world / "images" / "0" / f"{camera}.png") as opened:
                small = opened.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS)
            off = np.abs(sheet[top : top + TILE, left : left + TILE] - np.asarray(small)).max(2)
            assert (off == 0).mean() > 0.6  # but for boxes and letters


def test_marks_name_what_the_tags_point_at(world: Path) -> None:
    (card,) = showing._cards(world, 1)
    assert card.marks
    letters = [mark.letter for mark in card.marks.values()]
    assert letters == sorted(set(letters))
    for mark in card.marks.values():
        assert mark.box is not None
        left, top, right, bottom = mark.box
        assert left <= mark.u <= right
        assert top <= mark.v <= bottom
    words = [
        " ".join(w.text for w in showing._words(row, card.marks, "black")) for row in card.rows
    ]
    assert all("<" not in line and "→" in line for line in words)
    answers = [row["messages"][1]["content"] for row in card.rows]
    assert all(f"→ {a}" in line for a, line in zip(answers, words, strict=True))


def test_the_command_line_refuses_what_is_no_world(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["world", "show", str(tmp_path), "--out", str(tmp_path / "sheet.png")])
    assert ended.value.code == 2
    assert "no questions.jsonl" in capsys.readouterr().err


def test_borders(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"questions\.jsonl"):
        show(tmp_path, tmp_path / "sheet.png")
    with pytest.raises(ValueError, match=r"1 scene.*0"):
        show(world, tmp_path / "sheet.png", 0)
    one = tmp_path / "one"
    (one / "truth").mkdir(parents=True)
    first = (world / "questions.jsonl").read_text().splitlines()[0]
    row = json.loads(first)
    row["images"] = [str(world / picture) for picture in row["images"]]
    (one / "questions.jsonl").write_text(json.dumps(row) + "\n")
    (one / "truth" / "0.json").write_text((world / "truth" / "0.json").read_text())
    assert show(one, tmp_path / "sheet.png", 9).is_file()  # fewer scenes than asked for
