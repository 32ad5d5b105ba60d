"""What a run will be, without its weights: models, layer windows, steps, length, memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from drivekd.data.sample import CAMERAS, IMAGE_PLACEHOLDER, Sample
from drivekd.distill import corpus, memory, plan
from drivekd.distill.memory import Part
from drivekd.distill.processes.parallel import ALONE
from drivekd.distill.teachers import agreement, teacher
from drivekd.distill.teachers.teacher import Term
from drivekd.distill.trained import trained
from drivekd.models import published
from drivekd.models import vlm as vlms
from drivekd.models.batch import group
from drivekd.recipe import Capability, Recipe
from drivekd.recipe.data import listed

TEXT_TOKENS = 200
"""Question, answer and template of one sample, where no data says how long they are [ours]."""

CHARACTERS_PER_TOKEN = 3
"""Of English with object tags; byte-level vocabularies reach 4 on plain English [ours]."""

PROCESSES = 8
"""Over which the estimate with `train.fsdp` is made: one machine of eight cards."""


@dataclass(frozen=True)
class Member:
    """A model that takes part.

    Attributes:
        role: student, or the capabilities that it teaches.
        source: as the recipe names it.
        parameters: of what is loaded.
        trained: how many of them are trained.
        layers: decoder layers that are loaded.
        depth: decoder layers that it has.
    """

    role: str
    source: str
    parameters: int
    trained: int
    layers: int
    depth: int


@dataclass(frozen=True)
class Steps:
    """How long the run is, in one process.

    Attributes:
        samples: that are trained on.
        rows: that they share.
        per_epoch: optimizer steps of a pass over the rows.
        total: optimizer steps of the run.
    """

    samples: int
    rows: int
    per_epoch: int
    total: int


@dataclass(frozen=True)
class Preview:
    """All that can be said of a run beforehand.

    Attributes:
        name: of the recipe.
        members: student, then the distinct teachers.
        capabilities: as the recipe gives them.
        terms: layers of student and teachers, matched.
        steps: None where data is missing.
        missing: the data files that are not there, and the datasets, which are not streamed here.
        six_cameras: the length of a sample with six pictures.
        longest: the longest row of the data; that of six cameras where the data is missing.
        parts: of the memory that a step takes.
    """

    name: str
    members: tuple[Member, ...]
    capabilities: dict[str, Capability]
    terms: tuple[Term, ...]
    steps: Steps | None
    missing: tuple[str, ...]
    six_cameras: memory.Row
    longest: memory.Row
    parts: tuple[Part, ...]


def preview(recipe: Recipe) -> Preview:
    """Look at a recipe, at the configurations of its models and at its data; load no weights.

    A published model is known from `models/published.py`, so nothing is downloaded for it.

    Raises:
        ValueError: recipe, models or data do not fit together.
    """
    plan.refuse_unsupported(recipe, ALONE)
    config = _config(recipe.student)
    student = published.skeleton(config, recipe.student)
    depth = len(vlms.decoder_layers(student))
    _, parameters = trained(recipe, student)
    count = sum(each.numel() for each in parameters)
    size = published.parameters(student)
    members = [Member("student", recipe.student, size, count, depth, depth)]
    teachers: list[tuple[vlms.Vlm, tuple[Term, ...]]] = []
    for source, uses in plan.uses(recipe).items():
        vlm, whole = _teacher(source, uses)
        agreement.check_agreement(student, vlm, ", ".join(uses), ())
        terms = tuple(teacher.term(name, use, depth, whole) for name, use in uses.items())
        size, layers = published.parameters(vlm), len(vlms.decoder_layers(vlm))
        members.append(Member(", ".join(uses), source, size, 0, layers, whole))
        teachers.append((vlm, terms))
    visual = _visual_tokens(student, recipe.data.max_image_tokens)
    six = memory.Row(len(CAMERAS) * visual, TEXT_TOKENS)
    steps, longest, missing = _data(recipe, visual, six)
    by_name = {term.capability: term for _, asked in teachers for term in asked}
    return Preview(
        name=recipe.name,
        members=tuple(members),
        capabilities=recipe.capabilities,
        terms=tuple(by_name[name] for name in recipe.capabilities),
        steps=steps,
        missing=missing,
        six_cameras=six,
        longest=longest,
        parts=tuple(memory.estimate(recipe, student, count, teachers, longest, PROCESSES)),
    )


def _config(source: str) -> Any:
    """From the folder if it is one, from the table if it is known, else from the hub."""
    folder = Path(vlms.locate(source))
    if source in published.PUBLISHED and not folder.is_dir():
        return published.config_of(source)
    config = vlms.config_of(source)
    if any(name.endswith("lm_head.weight") for name in _weights(folder)):
        # InternVL3's files say nothing of tying, newer releases of transformers take that for yes;
        # when they load the weights they find two of them and leave them apart.
        config.tie_word_embeddings = False
    return config


def _weights(folder: Path) -> set[str]:
    """Names of the weights in a folder, from their index or the head of the file."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    if not single.is_file():
        return set()
    with safe_open(single, framework="pt") as file:
        return set(file.keys())


def _teacher(source: str, uses: dict[str, Capability]) -> tuple[vlms.Vlm, int]:
    """The part of it that a run loads, and how many layers it has as a whole."""
    config = _config(source)
    depth = int(config.text_config.num_hidden_layers)
    kept = teacher.layers_used(uses, depth)
    if kept is not None:
        vlms.cut_layers(config.text_config, kept, source)
    return published.skeleton(config, source), depth


def _visual_tokens(student: vlms.Vlm, limit: int) -> int:
    """Of a picture; where they depend on its size, as many as the recipe allows at most."""
    return int(student.model.config.image_seq_length) if student.family.one_size else limit


# ------------------------------------------------------------------------------------- the data


def _data(
    recipe: Recipe, visual: int, six: memory.Row
) -> tuple[Steps | None, memory.Row, tuple[str, ...]]:
    sources = recipe.data.train
    missing = tuple(listed([s]) for s in sources if not isinstance(s, str) or not Path(s).exists())
    if missing:
        return None, six, missing
    samples = corpus.training_samples(recipe)
    packed = recipe.data.pack
    keys = [_shared(s) if packed and s.images else i for i, s in enumerate(samples)]
    limit, at_once = recipe.data.max_row_tokens if packed else None, recipe.data.questions_per_row
    sizes = [(len(sample.images) * visual, _text(sample)) for sample in samples]
    rows = group(keys, sizes, limit, at_once)
    order = corpus.order_of(recipe, rows, ALONE.size, samples)
    steps = Steps(len(samples), len(rows), order.steps_per_epoch, plan.steps_of(recipe, order))
    lengths = (_length([samples[i] for i in row], visual, at_once) for row in rows)
    return steps, max(lengths, key=lambda row: row.tokens), ()


def _shared(sample: Sample) -> object:
    """What samples of one row have in common: pictures, and all text before the last of them."""
    turns = [f"{message.role} {message.content}" for message in sample.prompt]
    before, _, _ = "\n".join(turns).rpartition(IMAGE_PLACEHOLDER)
    return tuple(sample.images.values()), before


def _length(samples: Sequence[Sample], visual: int, at_once: int | None) -> memory.Row:
    """Of a row: the pictures once, and as many of its longest texts as a batch sees."""
    texts = sorted((_text(sample) for sample in samples), reverse=True)
    return memory.Row(len(samples[0].images) * visual, sum(texts[:at_once]))


def _text(sample: Sample) -> int:
    """About so many tokens are not visual."""
    return -(-sum(len(m.content) for m in sample.messages) // CHARACTERS_PER_TOKEN)


# ------------------------------------------------------------------------------------ for people


def show(found: Preview) -> None:
    """Print it as tables."""
    console = Console(highlight=False)
    for table in (_models(found), _windows(found), _memory(found)):
        if table.row_count:
            console.print(table)
    for line in _lines(found):
        console.print(line, soft_wrap=True)


def _models(found: Preview) -> Table:
    table = _table(f"{found.name}: models", "model", "role", "parameters", "trained", "layers")
    for each in found.members:
        share = f"{100 * each.trained / each.parameters:.1f} %" if each.trained else "frozen"
        layers = f"{each.layers} of {each.depth}"
        table.add_row(each.source, each.role, _count(each.parameters), share, layers)
    return table


def _windows(found: Preview) -> Table:
    table = _table(
        "layers: student → the teacher's whose mean is the target",
        "capability",
        "signal",
        "first",
        "last",
        "widest",
    )
    for term in found.terms:
        cells = [_window(term, min), _window(term, max)] if term.matches else ["–", "–"]
        widest = max((len(layers) for layers in term.matches.values()), default=0)
        table.add_row(term.capability, term.signal, *cells, str(widest or "–"))
    return table


def _window(term: Term, end: Any) -> str:
    """The first or last pair of a matching, counted from 1."""
    layer = end(term.matches)
    theirs = [number + 1 for number in term.matches[layer]]
    span = f"{theirs[0]}" if len(theirs) == 1 else f"{theirs[0]}–{theirs[-1]}"
    return f"{layer + 1} → {span}"


def _memory(found: Preview) -> Table:
    sharded = f"each of {PROCESSES}, train.fsdp"
    table = _table("memory of a step [GB], estimated", "what", "one process", sharded)
    for part in found.parts:
        table.add_row(part.name, f"{part.alone / 1e9:.1f}", f"{part.sharded / 1e9:.1f}")
    totals = (sum(p.alone for p in found.parts), sum(p.sharded for p in found.parts))
    table.add_section()
    table.add_row("together", *(f"{total / 1e9:.1f}" for total in totals))
    return table


def _lines(found: Preview) -> Iterator[str]:
    six = found.six_cameras
    yield (
        f"A sample with {len(CAMERAS)} cameras: at most {six.visual:,} visual tokens and about "
        f"{six.text} of text, {six.tokens:,} together."
    )
    if found.steps is None:
        files = ", ".join(found.missing)
        yield f"Training data missing: {files}. Memory is for one such sample to a row."
        return
    steps = found.steps
    yield (
        f"{steps.samples:,} samples in {steps.rows:,} rows, the longest of about "
        f"{found.longest.tokens:,} tokens: {steps.per_epoch:,} optimizer steps per epoch and "
        f"{steps.total:,} in all, in one process."
    )


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first, overflow="fold")
    for column in columns:
        number = column not in ("role", "signal")
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e8 else f"{number / 1e6:.2f} M"
