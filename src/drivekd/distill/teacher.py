"""Frozen teachers: one forward pass each, no further than the highest layer that is used.

Teachers given by the same name are one model and share one pass. What they hand on are targets:
for every capability and every student layer, the mean of the teacher maps matched to that layer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig

from drivekd.distill import attention
from drivekd.distill.layers import group_layers, resolve
from drivekd.models import vlm as vlms
from drivekd.models.batch import Batch, Encoded, encode, forward
from drivekd.models.features import FeatureCache
from drivekd.recipe import Capability

Maps = dict[int, Tensor]
"""Layer (0-based) to head-averaged map: float32 [B, n, n], or [B, R, n] for the rows asked for."""

Targets = Callable[[Batch, Tensor], dict[str, Maps]]
"""f(batch, `text_rows(batch)`) → capability → student layer → map; chosen before the loop."""

#: Samples compared one by one even where student and teacher have the very same tokenizer.
PROBES = 16


@dataclass(frozen=True)
class Term:
    """One capability's attention loss.

    Attributes:
        capability: its name.
        matches: 0-based student layer to the 0-based teacher layers whose mean is its target.
        whole: the full map, not the text→vision block alone.
        loss: `mse` or `cosine`.
        reachable: leave out pairs that causality forbids.
    """

    capability: str
    matches: Mapping[int, Sequence[int]]
    whole: bool
    loss: Literal["mse", "cosine"]
    reachable: bool


@dataclass(frozen=True)
class Teacher:
    """One frozen model and everything it is asked for.

    Attributes:
        vlm: the model.
        terms: of the capabilities that it teaches.
        features: its own cache of visual features, None to run its vision tower every time.
    """

    vlm: vlms.Vlm
    terms: tuple[Term, ...]
    features: FeatureCache | None


def term(name: str, capability: Capability, student_depth: int, teacher_depth: int) -> Term:
    """Resolve a capability's layer specification on both models."""
    matches = group_layers(
        resolve(capability.student_layers, student_depth),
        resolve(capability.teacher_layers, teacher_depth),
        capability.grouping,
    )
    whole = capability.signal == "full"
    return Term(name, matches, whole, capability.loss, capability.reachable_only)


def load(
    source: str, uses: Iterable[Capability], *, device: torch.device, dtype: torch.dtype
) -> vlms.Vlm:
    """Load a teacher without the layers above the highest one that its capabilities use."""
    top = max(max(resolve(use.teacher_layers, depth(source))) for use in uses)
    return vlms.load(source, device=device, dtype=dtype, num_layers=top + 1)


def depth(source: str) -> int:
    """How many decoder layers the complete model has."""
    return int(AutoConfig.from_pretrained(vlms.locate(source)).text_config.num_hidden_layers)


def freeze(vlm: vlms.Vlm) -> vlms.Vlm:
    """Evaluation mode, no gradients, attention maps on request."""
    vlm.model.train(False).requires_grad_(False)
    attention.install(vlm.model)
    return vlm


# ------------------------------------------------------------------------------------ targets


def wanted(terms: Iterable[Term], rows: Tensor, *, of_teacher: bool) -> dict[int, Tensor | None]:
    """Which rows of which layers to compute: all of them (None) where any term needs that."""
    layers: dict[int, Tensor | None] = {}
    for each in terms:
        for student, teachers in each.matches.items():
            for layer in teachers if of_teacher else [student]:
                layers[layer] = None if each.whole else layers.get(layer, rows)
    return layers


def text_rows(batch: Batch) -> Int[Tensor, " R"]:
    """Positions that are text in any row of the batch: all that text→vision losses read."""
    return (batch.valid & ~batch.is_image).any(0).nonzero().squeeze(1)


def seen(map_: Tensor, term: Term, rows: Tensor) -> Tensor:
    """The part of a captured map that a term reads: [B, n, n] or [B, R, n]."""
    captured_whole = map_.shape[1] == map_.shape[2]
    return map_ if term.whole or not captured_whole else map_.index_select(1, rows)


@torch.no_grad()
def targets(
    teachers: Sequence[Teacher], batch: Batch, rows: Tensor, *, mismatch: bool = False
) -> dict[str, Maps]:
    """What the student's maps are compared with: capability → student layer → map.

    [release] A student layer's target is the uniform mean of the teacher maps matched to it.

    Args:
        teachers: the distinct ones.
        batch: as the student sees it.
        rows: `text_rows(batch)`.
        mismatch: the negative control, see `mismatched`.
    """
    found: dict[str, Maps] = {}
    for teacher in teachers:
        maps = _maps(teacher, batch, rows)
        for each in teacher.terms:
            found[each.capability] = {
                student: _mean([seen(maps[t], each, rows) for t in matched])
                for student, matched in each.matches.items()
            }
            if mismatch:
                partner = _partners(batch)
                found[each.capability] = {
                    layer: mismatched(map_, None if each.whole else rows, partner, batch.is_image)
                    for layer, map_ in found[each.capability].items()
                }
    return found


def _mean(maps: Sequence[Tensor]) -> Tensor:
    """Their mean, summed in place: a stack of maps would be as large as all of them."""
    if len(maps) == 1:
        return maps[0]
    total = maps[0] + maps[1]
    for map_ in maps[2:]:
        total += map_
    return total.div_(len(maps))


def _maps(teacher: Teacher, batch: Batch, rows: Tensor) -> Maps:
    layers = vlms.decoder_layers(teacher.vlm)
    asked = wanted(teacher.terms, rows, of_teacher=True)
    with attention.capture(layers, asked) as maps, attention.stop_after(layers, max(asked)):
        forward(teacher.vlm, batch, teacher.features)
    return maps


# -------------------------------------------------------------------------- the negative control


def _partners(batch: Batch) -> Int[Tensor, "B n"]:
    """For every position of every row the position whose attention takes its place.

    Text positions that see the same image tokens form a group, all image positions another;
    each group is turned by half its length. In a packed row a question's words so get the
    attention of another question's words. Padding stays.
    """
    partner = torch.arange(batch.is_image.shape[1], device=batch.is_image.device)
    partner = partner.expand_as(batch.is_image).clone()
    before = batch.is_image.long().cumsum(1).masked_fill(batch.is_image, -1)
    for row, (groups, valid) in enumerate(zip(before, batch.valid, strict=True)):
        for group in groups[valid].unique():
            places = ((groups == group) & valid).nonzero().squeeze(1)
            partner[row, places] = places.roll(-(len(places) // 2))
    return partner


def mismatched(
    map_: Float[Tensor, "B R n"],
    rows: Int[Tensor, " R"] | None,
    partner: Int[Tensor, "B n"],
    is_image: Tensor,
) -> Float[Tensor, "B R n"]:
    """Teacher maps of mismatched rows: the control that a gain from "where to look" must beat.

    [ours] Over the image columns that position i can see, its attention is replaced by that of
    another position of the same row of the batch; everything else stays. The targets keep the
    statistics of real attention, but no longer tell what a given word looks at. (Pictures of
    another scene are no such control: most of the gain is routing that does not depend on them.)
    Image positions are exchanged too, cut to what causality lets them see; only full maps have
    any.
    """
    n = map_.shape[2]
    places = torch.arange(n, device=map_.device) if rows is None else rows
    index_of = torch.zeros(n, dtype=torch.long, device=map_.device)
    index_of[places] = torch.arange(len(places), device=map_.device)
    source = index_of[partner[:, places]]
    other = map_.gather(1, source.unsqueeze(2).expand(-1, -1, n))
    past = torch.arange(n, device=map_.device) <= places.unsqueeze(1)
    return torch.where(is_image.unsqueeze(1), other * past, map_)


# --------------------------------------------------------------------------------- who they are


def fingerprint(modules: Iterable[nn.Module]) -> str:
    """sha256 over names, types, shapes and bytes of all weights and buffers."""
    total = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            total.update(memoryview(flat.view(torch.uint8).numpy()))
    return total.hexdigest()


def identity(vlm: vlms.Vlm) -> dict[str, str]:
    """Who a teacher is: where it came from, its weights, their type."""
    dtype = str(next(vlm.model.parameters()).dtype).removeprefix("torch.")
    return {"source": vlm.source, "sha256": fingerprint([vlm.model]), "dtype": dtype}


def check_agreement(
    student: vlms.Vlm, teacher: vlms.Vlm, name: str, encoded: Sequence[Encoded]
) -> None:
    """Refuse a teacher that reads a sample as another sequence than the student does.

    Raises:
        ValueError: naming the sample and the first position where they part.
    """
    if student.family != teacher.family:
        raise ValueError(
            f"teacher of {name}: {teacher.source} is a {teacher.family.name} model, the student "
            f"{student.source} a {student.family.name} one; attention maps can only be compared "
            f"position by position, so both must be of one family"
        )
    probes = encoded
    if _spelling(student) == _spelling(teacher):
        probes = encoded[:: max(1, len(encoded) // PROBES)]
    for mine in probes:
        theirs = encode(teacher, mine.sample)
        fault = _difference(mine, theirs, student, teacher)
        if fault:
            raise ValueError(
                f"teacher of {name}: {teacher.source} and the student {student.source} read sample "
                f"{mine.sample.id} differently: {fault}. Their tokenizer, chat template and number "
                f"of tokens per image must agree, position by position"
            )


def _spelling(vlm: vlms.Vlm) -> tuple[str, object]:
    return vlm.tokenizer.backend_tokenizer.to_str(), vlm.tokenizer.chat_template


def _difference(mine: Encoded, theirs: Encoded, student: vlms.Vlm, teacher: vlms.Vlm) -> str:
    if len(mine.input_ids) != len(theirs.input_ids):
        return f"{len(mine.input_ids)} tokens for the student, {len(theirs.input_ids)} for it"
    unequal = mine.input_ids.ne(theirs.input_ids) | mine.is_image.ne(theirs.is_image)
    if not unequal.any():
        return ""
    place = int(unequal.nonzero()[0])
    words = [
        repr(vlm.tokenizer.convert_ids_to_tokens(int(each.input_ids[place])))
        for vlm, each in ((student, mine), (teacher, theirs))
    ]
    return f"at position {place} the student reads {words[0]}, it reads {words[1]}"
