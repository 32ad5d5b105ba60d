"""Samples through a teacher, a row at a time, into the sums of the pre-study."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from drivekd.data.paraphrases import paraphrased
from drivekd.data.sample import Sample
from drivekd.distill.order import scene_of
from drivekd.files.progress import track
from drivekd.models.batch import Row, group
from drivekd.models.encode import Encoded, encode
from drivekd.models.features import FeatureCache
from drivekd.models.vlm import Vlm
from drivekd.study.curves import bins, dispersion, unit
from drivekd.study.forward import Array, Reading, Seen, read_margins, read_row
from drivekd.study.sums import Sums

SAMPLES_AT_ONCE = 16  # samples with the same pictures whose features exist at a time
#: tokens of a row behind its pictures: a longer row costs more attention than it saves
OWN_TOKENS = 1024


@dataclass(frozen=True)
class Asked:
    """One question in all its wordings, and what was seen of each."""

    sample: Sample  # the question as it stands
    wordings: tuple[str, ...]  # its words, and the others
    grids: tuple[tuple[int, int], ...]  # rows and columns of visual tokens of each image
    seen: tuple[Seen, ...]  # of each wording


def ask(vlm: Vlm, samples: Sequence[Sample], reading: Reading = "usual") -> Iterator[list[Asked]]:
    """Run driving samples through a frozen teacher, each in all its wordings, in one pass.

    Samples that share pictures and the text before them run behind one prefix; so do the wordings
    of a question, which therefore cost little. Yields questions about the same pictures, at most
    `SAMPLES_AT_ONCE`; pictures come in the order in which the samples first name them.
    """
    features, grid = FeatureCache(latest=True), None
    rows = group([tuple(sample.images.values()) for sample in samples])
    ordered = [samples[i] for row in rows for i in row]
    for chunk in _chunks(track(ordered, len(ordered), "reading the teacher")):
        questions: list[Asked] = []
        versions = [[_encoded(vlm, words) for words in paraphrased(sample)] for sample in chunk]
        flat = [encoded for wordings in versions for encoded in wordings]
        grid = grid or next((encoded.grids[0] for encoded in flat if encoded.grids), None)
        seen: dict[int, Seen] = {}
        for row in _rows(flat):
            samples_of_row = [flat[i] for i in row]
            read = read_row(vlm, samples_of_row, features=features, reading=reading, grid=grid)
            seen |= zip(row, read, strict=True)
        order = iter(range(len(flat)))
        for sample, wordings in zip(chunk, versions, strict=True):
            words = tuple(encoded.sample.question for encoded in wordings)
            passes = tuple(seen[next(order)] for _ in wordings)
            questions.append(Asked(sample, words, wordings[0].grids, passes))
        yield questions


def measure_margins(vlm: Vlm, samples: Sequence[Sample], sums: Sums) -> None:
    """Add the margins of general questions; nothing else is taken from them."""
    features = FeatureCache(latest=True)
    for chunk in _chunks(track(samples, len(samples), "reading general questions")):
        flat = [_encoded(vlm, sample) for sample in chunk]
        for row in _rows(flat):
            margins = read_margins(vlm, [flat[i] for i in row], features)
            for i, values in zip(row, margins, strict=True):
                _add_margins(sums, "general", chunk[i], values)


def add(sums: Sums, asked: Asked) -> None:
    """Add what was seen of one question to the sums of the panels."""
    seen, scene, capability = asked.seen[0], scene_of(asked.sample), asked.sample.capability
    sums["adjacent"].add(scene, seen.adjacent)
    if seen.vision_text is not None and seen.share is not None:
        sums["vision_text"].add(scene, seen.vision_text)
        sums["share"].add(scene, seen.share)
    if capability is not None:
        sums[f"intra/hidden/{capability}"].add(scene, unit(seen.hidden))
        if seen.grid is not None:
            sums[f"intra/attention/{capability}"].add(scene, unit(seen.grid))
    _add_margins(sums, "driving", asked.sample, seen.margins)
    if len(asked.seen) > 1:
        for group in ("all", *([capability] if capability else [])):
            _add_dispersion(sums, scene, group, asked.seen)


def _add_dispersion(sums: Sums, scene: str, group: str, wordings: Sequence[Seen]) -> None:
    """Add the dispersion of own positions: text before the question is equal in every wording."""
    hidden = np.stack([wording.own_hidden for wording in wordings])
    sums[f"dispersion/hidden/{group}"].add(scene, dispersion(hidden))
    profiles = [wording.own_attention for wording in wordings if wording.own_attention is not None]
    if profiles:
        sums[f"dispersion/attention/{group}"].add(scene, dispersion(np.stack(profiles)))


def _add_margins(sums: Sums, group: str, sample: Sample, margins: Array) -> None:
    if len(margins):
        sums[f"margin/{group}"].add(scene_of(sample), *bins(margins))


def _encoded(vlm: Vlm, sample: Sample) -> Encoded:
    encoded = encode(vlm, sample, add_answer=sample.answer is not None)
    length = len(encoded.input_ids)
    limit = int(vlm.model.config.get_text_config().max_position_embeddings)
    if length > limit:
        raise ValueError(
            f"{sample.source}: sample {sample.id!r} is longer ({length} tokens, visual ones "
            f"included) than the max_position_embeddings of {vlm.source} ({limit}); leave it out"
        )
    return encoded


def _chunks(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Group consecutive samples with the same pictures, not too many at a time."""
    for _, same in groupby(samples, key=lambda sample: tuple(sample.images.values())):
        chunk: list[Sample] = []
        for sample in same:
            chunk.append(sample)
            if len(chunk) == SAMPLES_AT_ONCE:
                yield chunk
                chunk = []
        if chunk:
            yield chunk


def _rows(encoded: Sequence[Encoded]) -> tuple[Row, ...]:
    """Form rows of samples with the same prefix, with at most `OWN_TOKENS` behind it."""
    # Without a prefix nothing is shared, and samples of one row would be told apart in vain.
    keys = [tuple(e.input_ids[: e.prefix].tolist()) or i for i, e in enumerate(encoded)]
    return group(keys, [(0, len(e.input_ids) - e.prefix) for e in encoded], OWN_TOKENS)
