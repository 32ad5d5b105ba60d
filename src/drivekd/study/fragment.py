"""The recipe fragment that a pre-study ends in: YAML that `drivekd train` reads, with reasons."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from drivekd.study.recommend import Advice, named


def fragment(
    advices: Sequence[Advice], teacher: str, depth: int, student: tuple[str, int] | None
) -> str:
    """The keys `capabilities` (and `student`) of a recipe, a comment above every choice.

    Args:
        advices: one per capability, at least one.
        teacher: path, hub id or `world:NAME`.
        depth: its layers.
        student: its name and layers, where known.
    """
    lines = [
        f"# Made by `drivekd prestudy` from {teacher}.",
        "# Name it as `base` in a recipe of yours, or give what it lacks: drivekd train",
        "# recipe.fragment.yaml --set name=mine --set student=… --set 'data.train=[…]' --out …",
    ]
    if student is not None:
        lines.append(_yaml({"student": student[0]}))
    lines.append("capabilities:")
    for each in advices:
        keys = {
            "teacher": teacher,
            "student_layers": named(each.layers, depth, student[1] if student else None),
            "teacher_layers": named(each.layers, depth, depth),
            "signal": each.signal,
        }
        name, *rest = _yaml({each.capability: keys}).splitlines()
        lines += [f"  {line}" for line in (name, *_comment(each), *rest)]
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
