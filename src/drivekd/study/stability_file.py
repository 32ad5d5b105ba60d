"""The files of a stability study: verdicts and curves, and the worst cases' maps."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivekd.data.sample import CAPABILITIES
from drivekd.files.writing import atomic_file, write_json
from drivekd.study.panels import FEWEST, curve_json
from drivekd.study.recommend import Advice, named
from drivekd.study.stability import (
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
    steadiness: Steadiness, advice: Sequence[Advice], about: Mapping[str, Any], out: Path
) -> dict[str, Any]:
    """Judge every capability in the layers that the pre-study advises, and write the files.

    They are `stability.json`, whose content is returned, and, for the picture, `stability.npz`.
    `about` says what is known of teacher and data, among it `layers`, the teacher's depth, and
    `seed`, of the bootstrap.
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
