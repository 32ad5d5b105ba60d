"""The pre-study of a teacher: four panels, the layers and signal they speak for, in files."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from drivekd.data.formats.readers import read
from drivekd.data.sample import CAPABILITIES, Sample
from drivekd.distill.order import scene_of, select
from drivekd.distill.out_of_memory import happened
from drivekd.distill.teachers import teacher as teachers
from drivekd.files.lock import locked
from drivekd.files.writing import atomic_file, write_json
from drivekd.models import vlm as vlms
from drivekd.study.forward import Reading
from drivekd.study.general import draw_general
from drivekd.study.measuring import add, ask, measure_margins
from drivekd.study.panels import Panels, as_json, panels
from drivekd.study.recommend import Advice, named
from drivekd.study.stability import Steadiness
from drivekd.study.stability_file import write
from drivekd.study.sums import Sums

GENERAL_PICTURES = 40  # drawn where no file of general questions is given; four questions each


def run(
    teacher: str,
    data: Path,
    out: Path,
    *,
    student: str | None = None,
    general: Path | None = None,
    format: str = "auto",
    root: Path | None = None,
    max_samples: int | None = None,
    drop: float | None = None,
    reading: Reading = "usual",
    seed: int = 0,
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> dict[str, Any]:
    """Read a teacher on a data file and write what it shows; returns what `prestudy.json` holds.

    The recommended layers are given for the `student`'s depth. Questions that are not about driving
    are those of `general`, else drawn here. With a `drop`, from which on the cosine of attention
    over wordings counts as one, `stability.json` is written too. `reading` says how tokens become
    features (`drivekd.study.forward.Reading`); the seed is that of the draw of `max_samples`, of
    the drawn questions, and of the bootstrap.

    OSError, ValueError: the data, a model, or states that are not finite.
    """
    rows = _assigned(list(read(data, format, root=root)), data)
    samples = select(rows, seed=seed, max_scenes=None, max_samples=max_samples)
    pupil = (student, teachers.depth(student)) if student else None
    steadiness = None if drop is None else Steadiness(drop)
    with _held(out, teacher):
        drawn = partial(draw_general, out / "general", GENERAL_PICTURES, seed)
        others = list(read(general, format)) if general else drawn()
        vlm = teachers.freeze(vlms.load(teacher, device=device, dtype=getattr(torch, dtype)))
        about = _about(vlm, data, samples, reading, seed)
        found = panels(_read(vlm, samples, others, reading, steadiness), about["layers"], seed)
        content = _content(about, found, student, _counts(general, others))
        if steadiness is not None:
            write(steadiness, found.advice, about, out)
        lines = fragment(found.advice, teacher, about["layers"], pupil)
        _write(out / "recipe.fragment.yaml", lines)
        write_json(out / "prestudy.json", content)
    return content


def _about(
    vlm: vlms.Vlm, data: Path, samples: Sequence[Sample], reading: Reading, seed: int
) -> dict[str, Any]:
    """What was read, of whom."""
    return {
        "teacher": teachers.identity(vlm),
        "layers": len(vlms.decoder_layers(vlm)),
        "data": _counts(data, samples),
        "reading": reading,
        "seed": seed,
        "versions": {name: version(name) for name in ("drivekd", "torch", "transformers")},
    }


def _content(
    about: Mapping[str, Any], found: Panels, student: str | None, general: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        **about,
        "student": student,
        "general": general,
        **as_json(found),
        "advice": [_advice(each, about["layers"]) for each in found.advice],
    }


def _assigned(samples: list[Sample], data: Path) -> list[Sample]:
    if samples and not any(sample.capability for sample in samples):
        raise ValueError(
            f"{data}: none of {len(samples)} samples says which capability it exercises: give rows "
            f"`question_type`, for instance {', '.join(CAPABILITIES)}"
        )
    return samples


@contextmanager
def _held(out: Path, teacher: str) -> Iterator[None]:
    """Keep others out of a folder, and the folder to one teacher: a slip in --out loses nothing."""
    with locked(out):
        held = out / "prestudy.json"
        if held.exists():
            source = json.loads(held.read_text(encoding="utf-8"))["teacher"]["source"]
            if source != teacher:
                raise ValueError(f"{out} holds the pre-study of {source}: name another --out")
        yield


def _read(
    vlm: vlms.Vlm,
    samples: Sequence[Sample],
    others: Sequence[Sample],
    reading: Reading,
    steadiness: Steadiness | None,
) -> Sums:
    sums = Sums()
    try:
        for asked in ask(vlm, samples, reading):
            for each in asked:
                add(sums, each)
            if steadiness is not None:
                steadiness.add(asked)
        measure_margins(vlm, others, sums)
    except (RuntimeError, MemoryError) as error:
        if not happened(error):
            raise
        raise RuntimeError(
            "out of memory while reading the teacher; nothing was written. Take --dtype bfloat16, "
            "another --device, or fewer samples (--max-samples)"
        ) from error
    return sums


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


def _counts(file: Path | None, samples: Sequence[Sample]) -> dict[str, Any]:
    """Of a file, or of questions drawn here."""
    capabilities = Counter(sample.capability or "none" for sample in samples)
    return {
        "file": file.name if file else "drawn",
        "samples": len(samples),
        "scenes": len({scene_of(sample) for sample in samples}),
        "capabilities": dict(sorted(capabilities.items())),
    }


def _advice(advice: Advice, depth: int) -> dict[str, Any]:
    return {**asdict(advice), "teacher_layers": named(advice.layers, depth, depth)}


def fragment(
    advices: Sequence[Advice], teacher: str, depth: int, student: tuple[str, int] | None
) -> str:
    """Write the keys `capabilities` (and `student`) of a recipe, a comment above every choice.

    `depth` is the teacher's; `student` its name and layers, where known.
    """
    lines = [
        f"# Made by `drivekd prestudy` from {teacher}.",
        "# Name it as `base` in a recipe of yours, or give what it lacks: drivekd train",
        "# recipe.fragment.yaml --set name=mine --set student=… --set 'data.train=[…]' --out …",
    ]
    if student is not None:
        lines.append(_yaml({"student": student[0]}))
    lines.append("capabilities:")
    for advice in advices:
        keys = {
            "teacher": teacher,
            "student_layers": named(advice.layers, depth, student[1] if student else None),
            "teacher_layers": named(advice.layers, depth, depth),
            "signal": advice.signal,
        }
        name, *rest = _yaml({advice.capability: keys}).splitlines()
        lines += [f"  {line}" for line in (name, *_comment(advice), *rest)]
    return "\n".join([*lines, ""])


def _yaml(content: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=10_000)
    return text.rstrip()


def _comment(advice: Advice) -> list[str]:
    said = [advice.reason, advice.paper, *(f"weak: {doubt}" for doubt in advice.weak)]
    return [
        f"  # {line}"
        for sentence in said
        if sentence
        for line in textwrap.wrap(" ".join(sentence.split()), 92)
    ]
