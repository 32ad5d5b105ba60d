"""The samples of a run: read, drawn, encoded once, checked before anything is trained."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drivekd.data.formats import hub
from drivekd.data.formats.readers import read
from drivekd.data.sample import Sample
from drivekd.distill.order import Order, portions, select
from drivekd.distill.saving.trainer_state import digest
from drivekd.distill.teachers.teacher import Term
from drivekd.files.identity import identities
from drivekd.files.progress import track
from drivekd.models import encode
from drivekd.models.batch import IGNORE, Encoded, Row
from drivekd.models.batch import rows_of as form_rows
from drivekd.models.vlm import Vlm
from drivekd.recipe import Recipe
from drivekd.recipe.data import HubData, listed

#: Samples named in an error before it says "and so many more".
NAMED = 5

#: Folder of a run for the pictures that a Hugging Face dataset holds itself.
PICTURES = "pictures"


def refuse_missing(recipe: Recipe) -> None:
    """Say of a data file that it is not there, before models are loaded.

    Raises:
        FileNotFoundError: there is none of this name.
    """
    for source in (*recipe.data.train, *recipe.data.eval):
        if isinstance(source, str) and not Path(source).exists():
            raise FileNotFoundError(f"no data file {source}: check data.train and data.eval")


def training_samples(recipe: Recipe) -> list[Sample]:
    """Read the training files and draw the seed's scenes and samples from them.

    Raises:
        ValueError: there are no training files, or nothing is left of them.
    """
    data = recipe.data
    if not data.train:
        raise ValueError(f"recipe {recipe.name}: data.train names no file; expected at least one")
    excluded = frozenset(data.exclude_frames)
    samples = [each for each in _read_all(recipe, data.train) if each.frame not in excluded]
    drawn = select(
        samples, seed=recipe.seed, max_scenes=data.max_scenes, max_samples=data.max_samples
    )
    if not drawn:
        raise ValueError(
            f"recipe {recipe.name}: no training sample is left of {listed(data.train)} after "
            f"excluding {len(data.exclude_frames)} frames; check data.exclude_frames"
        )
    return drawn


def evaluation_samples(recipe: Recipe, trained: Iterable[Sample]) -> list[Sample]:
    """The samples whose loss is logged and that are never trained on.

    Raises:
        ValueError: some show a frame, or all the pictures, of a training sample.
    """
    found = list(_read_all(recipe, recipe.data.eval))
    seen = {each for sample in trained for each in _shown(sample)}
    _refuse(
        [sample for sample in found if not seen.isdisjoint(_shown(sample))],
        lambda sample: sample.id,
        "(data.eval) show what training samples show, so their loss would be a training loss; "
        "leave them out of one of the files",
        kind="evaluation",
    )
    return found


def _shown(sample: Sample) -> list[str]:
    frames = [sample.frame] if sample.frame else []
    return frames + ["|".join(map(str, sample.images.values()))] * bool(sample.images)


def _read_all(recipe: Recipe, sources: Iterable[str | HubData]) -> Iterator[Sample]:
    root = recipe.data.root
    for source in sources:
        if isinstance(source, str):
            yield from read(Path(source), root=root)
            continue
        pictures = Path(recipe.output_dir) / PICTURES
        found = hub.read(**source.model_dump(), title=source.title, root=root, pictures=pictures)
        yield from track(found, label=f"reading {source.title}")


def encode_all(vlm: Vlm, samples: Sequence[Sample]) -> list[Encoded]:
    """Tokenise every sample once, up front."""
    label = f"samples to tokens of {vlm.source}"
    return list(track(encode.encode_all(vlm, samples), total=len(samples), label=label))


def check_limits(
    recipe: Recipe, vlm: Vlm, encoded: Sequence[Encoded], kind: str = "training"
) -> None:
    """Refuse samples that are longer than a model or the recipe allows; nothing is ever cut.

    Without `data.max_length` the limit is the number of positions the model was made for.

    Raises:
        ValueError: naming samples, their lengths, the limit and the way out.
    """
    lengths = {id(each.sample): len(each.input_ids) for each in encoded}
    own = vlm.model.config.get_text_config().max_position_embeddings
    limit = recipe.data.max_length or own
    what = (
        "data.max_length" if recipe.data.max_length else f"max_position_embeddings of {vlm.source}"
    )
    way = "raise it" if recipe.data.max_length else "set data.max_length if it can take more"
    samples = [each.sample for each in encoded]
    _refuse(
        [sample for sample in samples if lengths[id(sample)] > limit],
        lambda sample: f"{sample.id} ({lengths[id(sample)]} tokens)",
        f"are longer, with their visual tokens, than the {limit} of {what}; leave them out, ask "
        f"with fewer pictures or words, or {way}",
        kind=kind,
    )
    most = recipe.data.max_images
    _refuse(
        [sample for sample in samples if most is not None and len(sample.images) > most],
        lambda sample: f"{sample.id} ({len(sample.images)} pictures)",
        f"show more pictures than data.max_images = {most}; leave them out, ask with fewer "
        "pictures, or raise it",
        kind=kind,
    )


def rows_of(recipe: Recipe, encoded: Sequence[Encoded]) -> tuple[Row, ...]:
    """Form the rows of samples as a recipe wants them."""
    data = recipe.data
    return form_rows(
        encoded, pack=data.pack, max_tokens=data.max_row_tokens, at_once=data.questions_per_row
    )


def sizes(recipe: Recipe, encoded: Sequence[Encoded]) -> tuple[tuple[int, int], ...]:
    """Of each sample: tokens that its row has once for all of them, and tokens of its own."""
    shared = [each.prefix if recipe.data.pack else 0 for each in encoded]
    return tuple((n, len(each.input_ids) - n) for n, each in zip(shared, encoded, strict=True))


def digests(encoded: Sequence[Encoded], rows: Sequence[Row]) -> dict[str, str]:
    """Digests of what samples say, of the bytes of their pictures, and of how they share rows."""
    samples = [each.sample for each in encoded]
    pictures = identities(path for each in samples for path in each.images.values())
    words = [
        [s.id, s.capability, [[message.role, message.content] for message in s.messages]]
        for s in samples
    ]
    shown = [[[camera, pictures[path]] for camera, path in s.images.items()] for s in samples]
    return {
        "samples": digest(map(json.dumps, words)),
        "pictures": digest(map(json.dumps, shown)),
        "rows": digest([repr(rows)]),
    }


def order_of(
    recipe: Recipe,
    rows: tuple[Row, ...],
    processes: int,
    samples: Sequence[Sample],
    sizes: tuple[tuple[int, int], ...] = (),
) -> Order:
    """The order in which a recipe sees these rows.

    Args:
        recipe: of the run.
        rows: of these samples.
        processes: that train together.
        samples: of the run.
        sizes: of each, as `Order` has them.

    Raises:
        ValueError: the mixture does not fit the samples.
    """
    shares = recipe.data.mixture
    _refuse(
        [sample for sample in samples if shares and sample.capability not in shares],
        lambda sample: f"{sample.id} ({sample.capability})",
        f"have a capability without a share in data.mixture ({', '.join(shares)}); give it one, or "
        "leave them out",
    )
    return Order(
        rows,
        recipe.seed,
        recipe.train.per_device_train_batch_size,
        recipe.train.gradient_accumulation_steps,
        recipe.data.questions_per_row,
        processes,
        portions([samples[row[0]].capability for row in rows], shares) if shares else (),
        sizes,
        recipe.train.group_by_length,
    )


def check(recipe: Recipe, terms: Sequence[Term], encoded: Sequence[Encoded]) -> None:
    """Refuse data on which the recipe's teachers would teach nothing, or not what was meant.

    Raises:
        ValueError: naming samples without a capability, samples whose capability has no row in Π,
            or a capability whose term no sample has.
    """
    if not terms:
        return
    samples = [each.sample for each in encoded]
    _refuse(
        [s for s in samples if s.capability is None],
        lambda s: s.id,
        "have no capability, so no row of Π applies to them; assign one of "
        + ", ".join(recipe.mixing)
        + " (question_type), or train on cross-entropy alone (no capabilities)",
    )
    _refuse(
        [s for s in samples if s.capability not in recipe.mixing],
        lambda s: f"{s.id} ({s.capability})",
        f"have a capability without a row in mixing{_slip(recipe, samples)}; add the row, or leave "
        "these samples out",
    )
    for term in terms:
        if not any(has_term(term, each) and share(recipe, term, each) > 0 for each in encoded):
            raise ValueError(
                f"capabilities.{term.capability}: none of the {len(encoded)} training samples has "
                f"this term: signal {term.signal} needs {_NEEDS[term.signal]}, and Π a share "
                f"above 0 for the samples' capabilities; give it such samples, or leave the "
                f"capability out"
            )


def _slip(recipe: Recipe, samples: Sequence[Sample]) -> str:
    """The hint for a capability that no sample has, but others that have nearly its name."""
    owners = {str(sample.capability) for sample in samples}
    for name in recipe.capabilities:
        close = difflib.get_close_matches(name, owners.difference(recipe.mixing), n=1, cutoff=0.8)
        if name not in owners and close:
            return f" (capabilities.{name}: did you mean {close[0]}?)"
    return ""


_NEEDS = {
    "text_to_vision": "images",
    "full": "tokens",
    "hidden": "text",
    "logits_kl": "answers",
}


def capabilities(terms: Sequence[Term], encoded: Sequence[Encoded]) -> tuple[str, ...]:
    """Capabilities that have samples: those with a teacher first, in the recipe's order."""
    found = {str(each.sample.capability) for each in encoded}
    taught = [term.capability for term in terms if term.capability in found]
    return (*taught, *sorted(found.difference(taught)))


def has_term(term: Term, encoded: Encoded) -> bool:
    """Whether a sample can have this term: images for text→vision, text, or an answer."""
    if term.signal == "text_to_vision":
        return bool(encoded.images)
    if term.signal == "hidden":
        return not bool(encoded.is_image.all())
    return term.signal == "full" or bool((encoded.labels != IGNORE).any())


def share(recipe: Recipe, term: Term, encoded: Encoded) -> float:
    """Π[c_b, t]."""
    return recipe.mixing[str(encoded.sample.capability)][term.capability]


def carriers(
    recipe: Recipe, terms: Sequence[Term], groups: Sequence[str], encoded: Sequence[Encoded]
) -> NDArray[np.bool_]:
    """Which rows of the Gram matrix each sample can have a gradient in, [N, rows]."""
    owners = [str(each.sample.capability) for each in encoded]
    anchors = [[owner == group for group in groups] or [True] for owner in owners]
    taught = [[has_term(t, each) and share(recipe, t, each) > 0 for t in terms] for each in encoded]
    return np.array([a + t for a, t in zip(anchors, taught, strict=True)], dtype=bool)


def _refuse(
    faulty: Sequence[Sample],
    show: Callable[[Sample], str],
    fault: str,
    kind: str = "training",
) -> None:
    if faulty:
        more = f" and {len(faulty) - NAMED} more" if len(faulty) > NAMED else ""
        names = ", ".join(show(sample) for sample in faulty[:NAMED])
        raise ValueError(f"{kind} samples {names}{more} (from {faulty[0].source}) {fault}")
