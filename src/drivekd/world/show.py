"""A contact sheet of a world data set: marked pictures, questions and answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from drivekd.data.sample import CAPABILITIES
from drivekd.world.traffic import ACTIONS

#: like looking around from the driver's seat; the lower row is seen over the shoulders
PANORAMA = (
    ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"),
    ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"),
)
TILE, GAP, MARGIN, TEXT_WIDTH = 256, 6, 24, 620  # [px]
_CAPTION, _LINE = 20, 22  # heights [px]
_PAPER, _INK, _PALE, _RULE = "#fbfaf7", "#22252a", "#7b8088", "#d9d6cf"
_CAPABILITY_INK = {"perception": "#1565a7", "reasoning": "#8a3d9c", "planning": "#1d7a46"}
_MARKS = ("#e6550d", "#3182bd", "#d6279b", "#2ca02c", "#8c6d31", "#6a51a3", "#00a0a0", "#c0392b")
_TAG = re.compile(r"<c\d+,(CAM_[A-Z_]+),([\d.]+),([\d.]+)>(?:<r(\d+)>)?")

Font = ImageFont.FreeTypeFont
Draw = ImageDraw.ImageDraw


@dataclass(frozen=True, slots=True)
class Mark:
    """A thing that questions of a scene name, and its letter on the sheet."""

    letter: str
    colour: str
    tag: str
    camera: str
    u: float
    v: float
    box: tuple[float, float, float, float] | None


@dataclass(frozen=True, slots=True)
class Card:
    """One scene on the sheet."""

    scene: str
    truth: dict[str, Any]
    pictures: dict[str, Path]
    rows: tuple[dict[str, Any], ...]
    marks: dict[str, Mark] = field(default_factory=dict)  # by tag without its number


@dataclass(frozen=True, slots=True)
class Word:
    """A piece of text to set; a chip is a letter on its mark's colour."""

    text: str
    ink: str = _INK
    bold: bool = False
    chip: bool = False


def show(folder: Path, out: Path, scenes: int = 6) -> Path:
    """Draw the first scenes of a world data set into a PNG file, and return its path.

    ValueError: the folder holds no finished world, or `scenes` is below 1.
    """
    if scenes < 1:
        raise ValueError(f"expected at least 1 scene to show, got {scenes}")
    cards = _cards(Path(folder), scenes)
    heights = [_height(card) for card in cards]
    width = 2 * MARGIN + 3 * TILE + 2 * GAP + MARGIN + TEXT_WIDTH
    sheet = Image.new("RGB", (width, sum(heights) + MARGIN), _PAPER)
    top = MARGIN
    for card, height in zip(cards, heights, strict=True):
        _draw_card(sheet, card, top)
        top += height
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, format="PNG", optimize=True)
    return out


def _cards(folder: Path, scenes: int) -> list[Card]:
    """Read the first scenes in the order of the questions file."""
    questions = folder / "questions.jsonl"
    if not questions.is_file():
        raise ValueError(
            f"{folder}: no questions.jsonl; expected a folder that `drivekd world make` finished"
        )
    by_scene: dict[str, list[dict[str, Any]]] = {}
    with questions.open() as file:
        for row in map(json.loads, file):
            if row["scene"] not in by_scene and len(by_scene) == scenes:
                break
            by_scene.setdefault(row["scene"], []).append(row)
    return [_card(folder, scene, rows) for scene, rows in by_scene.items()]


def _card(folder: Path, scene: str, rows: list[dict[str, Any]]) -> Card:
    truth = json.loads((folder / "truth" / f"{scene.removeprefix('w')}.json").read_text())
    pictures = dict(zip(rows[0]["cameras"], rows[0]["images"], strict=True))
    tags = dict.fromkeys(_key(tag) for row in rows for tag in _TAG.finditer(_question(row)))
    marks = {key: _mark(key, place, truth) for place, key in enumerate(tags)}
    paths = {camera: folder / picture for camera, picture in pictures.items()}
    return Card(scene, truth, paths, tuple(rows), marks)


def _question(row: dict[str, Any]) -> str:
    return str(row["messages"][0]["content"]).rpartition("<image>\n")[2]


def _key(tag: re.Match[str]) -> str:
    """A tag without its number, which counts anew in every question."""
    return tag[0][tag[0].index(",") + 1 :]


def _mark(key: str, place: int, truth: dict[str, Any]) -> Mark:
    """The letter of a thing, and its box if the truth knows a sighting with this tag."""
    tag = _TAG.match("<c1," + key)
    assert tag is not None
    camera, u, v = tag[1], float(tag[2]), float(tag[3])
    boxes = (
        tuple(s["box"])
        for s in truth["sightings"]
        if s["camera"] == camera and abs(s["u"] - u) < 0.006 and abs(s["v"] - v) < 0.006
    )
    colour, letter = _MARKS[place % len(_MARKS)], chr(ord("A") + place % 26)
    return Mark(letter, colour, f"<{key}", camera, u, v, next(boxes, None))


@lru_cache(maxsize=8)
def _font(size: int, bold: bool = False) -> Font:
    """Load a font that comes with matplotlib, so that none needs to be installed."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def _height(card: Card) -> int:
    """Height of a card with the space below it [px]."""
    scratch = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    pictures = 2 * (TILE + _CAPTION + GAP)
    legend = _LINE * ((len(card.marks) + 1) // 2)
    return 44 + max(pictures + legend, _draw_questions(scratch, card, 0, 0)) + MARGIN


def _draw_card(sheet: Image.Image, card: Card, top: int) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.line((MARGIN, top, sheet.width - MARGIN, top), fill=_RULE, width=2)
    _draw_title(draw, card, top + 10)
    top += 44
    for r, row in enumerate(PANORAMA):
        for c, camera in enumerate(row):
            place = MARGIN + c * (TILE + GAP), top + r * (TILE + _CAPTION + GAP)
            draw.text(place, camera, fill=_PALE, font=_font(12))
            _draw_picture(sheet, card, camera, (place[0], place[1] + _CAPTION))
    _draw_legend(draw, card, top + 2 * (TILE + _CAPTION + GAP))
    _draw_questions(draw, card, 2 * MARGIN + 3 * TILE + 2 * GAP, top)


def _draw_title(draw: Draw, card: Card, top: int) -> None:
    frame = card.truth["frame"]
    about = (
        f"{card.truth['road_type']} · {card.truth['event'].replace('_', ' ')} · "
        f"{frame['weather']} · town {frame['town']} · {frame['ego']['speed']:.0f} m/s"
    )
    draw.text((MARGIN, top), card.scene, fill=_INK, font=_font(17, bold=True))
    left = MARGIN + draw.textlength(card.scene, font=_font(17, bold=True)) + 16
    draw.text((left, top + 2), about, fill=_PALE, font=_font(15))
    x = 2 * MARGIN + 3 * TILE + 2 * GAP
    for action in ACTIONS:
        x = _draw_action(draw, card.truth, action, x, top - 1)


def _draw_action(draw: Draw, truth: dict[str, Any], action: str, x: int, top: int) -> int:
    """Draw an action's chip: red for a collision or a red light, pale for a missing lane."""
    outcome, best = truth["outcomes"][action], truth["best"] == action
    bad = outcome["collision"] or outcome["ran_red"]
    fill = "#e8e5de" if outcome["left_lane"] else "#f3c6bf" if bad else "#cfe8d5"
    right = x + int(draw.textlength(action, font=_font(13, best))) + 16
    outline = _INK if best else None
    draw.rounded_rectangle((x, top, right, top + 24), 8, fill, outline, 2)
    draw.text((x + 8, top + 4), action, fill=_INK, font=_font(13, best))
    return right + 8


def _draw_picture(sheet: Image.Image, card: Card, camera: str, place: tuple[int, int]) -> None:
    """Draw one camera's picture with the boxes and letters of the objects in its questions."""
    with Image.open(card.pictures[camera]) as stored:
        small = stored.convert("RGB")
    fits = small.width <= TILE and TILE % small.width == 0
    way = Image.Resampling.NEAREST if fits else Image.Resampling.LANCZOS
    sheet.paste(small.resize((TILE, TILE), way), place)
    draw = ImageDraw.Draw(sheet)
    for mark in card.marks.values():
        if mark.camera == camera:
            _draw_mark(draw, mark, place)


def _draw_mark(draw: Draw, mark: Mark, place: tuple[int, int]) -> None:
    left, top = place
    u, v = left + mark.u * TILE, top + mark.v * TILE
    if mark.box is not None:
        a, b, c, d = (side * TILE for side in mark.box)
        box = left + a - 1, top + b - 1, left + c, top + d
        draw.rectangle(box, outline=mark.colour, width=2)
    draw.ellipse((u - 4, v - 4, u + 4, v + 4), fill=mark.colour, outline="white")
    edge = u if mark.box is None else left + mark.box[0] * TILE
    roof = v - 22 if mark.box is None else top + mark.box[1] * TILE - 19
    x = min(max(edge - 1, left), left + TILE - 18)
    _chip(draw, mark.letter, mark.colour, x, max(roof, top))


def _chip(draw: Draw, text: str, colour: str, x: float, y: float) -> None:
    draw.rounded_rectangle((x, y, x + 18, y + 18), 4, fill=colour)
    draw.text((x + 9, y + 9), text, fill="white", font=_font(13, bold=True), anchor="mm")


def _draw_legend(draw: Draw, card: Card, top: int) -> None:
    """Draw the tags as questions spell them."""
    column = (3 * TILE + 2 * GAP) // 2
    for place, mark in enumerate(card.marks.values()):
        x, y = MARGIN + place % 2 * column, top + place // 2 * _LINE
        _chip(draw, mark.letter, mark.colour, x, y)
        tag = mark.tag.replace("<", "<c…,", 1)
        draw.text((x + 26, y + 2), tag, fill=_PALE, font=_font(12))


def _draw_questions(draw: Draw, card: Card, left: int, top: int) -> int:
    """Draw all questions by capability, and return where they end [px]."""
    for capability in CAPABILITIES:
        rows = [row for row in card.rows if row["question_type"] == capability]
        if not rows:
            continue
        ink = _CAPABILITY_INK[capability]
        draw.text((left, top), capability.upper(), fill=ink, font=_font(12, bold=True))
        top += _LINE
        for row in rows:
            top = _flow(draw, list(_words(row, card.marks, ink)), left, top)
        top += 8
    return top


def _words(row: dict[str, Any], marks: dict[str, Mark], ink: str) -> Iterator[Word]:
    """A question and its answer, with letters in place of tags."""
    question, last, named = _question(row), 0, {}
    for number, tag in enumerate(_TAG.finditer(question), 1):
        mark = named[f"c{number}"] = marks[_key(tag)]
        yield from (Word(word) for word in question[last : tag.start()].split())
        yield Word(mark.letter, mark.colour, chip=True)
        last = tag.end()
    yield from (Word(word) for word in question[last:].split())
    answer = row["messages"][1]["content"]
    yield Word(f"→ {answer}", ink, bold=True)
    if answer in named:
        yield Word(named[answer].letter, named[answer].colour, chip=True)


def _flow(draw: Draw, words: Sequence[Word], left: int, top: int) -> int:
    """Set words in lines, and return the top of the line below [px]."""
    x = float(left)
    space = draw.textlength(" ", font=_font(15))
    for word in words:
        font = _font(15, word.bold)
        width = 18.0 if word.chip else draw.textlength(word.text, font=font)
        joined = word.text in ("?", ",", ".", "?,")
        x -= (space - 1) * joined
        if x + width > left + TEXT_WIDTH:
            x, top = left + 16.0, top + _LINE
        if word.chip:
            _chip(draw, word.text, word.ink, x, top - 1)
        else:
            draw.text((x, top), word.text, fill=word.ink, font=font)
        x += width + space
    return top + _LINE
