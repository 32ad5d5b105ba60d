"""A model on a data file: answers, scores, and a table for people."""

from __future__ import annotations

from pathlib import Path

from drivekd.data.readers import read
from drivekd.evaluate.asking import Asking, answers
from drivekd.evaluate.score import Score, Scores, score, write_scores
from drivekd.models.images import ImageMode
from drivekd.models.vlm import load


def evaluate(
    model: str | Path,
    data: Path,
    out: Path,
    *,
    format: str = "auto",
    images: ImageMode = "real",
    root: Path | None = None,
    max_new_tokens: int = 32,
    device: str = "cpu",
) -> Scores:
    """Answer the questions of a file and score the answers; an interrupted run continues.

    Args:
        model: folder, hub id or `world:NAME`.
        data: the file of questions.
        out: folder for `answers.jsonl` and `scores.json`.
        format: of the data file, as for `drivekd.data.readers.read`.
        images: the real pictures, grey ones, or those of another scene (the controls).
        root: folder that relative image paths start from.
        max_new_tokens: longest reply [tokens].
        device: where the model runs, e.g. `cuda`.

    Raises:
        FileNotFoundError: there is no such data file.
        ValueError: the data, the model, or answers that another model left in `out`.
    """
    samples = list(read(data, format, root=root))
    out.mkdir(parents=True, exist_ok=True)
    given = answers(
        load(model, device=device, answering=True),
        samples,
        Asking(max_new_tokens=max_new_tokens, images=images),
        out / "answers.jsonl",
    )
    scores = score(given)
    write_scores(scores, out / "scores.json")
    return scores


def table(scores: Scores) -> str:
    """The scores as lines for people: percent right, 95 % interval, number of questions."""
    named = [*scores.capabilities.items()]
    if scores.average is not None:
        named.append(("average", scores.average))
    if scores.everything is not None:
        named.append(("all questions", scores.everything))
    named += [(f"  {template}", each) for template, each in scores.templates.items()]
    return "\n".join(_line(name, each) for name, each in named)


def _line(name: str, each: Score) -> str:
    sure = each.low is not None and each.high is not None
    interval = f"[{each.low:5.1f}, {each.high:5.1f}]" if sure else " " * 14
    return f"{name:<24}{each.accuracy:6.1f} %  {interval}  n = {each.n}"
