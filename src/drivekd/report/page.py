"""Writes the page of a run: one HTML file that opens from disk and asks the network for nothing.

Only result files are read; what is missing is shown as missing. In the folder of the run:

summary.json
    {"scores": {ARM: {"perception", "reasoning", "planning", "average"}}, "n": {capability: count},
    "seconds": wall time [s]}, scores in percent.
about.json (optional)
    {"title": text, "facts": {name: text}, "commands": [{"command": text, "what": text}],
    "absent": {ARM: reason}}.
scenes.json (optional; `drivekd.looking.write_scenes`)
    [{"frame", "images": {camera: path relative to the folder}, "tags": [{"name", "camera", "x",
    "y"}], "questions": [{"capability", "template", "question", "answer"}]}].
ARM/scores.json (`drivekd.evaluate.score.write_scores`)
    {"capabilities": {name: S}, "templates": {name: S}, "average": S}, S = {"n", "accuracy", "low",
    "high", "scenes"} in percent; low and high may be null.
ARM/answers.jsonl (`drivekd.evaluate.answers.asking.answers`)
    one row per question and run: id, run, capability, template, scene, question, expected, reply,
    correct, and what the answer depends on.
ARM/log.jsonl (`drivekd train`)
    one row per logged step: step, loss/ce, loss/attn/CAPABILITY (or loss/hidden/…, loss/kl/…),
    lambda/CAPABILITY, grad/….
prestudy.json, or prestudy/prestudy.json (optional; `drivekd prestudy`)
    the curves of a teacher's pre-study and the layers they speak for; alone it makes a page of its
    own.
stability.json, stability.png beside it (optional; `drivekd prestudy --stability`)
    whether that teacher looks at the same places however a question is worded.
attention/cases.json, attention/maps.npz (optional; `drivekd.looking.attention_cases`)
    [{"id", "capability", "template", "question", "expected", "rows": "answer" | "question",
    "images": {camera: path}, "tags": […], "arms": {ARM: {"reply", "correct", "layer", "layers",
    "share"}}}]; arrays "CASE/ARM/CAMERA" [rows, columns], CASE = index in the list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image, UnidentifiedImageError

from drivekd.data.cameras import around, in_words
from drivekd.data.sample import CAPABILITIES
from drivekd.files.writing import writing
from drivekd.report.answers import write_answers
from drivekd.report.figures import Mark, data_uri, tile
from drivekd.report.panels import telemetry_panels, training_panels
from drivekd.report.prestudy import as_address
from drivekd.report.results import ARMS, Arm, Results, Row, read_results
from drivekd.report.stability import stability_address
from drivekd.report.template import environment

_REGION = re.compile(r"<r\d+>")
_TAG = re.compile(r"<\s*([A-Za-z]+\d*)\s*,\s*(?:CAM_)?(\w+)\s*,[^<>]*>")
_EXAMPLES = 4  # answers shown per direction of change


def write_page(folder: Path) -> Path:
    """Writes `report.html` into the folder of a run and returns its path.

    The folder of an evaluation gets the page of its answers, `drivekd.report.answers`.

    Raises:
        ValueError: no result file in the folder, or a broken one.
    """
    if (folder / "evaluation.json").is_file():
        return write_answers(folder)
    results = read_results(folder)
    templates = environment()
    templates.filters["plain"] = _plain
    name = "page.html.j2" if results.of_a_run else "prestudy.html.j2"
    text = templates.get_template(name).render(**_context(results))
    path = folder / "report.html"
    with writing(path):
        path.write_text(text, encoding="utf-8")
    return path


def _context(results: Results) -> dict[str, Any]:
    pictures: dict[Path, Image.Image | None] = {}
    return {
        "title": results.about.get("title", f"drivekd: {results.folder.resolve().name}"),
        "prestudy": results.prestudy,
        "picture": as_address(results.prestudy) if results.prestudy else "",
        "stability": results.stability,
        "stability_picture": results.study and stability_address(results.study),
        "facts": results.about.get("facts", {}),
        "commands": results.about.get("commands", []),
        "seconds": (results.summary or {}).get("seconds"),
        "headline": _headline(results),
        "capabilities": CAPABILITIES,
        "table": _table(results),
        "counts": _counts(results),
        "absent_arms": _absent(results),
        "templates": _templates(results),
        "changes": _changes(results),
        "training": [_panel(panel) for panel in training_panels(results.logs)],
        "telemetry": [
            (_arm(key), [_panel(panel) for panel in panels])
            for key, panels in telemetry_panels(results.logs)
        ],
        "scenes": [_scene(scene, results.folder, pictures) for scene in results.scenes or []],
        "cases": [_case(i, case, results, pictures) for i, case in enumerate(results.cases or [])],
    }


def _panel(panel: Row) -> dict[str, Any]:
    # Drawn by matplotlib from numbers and fixed names, so it is markup and not text to escape.
    return {**panel, "svg": Markup(panel["svg"])}  # noqa: S704


def _arm(key: str) -> Arm:
    return next((arm for arm in ARMS if arm.key == key), Arm(key, key.replace("_", " "), ""))


def _table(results: Results) -> list[dict[str, Any]]:
    """One row per arm with a cell per capability and one for the average."""
    columns = (*CAPABILITIES, "average")
    return [
        {"arm": arm, "cells": [_cell(results, arm.key, column) for column in columns]}
        for arm in results.arms
    ]


def _cell(results: Results, arm: str, column: str) -> dict[str, Any] | None:
    detail = results.scores.get(arm, {})
    scored = detail.get("average") if column == "average" else None
    scored = scored or detail.get("capabilities", {}).get(column) or {}
    summary = (results.summary or {}).get("scores", {}).get(arm, {})
    value = summary.get(column, scored.get("accuracy"))
    if value is None:
        return None
    return {"value": value, "low": scored.get("low"), "high": scored.get("high")}


def _counts(results: Results) -> list[int | None] | None:
    """Questions per capability and in all; None where the run does not say."""
    n: Mapping[str, int] = (results.summary or {}).get("n", {})
    if not n:
        details = [d["capabilities"] for d in results.scores.values() if d.get("capabilities")]
        n = {name: s["n"] for name, s in details[0].items()} if details else {}
    counts = [n.get(capability) for capability in CAPABILITIES]
    return [*counts, sum(c for c in counts if c is not None)] if n else None


def _headline(results: Results) -> list[dict[str, Any]]:
    """The few numbers that the run is about."""
    average = {
        arm.key: cell["value"]
        for arm in results.arms
        if (cell := _cell(results, arm.key, "average")) is not None
    }
    shown = [
        {"name": _arm(key).name, "value": average[key], "key": key}
        for key in ("ce_only", "drivekd", "teacher")
        if key in average
    ]
    if "drivekd" in average and "ce_only" in average:
        change = average["drivekd"] - average["ce_only"]
        shown.append({"name": "Drive-KD − cross-entropy", "value": change, "key": "change"})
    return shown


def _absent(results: Results) -> list[tuple[str, str]]:
    """Arms of the demo that this run does not have, and why."""
    here = {arm.key for arm in results.arms}
    reasons: Mapping[str, str] = results.about.get("absent", {})
    expected = [arm for arm in ARMS if arm.key != "mismatched" or arm.key in reasons]
    return [
        (arm.name, reasons.get(arm.key, "no scores in this folder"))
        for arm in expected
        if arm.key not in here
    ]


def _templates(results: Results) -> dict[str, Any] | None:
    """Accuracy per template and arm; above = its interval lies above every control's score."""
    arms = [arm for arm in results.arms if results.scores.get(arm.key, {}).get("templates")]
    if not arms:
        return None
    tables = {arm.key: results.scores[arm.key]["templates"] for arm in arms}
    names = list(dict.fromkeys(name for table in tables.values() for name in table))
    belongs = _capability_of(results.answers.values())
    order = {capability: i for i, capability in enumerate(CAPABILITIES)}
    names.sort(key=lambda name: (order.get(belongs.get(name, ""), len(order)), name))
    rows = []
    for name in names:
        scored = [tables[arm.key].get(name) for arm in arms]
        controls = [s["accuracy"] for a, s in zip(arms, scored, strict=True) if s and a.control]
        bar = max(controls, default=None)
        cells = [
            s and {"value": s["accuracy"], "above": _above(s, bar) and not arm.control}
            for arm, s in zip(arms, scored, strict=True)
        ]
        n = max((s["n"] for s in scored if s), default=None)
        rows.append({"name": name, "capability": belongs.get(name, ""), "n": n, "cells": cells})
    return {"arms": arms, "rows": rows}


def _above(scored: Row, bar: float | None) -> bool:
    return bar is not None and scored.get("low") is not None and scored["low"] > bar


def _capability_of(answers: Iterable[Sequence[Row]]) -> dict[str, str]:
    return {
        row["template"]: row.get("capability") or ""
        for rows in answers
        for row in rows
        if row.get("template")
    }


def _changes(results: Results) -> dict[str, Any] | None:
    """Questions that Drive-KD and cross-entropy alone answer differently well."""
    if not {"drivekd", "ce_only"} <= set(results.answers):
        return None
    plain = {row["id"]: row for row in results.answers["ce_only"]}
    pairs = [(row, plain[row["id"]]) for row in results.answers["drivekd"] if row["id"] in plain]
    counts = []
    for capability in CAPABILITIES:
        mine = [(a, b) for a, b in pairs if a.get("capability") == capability]
        if mine:
            outcomes = ((True, True), (True, False), (False, True), (False, False))
            counts.append((capability, [_count(mine, outcome) for outcome in outcomes]))
    gained = [(a, b) for a, b in pairs if a["correct"] and not b["correct"]]
    lost = [(a, b) for a, b in pairs if b["correct"] and not a["correct"]]
    examples = [
        ("Only Drive-KD right", _spread(gained)),
        ("Only cross-entropy right", _spread(lost)),
    ]
    return {"counts": counts, "examples": [(name, rows) for name, rows in examples if rows]}


def _count(pairs: Sequence[tuple[Row, Row]], outcome: tuple[bool, bool]) -> int:
    return sum((bool(a["correct"]), bool(b["correct"])) == outcome for a, b in pairs)


def _spread(pairs: Sequence[tuple[Row, Row]]) -> list[tuple[Row, Row]]:
    """The first pair of each template, in the order of the file."""
    first: dict[Any, tuple[Row, Row]] = {}
    for pair in pairs:
        first.setdefault(pair[0].get("template"), pair)
    return list(first.values())[:_EXAMPLES]


def _scene(scene: Row, folder: Path, pictures: dict[Path, Image.Image | None]) -> dict[str, Any]:
    marks = _marks(scene.get("tags", []), named=False)
    tiles = []
    for camera in around(scene["images"]):
        picture = _picture(folder / scene["images"][camera], pictures)
        drawn = picture and data_uri(tile(picture, marks=marks.get(camera, ())))
        tiles.append({"camera": in_words(camera), "src": drawn})
    return {
        "frame": scene["frame"],
        "tiles": tiles,
        "tags": sum(len(m) for m in marks.values()),
        "questions": scene.get("questions", []),
    }


def _case(
    number: int, case: Row, results: Results, pictures: dict[Path, Image.Image | None]
) -> dict[str, Any]:
    images = case["images"]
    marks = _marks(case.get("tags", []), named=True)
    shown = [(c, _picture(results.folder / images[c], pictures)) for c in around(images)]
    rings = _marks(case.get("tags", []), named=False)
    plain = [
        {
            "camera": in_words(camera),
            "src": picture and data_uri(tile(picture, marks=marks.get(camera, ()))),
        }
        for camera, picture in shown
    ]
    rows = [
        {
            "arm": _arm(key),
            **said,
            "tiles": _heat(f"{number}/{key}", shown, results, rings),
            "named": _named(f"{number}/{key}", case, results),
        }
        for key, said in case["arms"].items()
    ]
    return {**case, "tiles": plain, "rows_of_arms": rows}


def _heat(
    prefix: str,
    shown: Sequence[tuple[str, Image.Image | None]],
    results: Results,
    rings: Mapping[str, Sequence[Mark]],
) -> list[dict[str, Any]] | None:
    """One arm's attention over the cameras on one scale; None where a map or picture is missing."""
    maps = [results.maps.get(f"{prefix}/{camera}") for camera, _ in shown]
    drawn = []
    for (camera, picture), heat in zip(shown, maps, strict=True):
        if heat is None or picture is None:
            return None
        peak = max(float(m.max()) for m in maps if m is not None)
        src = data_uri(tile(picture, heat, peak=peak, marks=rings.get(camera, ())))
        drawn.append({"camera": in_words(camera), "src": src, "share": 100 * float(heat.sum())})
    return drawn


def _named(prefix: str, case: Row, results: Results) -> list[dict[str, Any]]:
    """How much attention the visual token at each named object received, and its rank."""
    maps = {camera: results.maps.get(f"{prefix}/{camera}") for camera in case["images"]}
    values = [m.ravel() for m in maps.values() if m is not None]
    found = []
    for tag in case.get("tags", []):
        heat = maps.get(tag["camera"])
        if heat is None:
            continue
        rows, columns = heat.shape
        at = min(int(tag["y"] * rows), rows - 1), min(int(tag["x"] * columns), columns - 1)
        above = sum(int((m > heat[at]).sum()) for m in values)
        total = sum(len(m) for m in values)
        share = 100 * float(heat[at])
        found.append({"name": tag["name"], "share": share, "rank": above + 1, "of": total})
    return found


def _marks(tags: Sequence[Row], *, named: bool) -> dict[str, list[Mark]]:
    marks: dict[str, list[Mark]] = {}
    for tag in tags:
        name = tag["name"] if named else ""
        marks.setdefault(tag["camera"], []).append(Mark(name, tag["x"], tag["y"]))
    return marks


def _picture(path: Path, known: dict[Path, Image.Image | None]) -> Image.Image | None:
    """A picture, None where the file is gone: the page says so instead of failing."""
    if path not in known:
        try:
            with Image.open(path) as image:
                known[path] = image.convert("RGB")
        except (OSError, UnidentifiedImageError):
            known[path] = None
    return known[path]


def _plain(text: str) -> str:
    """A question as people read it: tags by name and camera, without region tokens."""
    tagged = _TAG.sub(
        lambda m: f"{m.group(1)} ({m.group(2).replace('_', ' ').lower()})", text or ""
    )
    return " ".join(_REGION.sub("", tagged).split())
