"""One optimizer step as the public release takes it: the twin that benchmarks/step.py times.

The same update as `drivekd.distill.step.step` for one sample a step. What it does not do is what
ours does: it keeps the attention of every head and layer of the student (eager attention), runs
every teacher to its last layer and head and holds its attention in the same way until its loss is
made, walks the retained graph once for each loss, and projects lists of gradients, one clone of all
parameters for each loss and stage. Nothing else is slow or large on purpose: one teacher's maps are
freed before the next teacher runs, the means over heads are made once, the losses are `mse_loss` on
the entries that count, the optimizer is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from drivekd.distill.objective import batch_of
from drivekd.distill.order import Window, projection_order
from drivekd.distill.plan import Plan
from drivekd.distill.teachers.teacher import Term
from drivekd.models.batch import Batch, embed
from drivekd.models.features import FeatureCache
from drivekd.models.vlm import Vlm, language_model, lm_head

Gradient = list[Tensor]


@dataclass(frozen=True)
class Naive:
    """A plan, and the teacher of each capability with its visual features."""

    plan: Plan
    teachers: Mapping[str, tuple[Vlm, FeatureCache | None]]
    optimizer: torch.optim.Optimizer


def prepare(plan: Plan) -> Naive:
    """Switch the models of a plan to eager attention; fixed weights, batch of one sample."""
    assert plan.recipe.weighting.mode == "fixed"
    teachers = {
        term.capability: (each.vlm, each.features)
        for each in plan.models.teachers
        for term in each.terms
    }
    for vlm in (plan.models.student, *(vlm for vlm, _ in teachers.values())):
        vlm.model.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
    plan.models.student.model.train(False)
    language_model(plan.models.student).train()
    settings = plan.recipe.train
    optimizer = torch.optim.AdamW(
        plan.trained.parameters,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    return Naive(plan, teachers, optimizer)


def step(run: Naive, window: Window) -> None:
    """One step on the window's only sample; the parameters' `grad` hold the clipped update."""
    plan = run.plan
    ((row,),) = window.batches
    batch = batch_of(plan, [row])
    logits, maps = run_model(plan.models.student, plan.models.features, batch)
    losses = [answer_loss(logits, batch), *attention_losses(run, batch, maps)]
    gradients = [gradient(loss, plan.trained.parameters) for loss in losses]
    order = projection_order(plan.recipe.seed, (window.step, 0), len(gradients) - 1)
    for parameter, update in zip(plan.trained.parameters, agp(gradients, order), strict=True):
        parameter.grad = update
    limit = plan.recipe.train.max_grad_norm
    if limit is not None:
        torch.nn.utils.clip_grad_norm_(plan.trained.parameters, limit)
    run.optimizer.step()


def run_model(
    vlm: Vlm, features: FeatureCache | None, batch: Batch
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits of all positions, and the attention [1, H, n, n] of all layers."""
    (paths,) = batch.images
    inputs = embed(vlm, batch.input_ids, batch.is_image, paths, features)
    mask = torch.zeros_like(batch.attention_mask, dtype=inputs["inputs_embeds"].dtype)
    output = language_model(vlm)(
        **inputs,
        attention_mask=mask.masked_fill(~batch.attention_mask, -torch.inf),
        position_ids=batch.position_ids,
        use_cache=False,
        output_attentions=True,
    )
    return lm_head(vlm)(output.last_hidden_state), output.attentions


def answer_loss(logits: Tensor, batch: Batch) -> Tensor:
    return functional.cross_entropy(logits[0, :-1].float(), batch.labels[0, 1:])


def attention_losses(run: Naive, batch: Batch, maps: Sequence[Tensor]) -> list[Tensor]:
    """λ_t Π[c,t] L_t of every capability, one live teacher after the other."""
    plan = run.plan
    text, image = (~batch.is_image[0]).nonzero()[:, 0], batch.is_image[0].nonzero()[:, 0]
    shares = plan.recipe.mixing[str(batch.samples[0].capability)]
    weights = plan.recipe.weighting.fixed
    student = [map_.mean(dim=1) for map_ in maps]
    losses = []
    for term in plan.models.terms:
        name = term.capability
        with torch.no_grad():
            teacher = [map_.mean(dim=1) for map_ in run_model(*run.teachers[name], batch)[1]]
        losses.append(weights[name] * shares[name] * term_loss(term, student, teacher, text, image))
    return losses


def term_loss(
    term: Term, student: Sequence[Tensor], teacher: Sequence[Tensor], text: Tensor, image: Tensor
) -> Tensor:
    """Mean over the student layers of the mean squared difference to their teacher layers' mean."""
    found = []
    for layer, matched in term.matches.items():
        mine, goal = student[layer], torch.stack([teacher[t] for t in matched]).mean(dim=0)
        if not term.whole:
            mine, goal = (map_[:, text][:, :, image] for map_ in (mine, goal))
        found.append(functional.mse_loss(mine, goal))
    return torch.stack(found).mean()


def gradient(loss: Tensor, parameters: Sequence[torch.nn.Parameter]) -> Gradient:
    """A backward pass over the retained graph; a clone of every parameter's gradient."""
    for parameter in parameters:
        parameter.grad = None
    loss.backward(retain_graph=True)
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]


def agp(gradients: Sequence[Gradient], order: Sequence[int]) -> Gradient:
    """Asymmetric gradient projection on lists, cross-entropy counted once per capability."""
    anchor, *teachers = gradients
    merged = []
    for given in teachers:
        inner = dot(given, anchor)
        freed = [g.clone() for g in given]
        if inner < 0:
            freed = minus(freed, inner / dot(anchor, anchor), anchor)
        merged.append([a + f for a, f in zip(anchor, freed, strict=True)])
    projected = []
    for i, own in enumerate(merged):
        value = [m.clone() for m in own]
        for j in order:
            inner = dot(value, merged[j]) if j != i else 0.0
            if inner < 0:
                value = minus(value, inner / dot(merged[j], merged[j]), merged[j])
        projected.append(value)
    return [torch.stack(parts).sum(dim=0) for parts in zip(*projected, strict=True)]


def dot(one: Gradient, other: Gradient) -> float:
    return sum(float((a * b).sum()) for a, b in zip(one, other, strict=True))


def minus(one: Gradient, factor: float, other: Gradient) -> Gradient:
    return [a - factor * b for a, b in zip(one, other, strict=True)]
