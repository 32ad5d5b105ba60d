"""The model card, `README.md` beside the weights: where a model comes from, and what it is not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from drivekd.distill.saving.trainer_state import State

#: Name of the loss on held-out data in the record of a run.
HELD_OUT = "eval/loss/ce"


def text(state: State, folder: Path, counts: Mapping[str, int], held_out: int) -> str:
    """The card of a model.

    Every name that a user gave appears as code, so that none of it is read as Markdown or HTML.

    Args:
        state: of the run when the model was saved.
        folder: that holds the model.
        counts: training samples per capability.
        held_out: how many samples of `data.eval` there are.
    """
    recipe = state.recipe
    parts = [
        _header(recipe),
        f"# {_code(recipe['name'])}",
        _origin(state),
        *_teachers(state),
        "## Training",
        _training(state, counts, held_out),
        "The resolved recipe:",
        _block(yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True), "yaml"),
        "## Use",
        "Plain transformers loads it; with torchvision installed, `AutoProcessor` works as well.",
        _block(_loading(folder), "python"),
        "Its answers are scored by",
        _block("\n".join(evaluation_commands(recipe, folder)), "sh"),
        "## Limits",
        _LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


_LIMITS = """\
- It answers open-loop questions about pictures. It is not a driving system: no answer was ever
  acted upon, in traffic or in a simulator, and none should be.
- Its answers may be wrong, and the losses above are no scores: evaluate it on your own questions.
- It inherits what is wrong with its base model, its teachers and its data.
- No licence is stated here: it follows from those of the base model, the teachers and the data."""


def _header(recipe: Mapping[str, Any]) -> str:
    tags = ["drivekd", "autonomous-driving"]
    tags += ["knowledge-distillation"] if recipe["capabilities"] else []
    tags += ["lora"] if recipe["train"]["trainable"] == "lora" else []
    meta = {
        "base_model": recipe["student"],
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": tags,
    }
    return f"---\n{yaml.safe_dump(meta, sort_keys=False, allow_unicode=True)}---"


_TRAINED = {
    "language_model": "its language model was trained",
    "everything": "all of it was trained",
    "lora": "adapters in its language model were trained (LoRA) and added to its weights",
}


def _origin(state: State) -> str:
    recipe, embeds = state.recipe, any("embed_tokens" in name for name in state.trained)
    trained = _TRAINED[recipe["train"]["trainable"]]
    if recipe["train"]["trainable"] == "language_model":
        trained += ", with tied input embeddings" if embeds else ", not its embeddings"
    how = "from the teachers below and " if recipe["capabilities"] else ""
    return (
        f"A student of driving questions, trained with drivekd {how}on answers by cross-entropy. "
        f"It started from {_code(recipe['student'])}; {trained}."
    )


def _teachers(state: State) -> list[str]:
    if not state.teachers:
        return []
    rows: list[Sequence[str]] = [
        ("capability", "teacher", "sha256", "signal", "student layers", "teacher layers")
    ]
    for name, who in state.teachers.items():
        asked = state.recipe["capabilities"][name]
        layers = (asked["student_layers"], asked["teacher_layers"])
        shown = (_code(each) if each is not None else "" for each in layers)
        rows.append(
            (_code(name), _code(who["source"]), who["sha256"][:12], _code(asked["signal"]), *shown)
        )
    return ["## Teachers", _table(rows)]


def _training(state: State, counts: Mapping[str, int], held_out: int) -> str:
    rows = [("", "")]
    rows += [(f"training samples, {_code(name)}", str(n)) for name, n in counts.items()]
    rows.append(("held-out samples", str(held_out)))
    rows.append(("optimizer steps", f"{state.step} of {state.total_steps}"))
    rows.append(("epochs", f"{state.epoch:.4g}"))
    for name, (_, last) in ends(state.log_history).items():
        rows.append((f"last {_code(name)}", f"{last:.4g}"))
    if state.best_global_step is not None:
        least = f"{state.best_metric:.4g} after step {state.best_global_step}"
        rows.append((f"least {_code(HELD_OUT)} of what was saved", least))
        if state.step == state.total_steps:
            rows.append(("weights", f"those after step {state.best_global_step}"))
    return _table(rows)


def ends(lines: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """The first and the last value of every loss that was logged."""
    found: dict[str, tuple[float, float]] = {}
    for line in lines:
        for name, value in line.items():
            if name.startswith("loss/") or name == HELD_OUT:
                found[name] = (found.get(name, (value, value))[0], value)
    return found


def _loading(folder: Path) -> str:
    return (
        "from transformers import AutoModelForImageTextToText, AutoTokenizer\n\n"
        f"folder = {str(folder)!r}\n"
        "model = AutoModelForImageTextToText.from_pretrained(folder)\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder)"
    )


def evaluation_commands(recipe: Mapping[str, Any], folder: Path) -> list[str]:
    """The commands that score a model: one per file of `data.eval`, or one for the user's own."""
    files: list[str | None] = [e for e in recipe["data"]["eval"] if isinstance(e, str)]
    out = f"evaluation-{folder.name}"  # a folder of the run's, where `drivekd report` looks
    names = [out] if len(files) < 2 else [f"{out}-{n}" for n in range(1, len(files) + 1)]
    places = [folder.parent / name for name in names]
    return [
        " ".join(_command(recipe, folder, data, place))
        for data, place in zip(files or [None], places, strict=True)
    ]


def _command(recipe: Mapping[str, Any], folder: Path, data: str | None, out: Path) -> list[str]:
    quoted = "QUESTIONS.jsonl" if data is None else shlex.quote(data)
    words = ["drivekd evaluate", "--model", shlex.quote(str(folder)), "--data", quoted]
    if data is not None and recipe["data"]["root"] is not None:
        words += ["--root", shlex.quote(recipe["data"]["root"])]
    if recipe["data"]["images"] != "real":
        words += ["--images", recipe["data"]["images"]]
    return [*words, "--out", shlex.quote(str(out))]


# ------------------------------------------------------------------------------------ Markdown


def _table(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the head."""
    lines = ["| " + " | ".join(each.replace("|", r"\|") for each in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _fence(content: str, least: int) -> str:
    """More backticks than stand in a row anywhere in the content."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", content)), default=0))


def _code(value: object) -> str:
    flat = " ".join(str(value).split())
    pad = " " if "`" in flat else ""
    return f"{_fence(flat, 1)}{pad}{flat}{pad}{_fence(flat, 1)}"


def _block(content: str, language: str) -> str:
    fence = _fence(content, 3)
    return f"{fence}{language}\n{content.rstrip()}\n{fence}"
