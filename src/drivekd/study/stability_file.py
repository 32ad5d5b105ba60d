"""The stability of a teacher's attention as files, and as tables for the console."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from drivekd.data.sample import CAPABILITIES
from drivekd.files.writing import atomic_file, write_json
from drivekd.study.panels import FEWEST, curve_json
from drivekd.study.recommend import Advice, named
from drivekd.study.stability import (
    ROWS,
    WORDINGS,
    WORDS,
    WORST,
    Case,
    Steadiness,
    Verdict,
    curves,
    judge,
)
from drivekd.study.sums import Sums


def write(
    steadiness: Steadiness,
    advice: Sequence[Advice],
    about: Mapping[str, Any],
    out: Path,
) -> dict[str, Any]:
    """Judges every capability in the layers that the pre-study advises, and writes the files.

    Args:
        steadiness: after all questions.
        advice: per capability.
        about: what the file says of teacher and data, among it `layers`, the teacher's depth, and
            `seed`, of the bootstrap.
        out: gets `stability.json` and, for the picture, `stability.npz`.

    Returns:
        What `stability.json` holds.
    """
    found = curves(steadiness.sums, about["seed"])
    verdicts = [
        verdict
        for each in advice
        if (verdict := judge(found, each.capability, each.layers, steadiness.drop))
    ]
    cases = _chosen(steadiness.worst, verdicts)
    content = {
        **about,
        "drop": steadiness.drop,
        "verdict": max((v.verdict for v in verdicts), key=WORDS.index, default=None),
        "verdicts": [
            {**asdict(v), "teacher_layers": named(v.layers, about["layers"])} for v in verdicts
        ],
        "curves": {n: curve_json(c) for n, c in found.items() if not n.startswith("near/")},
        "lacks": _lacks(steadiness.sums),
        "worst": [_case_json(case, out) for case in cases],
    }
    with atomic_file(out / "stability.npz") as draft, draft.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **_arrays(cases))
    write_json(out / "stability.json", content)
    return content


def _chosen(
    worst: Mapping[tuple[str, int], Sequence[Case]], verdicts: Sequence[Verdict]
) -> list[Case]:
    """The worst cases of the layers that were judged, each question in its worst one."""
    judged = {(each.capability, layer) for each in verdicts for layer in each.layers}
    cases = [case for place in sorted(judged) for case in worst.get(place, ())]
    of: dict[str, Case] = {}
    for case in sorted(cases, key=lambda case: case.cosine):
        of.setdefault(case.sample.id, case)
    return list(of.values())[:WORST]


def _lacks(sums: Sums) -> list[str]:
    """What there is too little data for."""
    said = []
    for name in dict.fromkeys([*CAPABILITIES, *sorted(sums.named("cosine/question/"))]):
        have = {kind: sums.count(f"{kind}/question/{name}") for kind in ("cosine", "other")}
        if have["cosine"] < FEWEST:
            what = f"{name} questions with pictures in {WORDINGS} wordings"
            said.append(f"{what}: need {FEWEST}, have {have['cosine']}")
        elif have["other"] < FEWEST:
            what = f"{name} questions with other questions about the same pictures"
            said.append(f"{what}: need {FEWEST}, have {have['other']}")
    return said


def _case_json(case: Case, out: Path) -> dict[str, Any]:
    sample = case.sample
    return {
        "id": sample.id,
        "capability": sample.capability,
        "layer": case.layer,
        "cosine": case.cosine,
        "apart": [case.numbers.index(i) for i in case.apart],
        "wordings": list(case.wordings),
        "images": {
            camera: Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()
            for camera, path in sample.images.items()
        },
    }


def _arrays(cases: Sequence[Case]) -> dict[str, NDArray[np.float32]]:
    """Maps by `CASE/WORDING/CAMERA` [rows, columns]."""
    arrays = {}
    for number, case in enumerate(cases):
        ends = np.cumsum([rows * columns for rows, columns in case.grids])[:-1]
        for word, profile in enumerate(case.maps):
            parts = np.split(profile, ends)
            for camera, part, grid in zip(case.sample.images, parts, case.grids, strict=True):
                arrays[f"{number}/{word}/{camera}"] = part.reshape(grid)
    return arrays


def table(content: Mapping[str, Any]) -> str:
    """The verdicts, and what they rest on in every layer.

    Args:
        content: what `stability.json` holds.
    """
    console = Console(file=io.StringIO(), width=110)
    console.print(_verdicts(content))
    console.print(_layers(content))
    for each in content["lacks"]:
        console.print(f"stability: not enough data: {each}", markup=False, soft_wrap=True)
    if content["verdict"] is not None:
        console.print(f"attention of this teacher: {content['verdict']}")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()


def _verdicts(content: Mapping[str, Any]) -> Table:
    beyond = f"beyond\n{content['drop']:g}"
    heads = ("capability", "layers", "n", "cosine of\nwordings", beyond, "of other\nquestions")
    made = Table(*heads, "spared", "verdict", title="stability over wordings")
    for each in content["verdicts"]:
        cells = (
            each["capability"],
            each["teacher_layers"],
            str(each["n"]),
            _with_band(each["cosine"]),
            _with_band(each["beyond"], percent=True),
            _with_band(each["other"]),
            _with_band(each["spared"], percent=True),
            f"{each['verdict']}: {'; '.join(each['reasons'])}",
        )
        made.add_row(*map(escape, cells))
    return made


def _with_band(figure: Mapping[str, float | None] | None, *, percent: bool = False) -> str:
    if figure is None:
        return "–"
    scale, digits = (100, 0) if percent else (1, 3)
    ends = [each for key in ("mean", "low", "high") if (each := figure[key]) is not None]
    mean, *band = (f"{scale * each:.{digits}f}" for each in ends)
    unit = " %" if percent else ""
    return f"{mean}{unit}\n[{', '.join(band)}]" if band else f"{mean}{unit}"


def _layers(content: Mapping[str, Any]) -> Table:
    """A row per layer and reading: cosine of wordings, of other questions, and what is spared."""
    found = content["curves"]
    names = [n.removeprefix("cosine/question/") for n in found if n.startswith("cosine/question/")]
    shown = [(kind, name) for name in names for kind in ("cosine", "other", "spared")]
    heads = [f"{escape(name[:4])}.\n{kind}" for kind, name in shown]
    made = Table("layer", "rows", *heads, box=None)
    for layer in range(content["layers"]):
        for rows in ROWS:
            cells = [_cell(found.get(f"{kind}/{rows}/{name}"), layer) for kind, name in shown]
            made.add_row(str(layer + 1), rows, *cells)
    return made


def _cell(curve: Mapping[str, Any] | None, layer: int) -> str:
    value = None if curve is None else curve["mean"][layer]
    return "–" if value is None else f"{value:.3f}"
