"""Frozen teachers: one forward pass each, no further than the highest layer that is used.

Teachers given by the same name are one model and share one pass. What they hand on are targets:
for every capability and every student layer, the mean of the teacher maps (or states) matched to
that layer; or what their language-model head is to be applied to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from drivekd.distill.teachers import attention, states
from drivekd.method.signals.layers import group_layers, resolve
from drivekd.models import vlm as vlms
from drivekd.models.batch import Batch, forward
from drivekd.models.features import FeatureCache
from drivekd.models.offload import visiting
from drivekd.recipe import Capability, Signal

Maps = dict[int, Tensor]
"""Layer (0-based) to head-averaged map: float32 [B, n, n], or [B, R, n] for the rows asked for."""


@dataclass(frozen=True)
class Term:
    """One capability's loss.

    Attributes:
        capability: its name.
        signal: what is compared: attention maps, hidden states or output distributions.
        matches: 0-based student layer to the 0-based teacher layers whose mean is its target;
            none for output distributions.
        loss: `mse` or `cosine`.
        reachable: leave out pairs that causality forbids.
        temperature: of output distributions.
    """

    capability: str
    signal: Signal
    matches: Mapping[int, Sequence[int]]
    loss: Literal["mse", "cosine"]
    reachable: bool
    temperature: float

    @property
    def of_attention(self) -> bool:
        """Whether it compares attention maps."""
        return self.signal in ("text_to_vision", "full")

    @property
    def whole(self) -> bool:
        """Whether it compares full maps, not the text→vision block alone."""
        return self.signal == "full"


@dataclass(frozen=True)
class Trace:
    """What a forward pass leaves behind, or of a teacher's what one capability is compared with.

    Attributes:
        maps: attention by layer; of a target by the student's layer.
        states: outputs of layers [B, n, d]; of a target by the student's layer, [B, R, d] at the
            text rows.
        hidden: states behind the last norm [B, n, d]; None where the pass ended earlier.
        head: weight of the language-model head [V, d]; None where nothing needs it.
    """

    maps: Maps = field(default_factory=dict)
    states: Maps = field(default_factory=dict)
    hidden: Tensor | None = None
    head: Tensor | None = None


Targets = Callable[[Batch, Tensor], dict[str, Trace]]
"""f(batch, `text_rows(batch)`) → capability → what it is compared with; chosen before the loop."""


@dataclass(frozen=True)
class Teacher:
    """One frozen model and everything it is asked for.

    Attributes:
        vlm: the model.
        terms: of the capabilities that it teaches.
        features: its cache of visual features, shared with models that see alike; None to run its
            vision tower every time.
        device: where it comes for its pass from the host's memory; None where it always stays.
    """

    vlm: vlms.Vlm
    terms: tuple[Term, ...]
    features: FeatureCache | None
    device: torch.device | None = None


def term(name: str, capability: Capability, student_depth: int, teacher_depth: int) -> Term:
    """Resolve a capability's layer specification on both models.

    Raises:
        ValueError: a model lacks a layer that is asked for; the key is named.
    """
    matches: dict[int, list[int]] = {}
    if capability.signal != "logits_kl":
        own = _resolved(name, "student_layers", capability.student_layers, student_depth)
        theirs = _of_teacher(name, capability, teacher_depth)
        matches = group_layers(own, theirs, capability.grouping)
    return Term(
        capability=name,
        signal=capability.signal,
        matches=matches,
        loss=capability.loss,
        reachable=capability.reachable_only,
        temperature=capability.temperature,
    )


def _of_teacher(name: str, capability: Capability, layers: int) -> list[int]:
    """A capability's layers of its teacher: where only the student's are given, the same ones."""
    spec = capability.teacher_layers
    hint = " (where absent, as student_layers)" if spec == capability.student_layers else ""
    return _resolved(name, "teacher_layers", spec, layers, hint)


def _resolved(
    name: str, key: str, spec: int | str | None, layers: int, hint: str = ""
) -> list[int]:
    assert spec is not None, key  # the recipe sees to it
    try:
        return resolve(spec, layers)
    except ValueError as error:
        raise ValueError(f"capabilities.{name}.{key}: {error}{hint}") from None


def load(
    source: str,
    uses: Mapping[str, Capability],
    *,
    device: torch.device,
    dtype: torch.dtype,
    max_image_tokens: int = 256,
) -> vlms.Vlm:
    """Load a teacher without the layers above the highest one that its capabilities use.

    For `logits_kl` it is loaded whole, with its language-model head.

    Raises:
        ValueError: it lacks a layer or the head that is needed.
    """
    kept = layers_used(uses, depth(source))
    return vlms.load(
        source,
        device=device,
        dtype=dtype,
        num_layers=kept,
        max_image_tokens=max_image_tokens,
        head=kept is None,
    )


def layers_used(uses: Mapping[str, Capability], depth: int) -> int | None:
    """How many of a teacher's layers its capabilities need; None: all of them, and the head.

    Raises:
        ValueError: it lacks a layer.
    """
    if any(use.signal == "logits_kl" for use in uses.values()):
        return None
    return 1 + max(max(_of_teacher(name, use, depth)) for name, use in uses.items())


def depth(source: str) -> int:
    """How many decoder layers the complete model has.

    Raises:
        ValueError: it is no model, or none of a family that is supported.
    """
    return int(vlms.config_of(source).text_config.num_hidden_layers)


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
        for layer in _layers(each, of_teacher) if each.of_attention else ():
            layers[layer] = None if each.whole else layers.get(layer, rows)
    return layers


def wanted_states(terms: Iterable[Term], *, of_teacher: bool) -> set[int]:
    """Layers whose output states any term compares."""
    return {n for each in terms if each.signal == "hidden" for n in _layers(each, of_teacher)}


def _layers(term: Term, of_teacher: bool) -> list[int]:
    if of_teacher:
        return [layer for matched in term.matches.values() for layer in matched]
    return list(term.matches)


def text_rows(batch: Batch) -> Int[Tensor, " R"]:
    """Positions that are text in any row of the batch: all that text→vision losses read."""
    return (batch.valid & ~batch.is_image).any(0).nonzero().squeeze(1)


def seen(map_: Tensor, term: Term, rows: Tensor) -> Tensor:
    """The part of a captured map that a term reads: [B, n, n] or [B, R, n]."""
    captured_whole = map_.shape[1] == map_.shape[2]
    return map_ if term.whole or not captured_whole else map_.index_select(1, rows)


@torch.no_grad()
def targets(teachers: Sequence[Teacher], batch: Batch, rows: Tensor) -> dict[str, Trace]:
    """What the student is compared with, per capability.

    [release] A student layer's target is the uniform mean of the teacher maps matched to it; of
    states the same [ours].

    Args:
        teachers: the distinct ones.
        batch: as the student sees it.
        rows: `text_rows(batch)`.
    """
    found: dict[str, Trace] = {}
    for teacher in teachers:
        away = teacher.device is not None
        with visiting(teacher.vlm.model, teacher.device) if away else nullcontext():
            trace = _trace(teacher, batch, rows)
        found |= {each.capability: _target(each, trace, rows) for each in teacher.terms}
    return found


def _target(term: Term, trace: Trace, rows: Tensor) -> Trace:
    """One capability's share of what a teacher's pass left behind."""
    if term.signal == "logits_kl":
        return Trace(hidden=trace.hidden, head=trace.head)
    if term.signal == "hidden":
        matched = {
            student: [trace.states[layer].index_select(1, rows).float() for layer in layers]
            for student, layers in term.matches.items()
        }
        return Trace(states={student: _mean(parts) for student, parts in matched.items()})
    return Trace(
        maps={
            student: _mean([seen(trace.maps[layer], term, rows) for layer in layers])
            for student, layers in term.matches.items()
        }
    )


def _mean(parts: Sequence[Tensor]) -> Tensor:
    """Their mean, summed in place: a stack of maps would be as large as all of them."""
    if len(parts) == 1:
        return parts[0]
    total = parts[0] + parts[1]
    for part in parts[2:]:
        total += part
    return total.div_(len(parts))


def _trace(teacher: Teacher, batch: Batch, rows: Tensor) -> Trace:
    """One pass, as far as its terms need it."""
    layers = vlms.decoder_layers(teacher.vlm)
    asked = wanted(teacher.terms, rows, of_teacher=True)
    outputs = wanted_states(teacher.terms, of_teacher=True)
    to_the_end = any(each.signal == "logits_kl" for each in teacher.terms)
    last, whole = max([(n, False) for n in asked] + [(n, True) for n in outputs], default=(0, True))
    end = nullcontext() if to_the_end else attention.stop_after(layers, last, whole=whole)
    hidden: Tensor | None = None
    kept: Maps = {}
    states_of = states.capture(layers, outputs) if outputs else nullcontext(kept)
    with attention.capture(layers, asked) as maps, states_of as found, end:
        hidden = forward(teacher.vlm, batch, teacher.features)
    # Detached: of a teacher that leaves the device its head stays until it has been applied.
    head = vlms.head_weight(teacher.vlm).detach() if to_the_end else None
    return Trace(maps, found, hidden, head)


# -------------------------------------------------------------------------- the negative control


def mismatching(inner: Targets, terms: Iterable[Term]) -> Targets:
    """The same targets with the words' attention exchanged, see `mismatched`."""

    def exchanged(batch: Batch, rows: Tensor) -> dict[str, Trace]:
        found, partner = inner(batch, rows), _partners(batch)
        return {
            each.capability: Trace(
                {
                    layer: mismatched(map_, None if each.whole else rows, partner, batch.is_image)
                    for layer, map_ in found[each.capability].maps.items()
                }
            )
            for each in terms
        }

    return exchanged


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
