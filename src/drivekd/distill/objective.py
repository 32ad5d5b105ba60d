"""From one batch to the sums that are differentiated: the K+1 losses and who carries them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from drivekd.distill import corpus
from drivekd.distill.plan import Plan
from drivekd.distill.processes import parallel, sharding
from drivekd.distill.saving import log
from drivekd.distill.saving.log import Totals
from drivekd.distill.teachers import attention, bridges, states, teacher
from drivekd.distill.teachers.teacher import Maps, Term, Trace
from drivekd.distill.trained import training_mode
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
from drivekd.recipe.data import listed


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
    return collate(plan.student, plan.encoded, rows)


@contextmanager
def losses(plan: Plan, batch: Batch) -> Iterator[Losses]:
    """Run student and teachers on a batch and compare them, per sample.

    Differentiate inside the block: with gradient checkpointing the layers run again, and their
    maps with them.

    Raises:
        ValueError: a map is missing.
    """
    rows = teacher.text_rows(batch)
    wanted = teacher.wanted(plan.terms, rows, of_teacher=False)
    outputs = teacher.wanted_states(plan.terms, of_teacher=False)
    layers, device = vlms.decoder_layers(plan.student), batch.input_ids.device.type
    with attention.capture(layers, wanted) as maps, states.capture(layers, outputs) as behind:

        def compared() -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
            with torch.autocast(device, torch.bfloat16, enabled=plan.recipe.train.bf16):
                goals = plan.targets(batch, rows)
                hidden = forward(plan.student, batch, plan.features)
                answers = answer_loss(plan.student, hidden, batch)
            _check_captured(plan, wanted, maps)
            mine = Trace(maps, behind, hidden, vlms.head_weight(plan.student))
            return answers, *_term_losses(plan, batch, rows, mine, goals)

        answers, terms, carried = sharding.through(plan.shards, compared)
        yield Losses(answers, terms, carried, tuple(s.capability for s in batch.samples))


def _check_captured(plan: Plan, wanted: Mapping[int, Tensor | None], maps: Maps) -> None:
    missing = sorted(wanted.keys() - maps.keys())
    if missing:
        raise ValueError(
            f"no map of layers {[layer + 1 for layer in missing]} of {plan.student.source} was "
            f"captured; its attention was switched away from {attention.NAME} during training"
        )


def _term_losses(
    plan: Plan, batch: Batch, rows: Tensor, mine: Trace, goals: Mapping[str, Trace]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """L_{t,b}, K times [S], and Π[c_b,t] · present [K, S]."""
    if not plan.terms:
        return (), torch.zeros(0, len(batch.samples), device=batch.input_ids.device)
    pairs = [(term, goals[term.capability]) for term in plan.terms]
    each = [_term_loss(plan, term, batch, rows, mine, goal) for term, goal in pairs]
    shares = torch.stack([plan.mixing[sample.capability] for sample in batch.samples], dim=1)
    present = torch.stack([present for _, present in each])
    return tuple(values for values, _ in each), shares * present


def _term_loss(
    plan: Plan, term: Term, batch: Batch, rows: Tensor, mine: Trace, goal: Trace
) -> tuple[Tensor, Tensor]:
    """The mean over the term's student layers, and where all of them are present, both [S]."""
    if term.signal == "logits_kl":
        return _output_loss(term, batch, mine, goal)
    if term.signal == "hidden":
        found = _hidden_losses(plan, term, batch, rows, mine, goal)
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
    plan: Plan, term: Term, batch: Batch, rows: Tensor, mine: Trace, goal: Trace
) -> list[tuple[Tensor, Tensor]]:
    found = []
    for layer, target in goal.states.items():
        bridge = plan.bridges.layers[term.capability][layer]
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


def learn(plan: Plan, found: Losses) -> None:
    """Collect the gradients of the learned maps, each from the loss of its own term alone.

    Call it before the student's gradients are taken: those free the graph.
    """
    if not plan.bridges.layers:
        return
    sums = dict(zip(plan.capabilities, found.sums()[1:], strict=True))
    shares = dict(zip(plan.capabilities, found.carried.sum(1).tolist(), strict=True))
    for name in plan.bridges.layers:
        total = sums[name]
        if total is not None:
            bridges.collect(plan.bridges, name, total, shares[name])


def tally(totals: Totals, plan: Plan, table: NDArray[np.float64]) -> None:
    """Count losses for the log: means over the samples that have the term and a share in it.

    Args:
        totals: receives them.
        plan: names the capabilities.
        table: `Losses.table` on the host.
    """
    log.add(totals, "loss/ce", float(table[0].mean()), table.shape[1])
    K = len(plan.terms)
    for term, values, carried in zip(plan.terms, table[1 : 1 + K], table[1 + K :], strict=True):
        if (carried > 0).any():
            mean = float(values[carried > 0].mean())
            log.add(totals, f"loss/{_logged(term)}", mean, int((carried > 0).sum()))


def _logged(term: Term) -> str:
    kinds = {"hidden": "hidden", "logits_kl": "kl"}
    return f"{kinds.get(term.signal, 'attn')}/{term.capability}"


@torch.no_grad()
def held_out_loss(plan: Plan) -> float:
    """Mean cross-entropy over the evaluation samples; it draws no random number.

    Raises:
        RuntimeError: it is not a finite number.
    """
    rows = corpus.rows_of(plan.recipe, plan.held_out)
    total = torch.zeros((), dtype=torch.float64, device=plan.student.device)
    plan.student.model.train(False)
    sharding.gather(plan.shards)
    for row in plan.ranks.share(rows):
        batch = collate(plan.student, plan.held_out, [row])
        hidden = forward(plan.student, batch, plan.features)
        total += answer_loss(plan.student, hidden, batch).sum()
    sharding.let_go(plan.shards)
    training_mode(plan.recipe, plan.student)
    parallel.sum_(plan.ranks, [total])
    mean = float(total) / len(plan.held_out)
    if not math.isfinite(mean):
        raise RuntimeError(
            f"the loss on data.eval ({listed(plan.recipe.data.eval)}) is {mean}, not a finite "
            "number; lower train.learning_rate or look at these samples"
        )
    return mean


def check_finite(plan: Plan, indices: Sequence[int], table: NDArray[np.float64]) -> None:
    """Refuse losses that are no numbers.

    Args:
        plan: names the capabilities and the samples.
        indices: the samples of the batch.
        table: its `Losses.table` on the host.

    Raises:
        RuntimeError: naming losses and samples.
    """
    losses, samples = np.nonzero(~np.isfinite(table[: 1 + len(plan.terms)]))
    if not len(losses):
        return
    names = ("ce", *(_logged(term) for term in plan.terms))
    bad = [names[k] for k in sorted(set(losses.tolist()))]
    where = [plan.encoded[indices[s]].sample.id for s in sorted(set(samples.tolist()))]
    raise RuntimeError(
        f"the loss {', '.join(bad)} of samples {', '.join(where[:5])} is not a finite number; "
        f"lower train.learning_rate or look at these samples"
    )
