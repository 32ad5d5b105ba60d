"""From one batch to the sums that are differentiated: the K+1 losses and who carries them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from drivekd.distill.plan import Models, Plan
from drivekd.distill.processes import sharding
from drivekd.distill.teachers import attention, bridges, states, teacher
from drivekd.distill.teachers.teacher import Maps, Term, Trace
from drivekd.method.signals.losses import packed_hidden_loss, packed_loss
from drivekd.method.signals.token_kl import token_kl
from drivekd.models import vlm as vlms
from drivekd.models.batch import (
    Batch,
    Row,
    answer_loss,
    answer_positions,
    collate,
    forward,
)


@dataclass(frozen=True)
class Losses:
    """Losses of the S samples of one batch.

    Attributes:
        answers: cross-entropy CE_b.
        terms: L_{t,b} of every capability. Separate tensors, not a stack: through a stack each
            loss would run backward through the graphs of all others, with zeros.
        carried: Π[c_b,t] where the term is present, 0 where it is absent.
        owners: capability of each sample.
    """

    answers: Float[Tensor, " S"]
    terms: tuple[Float[Tensor, " S"], ...]
    carried: Float[Tensor, "K S"]
    owners: tuple[str | None, ...]

    def sums(
        self, groups: Sequence[str] = (), possible: Sequence[bool] | None = None
    ) -> list[Tensor | None]:
        """Σ_b CE_b, then Σ_b Π[c_b,t] L_{t,b} per capability, None where no sample can carry it.

        Sums, not means: they add up over batches, so 1 × 8 = 8 × 1. [ours]

        Args:
            groups: a sum of CE_b over the samples of each of these capabilities instead of one.
            possible: which of these sums can occur by the data; all by default.
        """
        found = [self._of(group) for group in groups] or [self.answers.sum()]
        pairs = zip(self.terms, self.carried, strict=True)
        found += [(values * shares).sum() for values, shares in pairs]
        possible = [True] * len(found) if possible is None else possible
        return [each if some else None for each, some in zip(found, possible, strict=True)]

    def _of(self, group: str) -> Tensor:
        """Σ CE_b over one capability's samples."""
        own = [float(str(owner) == group) for owner in self.owners]
        return (self.answers * torch.tensor(own, device=self.answers.device)).sum()

    def table(self) -> Float[Tensor, "numbers S"]:
        """CE_b, L_{t,b}, Π[c_b,t] of present terms: all that the host asks, [1 + 2K, S] float64."""
        return torch.stack([self.answers, *self.terms, *self.carried]).detach().double()


def batch_of(plan: Plan, rows: Sequence[Row]) -> Batch:
    """Lay out rows of training samples as tensors."""
    return collate(plan.models.student, plan.schedule.encoded, rows)


def autocast(models: Models) -> torch.autocast:
    """The precision in which all models of a run compute."""
    device = models.student.device.type
    return torch.autocast(device, torch.bfloat16, enabled=models.bf16)


@contextmanager
def losses(models: Models, batch: Batch) -> Iterator[Losses]:
    """Run student and teachers on a batch and compare them, per sample.

    Differentiate inside the block: with gradient checkpointing the layers run again, and their
    maps with them.

    Raises:
        ValueError: a map is missing.
    """
    rows, student = teacher.text_rows(batch), models.student
    wanted = teacher.wanted(models.terms, rows, of_teacher=False)
    outputs = teacher.wanted_states(models.terms, of_teacher=False)
    layers = vlms.decoder_layers(student)
    kept: Maps = {}
    states_of = states.capture(layers, outputs) if outputs else nullcontext(kept)
    with attention.capture(layers, wanted) as maps, states_of as behind:

        def compared() -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
            with autocast(models):
                goals = models.targets(batch, rows)
                hidden = forward(student, batch, models.features)
                answers = answer_loss(student, hidden, batch)
            _check_captured(student, wanted, maps)
            mine = Trace(maps, behind, hidden, vlms.head_weight(student))
            return answers, *_term_losses(models, batch, rows, mine, goals)

        shards = models.shards
        found = compared() if shards is None else sharding.through(shards, compared)
        yield Losses(*found, tuple(s.capability for s in batch.samples))


def _check_captured(student: vlms.Vlm, wanted: Mapping[int, Tensor | None], maps: Maps) -> None:
    missing = sorted(wanted.keys() - maps.keys())
    if missing:
        raise ValueError(
            f"no map of layers {[layer + 1 for layer in missing]} of {student.source} was "
            f"captured; its attention was switched away from {attention.NAME} during training"
        )


def _term_losses(
    models: Models, batch: Batch, rows: Tensor, mine: Trace, goals: Mapping[str, Trace]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """L_{t,b}, K times [S], and Π[c_b,t] · present [K, S]."""
    if not models.terms:
        return (), torch.zeros(0, len(batch.samples), device=batch.input_ids.device)
    pairs = [(term, goals[term.capability]) for term in models.terms]
    each = [_term_loss(models, term, batch, rows, mine, goal) for term, goal in pairs]
    shares = torch.stack([models.mixing[sample.capability] for sample in batch.samples], dim=1)
    present = torch.stack([present for _, present in each])
    return tuple(values for values, _ in each), shares * present


def _term_loss(
    models: Models, term: Term, batch: Batch, rows: Tensor, mine: Trace, goal: Trace
) -> tuple[Tensor, Tensor]:
    """The mean over the term's student layers, and where all of them are present, both [S]."""
    if term.signal == "logits_kl":
        return _output_loss(term, batch, mine, goal)
    if term.signal == "hidden":
        found = _hidden_losses(models, term, batch, rows, mine, goal)
    else:
        found = _attention_losses(term, batch, rows, mine, goal)
    values, present = zip(*found, strict=True)
    return torch.stack(values).mean(0), torch.stack(present).all(0)


def _attention_losses(
    term: Term, batch: Batch, rows: Tensor, mine: Trace, goal: Trace
) -> list[tuple[Tensor, Tensor]]:
    return [
        packed_loss(
            teacher.seen(mine.maps[layer], term, rows),
            target,
            rows=None if term.whole else rows,
            row=batch.row,
            members=batch.members,
            is_image=batch.is_image,
            signal="full" if term.whole else "text_to_vision",
            loss=term.loss,
            reachable=term.reachable,
        )
        for layer, target in goal.maps.items()
    ]


def _hidden_losses(
    models: Models, term: Term, batch: Batch, rows: Tensor, mine: Trace, goal: Trace
) -> list[tuple[Tensor, Tensor]]:
    found = []
    for layer, target in goal.states.items():
        bridge = models.bridges.layers[term.capability][layer]
        found.append(
            packed_hidden_loss(
                bridge(mine.states[layer].index_select(1, rows).float()),
                target,
                rows=rows,
                row=batch.row,
                members=batch.members,
                is_image=batch.is_image,
                loss=term.loss,
            )
        )
    return found


def _output_loss(term: Term, batch: Batch, mine: Trace, goal: Trace) -> tuple[Tensor, Tensor]:
    """Mean of τ² KL over each sample's answer tokens, and whether it has any, both [S] [ours]."""
    assert mine.hidden is not None
    assert mine.head is not None
    assert goal.hidden is not None
    assert goal.head is not None
    sample, row, position = answer_positions(batch)
    # The state that predicts a token is one position to the left.
    each = token_kl(
        mine.hidden[row, position - 1],
        mine.head,
        goal.hidden[row, position - 1],
        goal.head,
        temperature=term.temperature,
    )
    count = torch.bincount(sample, minlength=len(batch.samples))
    sums = torch.zeros(len(count), device=each.device).index_add(0, sample, each)
    return sums / count.clamp(min=1), count > 0


def learn(models: Models, found: Losses) -> None:
    """Collect the gradients of the learned maps, each from the loss of its own term alone.

    Call it before the student's gradients are taken: those free the graph.
    """
    names = [term.capability for term in models.terms]
    sums = dict(zip(names, found.sums()[1:], strict=True))
    shares = dict(zip(names, found.carried.sum(1).tolist(), strict=True))
    for name in models.bridges.layers:
        total = sums[name]
        if total is not None:
            bridges.collect(models.bridges, name, total, shares[name])
