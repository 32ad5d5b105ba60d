"""The recipe fragment that a pre-study ends in: YAML that `drivekd train` reads, with reasons."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence

from drivekd.study.recommend import Advice, named


def fragment(
    advices: Sequence[Advice], teacher: str, depth: int, student: tuple[str, int] | None
) -> str:
    """The keys `capabilities` (and `student`) of a recipe, a comment above every choice.

    Args:
        advices: one per capability.
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
        lines.append(f"student: {json.dumps(student[0], ensure_ascii=False)}")
    if not advices:
        return "\n".join([*lines, "# Not enough data for any capability.", "capabilities: {}", ""])
    lines.append("capabilities:")
    for each in advices:
        own = named(each.layers, depth, student[1] if student else None)
        lines += [f"  {json.dumps(each.capability, ensure_ascii=False)}:", *_comment(each)]
        lines += [
            f"    teacher: {json.dumps(teacher, ensure_ascii=False)}",
            f"    student_layers: {own}",
            f"    teacher_layers: {_of_teacher(each.layers, depth)}",
            f"    signal: {each.signal}",
        ]
    return "\n".join([*lines, ""])


def _of_teacher(layers: Sequence[int], depth: int) -> str:
    return named(layers, depth, depth)


def _comment(advice: Advice) -> list[str]:
    said = [advice.reason, advice.paper, *(f"weak: {doubt}" for doubt in advice.weak)]
    return [
        f"    # {line}"
        for sentence in said
        if sentence
        for line in textwrap.wrap(" ".join(sentence.split()), 92)
    ]
