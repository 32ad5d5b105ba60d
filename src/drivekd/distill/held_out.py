"""The loss on samples that are never trained on: when it is due, and what it is."""

from __future__ import annotations

import math

import torch

from drivekd.distill import corpus
from drivekd.distill.objective import autocast
from drivekd.distill.plan import Plan
from drivekd.distill.processes import parallel, sharding
from drivekd.distill.trained import training_mode
from drivekd.models.batch import answer_loss, collate, forward
from drivekd.recipe.data import listed


def is_due(plan: Plan, step: int) -> bool:
    """Whether it is measured after so many steps."""
    settings, schedule = plan.recipe.train, plan.schedule
    if not schedule.held_out or settings.eval_strategy == "no":
        return False
    epoch = settings.eval_strategy == "epoch"
    every = schedule.order.steps_per_epoch if epoch else settings.evaluation_steps
    return step == schedule.total_steps or step % every == 0


@torch.no_grad()
def held_out_loss(plan: Plan) -> float:
    """Mean cross-entropy over the evaluation samples, in the precision of training.

    It draws no random number.

    Raises:
        RuntimeError: it is not a finite number.
    """
    models, samples, ranks = plan.models, plan.schedule.held_out, plan.trained.ranks
    rows = corpus.rows_of(plan.recipe, samples)
    total = torch.zeros((), dtype=torch.float64, device=models.student.device)
    models.student.model.train(False)
    sharding.gather(models.shards)
    for row in ranks.share(rows):
        batch = collate(models.student, samples, [row])
        with autocast(models):
            hidden = forward(models.student, batch, models.features)
            total += answer_loss(models.student, hidden, batch).sum()
    sharding.let_go(models.shards)
    training_mode(plan.recipe, models.student)
    parallel.sum_(ranks, [total])
    mean = float(total) / len(samples)
    if not math.isfinite(mean):
        raise RuntimeError(
            f"the loss on data.eval ({listed(plan.recipe.data.eval)}) is {mean}, not a finite "
            "number; lower train.learning_rate or look at these samples"
        )
    return mean
