"""From one batch to the sums that are differentiated: the K+1 losses and who carries them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from drivekd.distill import attention, corpus, log, teacher
from drivekd.distill.log import Totals
from drivekd.distill.losses import packed_loss
from drivekd.distill.plan import Plan
from drivekd.distill.teacher import Maps, Term
from drivekd.models import vlm as vlms
from drivekd.models.batch import Batch, answer_loss, collate, forward


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


def batch_of(plan: Plan, indices: Sequence[int]) -> Batch:
    """The samples with these indices as tensors."""
    return collate(plan.student, [plan.encoded[i] for i in indices], pack=plan.recipe.data.pack)


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
    device = batch.input_ids.device.type
    with attention.capture(vlms.decoder_layers(plan.student), wanted) as maps:
        with torch.autocast(device, torch.bfloat16, enabled=plan.recipe.train.bf16):
            goals = teacher.targets(plan.teachers, batch, rows, mismatch=plan.recipe.data.mismatch)
            hidden = forward(plan.student, batch, plan.features)
            answers = answer_loss(plan.student, hidden, batch)
        _check_captured(plan, wanted, maps)
        terms, carried = _attention_losses(plan, batch, rows, maps, goals)
        yield Losses(answers, terms, carried, tuple(s.capability for s in batch.samples))


def _check_captured(plan: Plan, wanted: Mapping[int, Tensor | None], maps: Maps) -> None:
    missing = sorted(wanted.keys() - maps.keys())
    if missing:
        raise ValueError(
            f"no map of layers {[layer + 1 for layer in missing]} of {plan.student.source} was "
            f"captured; its attention was switched away from {attention.NAME} during training"
        )


def _attention_losses(
    plan: Plan, batch: Batch, rows: Tensor, maps: Maps, goals: Mapping[str, Maps]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """L_{t,b}, K times [S], and Π[c_b,t] · present [K, S]."""
    if not plan.terms:
        return (), torch.zeros(0, len(batch.samples), device=batch.input_ids.device)
    each = [_term_loss(term, batch, rows, maps, goals[term.capability]) for term in plan.terms]
    shares = torch.stack([plan.mixing[sample.capability] for sample in batch.samples], dim=1)
    present = torch.stack([present for _, present in each])
    return tuple(values for values, _ in each), shares * present


def _term_loss(
    term: Term, batch: Batch, rows: Tensor, maps: Maps, goals: Maps
) -> tuple[Tensor, Tensor]:
    """The mean over the term's student layers, and where all of them are present, both [S]."""
    found = [
        packed_loss(
            teacher.seen(maps[layer], term, rows),
            goal,
            rows=None if term.whole else rows,
            columns=None,
            row=batch.row,
            members=batch.members,
            is_image=batch.is_image,
            signal="full" if term.whole else "text_to_vision",
            loss=term.loss,
            reachable=term.reachable,
        )
        for layer, goal in goals.items()
    ]
    values, present = zip(*found, strict=True)
    return torch.stack(values).mean(0), torch.stack(present).all(0)


def tally(totals: Totals, plan: Plan, table: NDArray[np.float64]) -> None:
    """Count losses for the log: means over the samples that have the term and a share in it.

    Args:
        totals: receives them.
        plan: names the capabilities.
        table: `Losses.table` on the host.
    """
    log.add(totals, "loss/ce", float(table[0].mean()), table.shape[1])
    K = len(plan.terms)
    for name, values, carried in zip(
        plan.capabilities, table[1 : 1 + K], table[1 + K :], strict=True
    ):
        if (carried > 0).any():
            mean = float(values[carried > 0].mean())
            log.add(totals, f"loss/attn/{name}", mean, int((carried > 0).sum()))


@torch.no_grad()
def held_out_loss(plan: Plan) -> float:
    """Mean cross-entropy over the evaluation samples."""
    rows = corpus.rows(plan.held_out, pack=plan.recipe.data.pack)
    trained = vlms.language_model(plan.student)
    was_training, total = trained.training, 0.0
    trained.eval()
    for row in rows:
        batch = collate(plan.student, [plan.held_out[i] for i in row], pack=plan.recipe.data.pack)
        hidden = forward(plan.student, batch, plan.features)
        total += float(answer_loss(plan.student, hidden, batch).sum())
    trained.train(was_training)
    return total / len(plan.held_out)


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
    names = ("ce", *(f"attn/{name}" for name in plan.capabilities))
    bad = [names[k] for k in sorted(set(losses.tolist()))]
    where = [plan.encoded[indices[s]].sample.id for s in sorted(set(samples.tolist()))]
    raise RuntimeError(
        f"the loss {', '.join(bad)} of samples {', '.join(where[:5])} is not a finite number; "
        f"lower train.learning_rate or look at these samples"
    )
