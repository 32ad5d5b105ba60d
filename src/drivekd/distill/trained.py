"""What of a student is trained; everything else stays as it was."""

from __future__ import annotations

import logging

import torch
from torch import nn

from drivekd.models import vlm as vlms
from drivekd.recipe import Recipe

logger = logging.getLogger(__name__)


def trained(recipe: Recipe, student: vlms.Vlm) -> tuple[tuple[str, ...], tuple[nn.Parameter, ...]]:
    """Names and parameters of what is trained; everything else is frozen.

    [paper figure] The language model with its head, without vision tower, projector and input
    embeddings; where the head is the embedding (tied), it is trained. [release] everything.

    Raises:
        ValueError: a trained weight is not float32: steps of 5e-5 vanish in half precision.
    """
    model = student.model
    model.requires_grad_(False)
    everything = recipe.train.trainable == "everything"
    parts = [model] if everything else [vlms.language_model(student), vlms.lm_head(student)]
    chosen = {id(p) for part in parts for p in part.parameters()}
    embedding, head = model.get_input_embeddings().weight, vlms.lm_head(student).weight
    if not everything and embedding is not head:
        chosen.discard(id(embedding))
    elif not everything:
        logger.warning("the head is tied to the input embeddings: the embeddings are trained")
    named = [(name, p) for name, p in model.named_parameters() if id(p) in chosen]
    for name, parameter in named:
        if parameter.dtype != torch.float32:
            raise ValueError(
                f"student {student.source}: {name} is {parameter.dtype}, expected float32 masters "
                f"(half precision rounds small steps away); load it in float32 and set "
                f"train.bf16 for speed"
            )
        parameter.requires_grad_(True)
    return tuple(name for name, _ in named), tuple(parameter for _, parameter in named)
