"""Write the page of a run: one HTML file that opens from disk and asks the network for nothing.

It is made of the result files in the folder of the run, and shows what is missing as missing:

summary.json
    {"scores": {ARM: {"perception", "reasoning", "planning", "average"}}, "n": {capability: count},
    "seconds": wall time [s]}, scores in percent.
about.json (optional)
    {"title": text, "facts": {name: text}, "commands": [{"command": text, "what": text}],
    "absent": {ARM: reason}}.
scenes.json (optional; `drivekd.demo.looking.write_scenes`)
    [{"frame", "images": {camera: path relative to the folder}, "tags": [{"name", "camera", "x",
    "y"}], "questions": [{"capability", "template", "question", "answer"}]}].
ARM/scores.json (`drivekd.evaluate.score.write_scores`)
    {"capabilities": {name: S}, "templates": {name: S}, "average": S}, S = {"n", "accuracy", "low",
    "high", "scenes"} in percent; low and high may be null.
ARM/answers.jsonl (`drivekd.evaluate.answers.asking.answers`)
    a row per question and run: id, capability, template, question, expected, reply, correct.
ARM/log.jsonl (`drivekd train`)
    a row per logged step: step, loss/ce, loss/KIND/CAPABILITY, lambda/CAPABILITY, grad/….
[prestudy/]prestudy.json, stability.json, stability.png (optional; `drivekd prestudy`)
    a teacher's pre-study, which alone makes a page.
attention/cases.json, attention/maps.npz (optional; `drivekd.demo.looking.attention_cases`)
    [{"id", "capability", "template", "question", "expected", "rows": "answer" | "question",
    "images": {camera: path}, "tags": […], "arms": {ARM: {"reply", "correct", "layer", "layers",
    "share"}}}]; arrays "CASE/ARM/CAMERA" [rows, columns], CASE = index in the list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from drivekd.data.cameras import around, in_words
from drivekd.data.pictures import image_or_none
from drivekd.data.sample import CAPABILITIES
from drivekd.report.answers import write_answers
from drivekd.report.figures import Mark, data_uri, tile
from drivekd.report.html import write_html
from drivekd.report.panels import telemetry_panels, training_panels
from drivekd.report.prestudy import as_address
from drivekd.report.results import ARMS, Arm, Results, Row, read_results
from drivekd.report.stability import stability_address

Pictures = dict[Path, Image.Image | None]

_EXAMPLES = 4  # answers shown per direction of change


def write_page(folder: Path) -> Path:
    """Write `report.html` into the folder of a run, or of an evaluation, and return its path.

    Raises:
        ValueError: no result file in the folder, or a broken one.
    """
    if (folder / "evaluation.json").is_file():
        return write_answers(folder)
    results = read_results(folder)
    name = "page.html.j2" if results.of_a_run else "prestudy.html.j2"
    return write_html(name, folder / "report.html", **_context(results))


def _context(results: Results) -> dict[str, Any]:
    pictures: Pictures = {}
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
    """Make a row per arm with a cell per capability and one for the average."""
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
    """Count questions per capability and in all; None where the run does not say."""
    n: Mapping[str, int] = (results.summary or {}).get("n", {})
    if not n:
        details = [d["capabilities"] for d in results.scores.values() if d.get("capabilities")]
        n = {name: s["n"] for name, s in details[0].items()} if details else {}
    counts = [n.get(capability) for capability in CAPABILITIES]
    return [*counts, sum(c for c in counts if c is not None)] if n else None


def _headline(results: Results) -> list[dict[str, Any]]:
    """Return the few numbers that the run is about."""
    cells = {arm.key: _cell(results, arm.key, "average") for arm in results.arms}
    average = {key: cell["value"] for key, cell in cells.items() if cell is not None}
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
    """Name the demo's arms that this run does not have, and why."""
    reasons: Mapping[str, str] = results.about.get("absent", {})
    expected = [arm for arm in ARMS if arm.key != "mismatched" or arm.key in reasons]
    absent = [arm for arm in expected if arm not in results.arms]
    return [(arm.name, reasons.get(arm.key, "no scores in this folder")) for arm in absent]


def _templates(results: Results) -> dict[str, Any] | None:
    """Tabulate accuracy per template and arm; `above`: its interval is above every control."""
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
    rows = (row for rows in answers for row in rows if row.get("template"))
    return {row["template"]: row.get("capability") or "" for row in rows}


def _changes(results: Results) -> dict[str, Any] | None:
    """Compare the answers of Drive-KD and cross-entropy alone, question by question."""
    if not {"drivekd", "ce_only"} <= set(results.answers):
        return None
    plain = {row["id"]: row for row in results.answers["ce_only"]}
    pairs = [(row, plain[row["id"]]) for row in results.answers["drivekd"] if row["id"] in plain]
    counts = []
    for capability in CAPABILITIES:
        mine = Counter(_outcome(pair) for pair in pairs if pair[0].get("capability") == capability)
        if mine:
            counts.append((capability, [mine[outcome] for outcome in _OUTCOMES]))
    examples = [
        ("Only Drive-KD right", _spread([p for p in pairs if _outcome(p) == (True, False)])),
        ("Only cross-entropy right", _spread([p for p in pairs if _outcome(p) == (False, True)])),
    ]
    return {"counts": counts, "examples": [(name, rows) for name, rows in examples if rows]}


_OUTCOMES = ((True, True), (True, False), (False, True), (False, False))


def _outcome(pair: tuple[Row, Row]) -> tuple[bool, bool]:
    return bool(pair[0]["correct"]), bool(pair[1]["correct"])


def _spread(pairs: Sequence[tuple[Row, Row]]) -> list[tuple[Row, Row]]:
    """Pick the first pair of each template, in the order of the file."""
    first: dict[Any, tuple[Row, Row]] = {}
    for pair in pairs:
        first.setdefault(pair[0].get("template"), pair)
    return list(first.values())[:_EXAMPLES]


def _scene(scene: Row, folder: Path, pictures: Pictures) -> dict[str, Any]:
    marks = _marks(scene.get("tags", []), named=False)
    return {
        "frame": scene["frame"],
        "tiles": _tiles(_shown(scene["images"], folder, pictures), marks),
        "tags": sum(len(m) for m in marks.values()),
        "questions": scene.get("questions", []),
    }


Shown = Sequence[tuple[str, Image.Image | None]]


def _shown(images: Mapping[str, str], folder: Path, known: Pictures) -> Shown:
    """Read pictures, None where a file is gone: the page says so instead of failing."""
    paths = [(camera, folder / images[camera]) for camera in around(images)]
    for _, path in paths:
        if path not in known:
            known[path] = image_or_none(path)
    return [(camera, known[path]) for camera, path in paths]


def _tiles(shown: Shown, marks: Mapping[str, Sequence[Mark]]) -> list[dict[str, Any]]:
    return [
        {"camera": in_words(c), "src": image and data_uri(tile(image, marks=marks.get(c, ())))}
        for c, image in shown
    ]


def _case(number: int, case: Row, results: Results, pictures: Pictures) -> dict[str, Any]:
    shown = _shown(case["images"], results.folder, pictures)
    rings = _marks(case.get("tags", []), named=False)
    rows = [
        {
            "arm": _arm(key),
            **said,
            "tiles": _heat(f"{number}/{key}", shown, results, rings),
            "named": _named(f"{number}/{key}", case, results),
        }
        for key, said in case["arms"].items()
    ]
    tiles = _tiles(shown, _marks(case.get("tags", []), named=True))
    return {**case, "tiles": tiles, "rows_of_arms": rows}


def _heat(
    prefix: str, shown: Shown, results: Results, rings: Mapping[str, Sequence[Mark]]
) -> list[dict[str, Any]] | None:
    """Draw an arm's attention on one scale; None where a map or picture is missing."""
    maps = [results.maps.get(f"{prefix}/{camera}") for camera, _ in shown]
    peak = max((float(m.max()) for m in maps if m is not None), default=1.0)
    drawn = []
    for (camera, picture), heat in zip(shown, maps, strict=True):
        if heat is None or picture is None:
            return None
        src = data_uri(tile(picture, heat, peak=peak, marks=rings.get(camera, ())))
        drawn.append({"camera": in_words(camera), "src": src, "share": 100 * float(heat.sum())})
    return drawn


def _named(prefix: str, case: Row, results: Results) -> list[dict[str, Any]]:
    """Return the attention on the visual token at each named object, and its rank."""
    maps = {camera: results.maps.get(f"{prefix}/{camera}") for camera in case["images"]}
    values = [m.ravel() for m in maps.values() if m is not None]
    named = []
    for tag in case.get("tags", []):
        heat = maps.get(tag["camera"])
        if heat is None:
            continue
        rows, columns = heat.shape
        at = min(int(tag["y"] * rows), rows - 1), min(int(tag["x"] * columns), columns - 1)
        above = sum(int((m > heat[at]).sum()) for m in values)
        total = sum(len(m) for m in values)
        share = 100 * float(heat[at])
        named.append({"name": tag["name"], "share": share, "rank": above + 1, "of": total})
    return named


def _marks(tags: Sequence[Row], *, named: bool) -> dict[str, list[Mark]]:
    marks: dict[str, list[Mark]] = {}
    for tag in tags:
        name = tag["name"] if named else ""
        marks.setdefault(tag["camera"], []).append(Mark(name, tag["x"], tag["y"]))
    return marks
