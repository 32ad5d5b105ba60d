"""What of a student is trained, and in which mode its parts run; the rest stays as it was."""

from __future__ import annotations

import logging

import torch
from torch import nn

from drivekd.distill.saving import lora
from drivekd.models import vlm as vlms
from drivekd.recipe import Recipe

logger = logging.getLogger(__name__)


def device() -> torch.device:
    """Where a process trains."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_student(recipe: Recipe) -> vlms.Vlm:
    """The student that a recipe names, in float32, where this process trains.

    Raises:
        ValueError: it cannot be loaded, or is quantised.
    """
    student = vlms.load(
        recipe.student,
        device=device(),
        dtype=torch.float32,
        max_image_tokens=recipe.data.max_image_tokens,
    )
    if getattr(student.model.config, "quantization_config", None):
        raise ValueError(
            f"student {recipe.student} is quantised, and rounded weights cannot be trained; name "
            "the model that it was made from"
        )
    return student


def trained(recipe: Recipe, student: vlms.Vlm) -> tuple[tuple[str, ...], tuple[nn.Parameter, ...]]:
    """Names and parameters of what is trained; everything else is frozen.

    [paper figure] The language model with its head, without vision tower, projector and input
    embeddings; where the head is the embedding (tied), it is trained. [release] everything. Under
    `lora` adapters, which are put into the student here.

    Raises:
        ValueError: a trained weight is not float32: steps of 5e-5 vanish in half precision.
    """
    model = student.model
    if recipe.train.trainable == "lora":
        lora.attach(student, recipe.train.lora, recipe.seed)
    model.requires_grad_(False)
    chosen = {id(parameter) for parameter in _chosen(recipe, student)}
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


def _chosen(recipe: Recipe, student: vlms.Vlm) -> list[nn.Parameter]:
    if recipe.train.trainable == "lora":
        return list(lora.parameters(student).values())
    if recipe.train.trainable == "everything":
        return list(student.model.parameters())
    embedding, head = student.model.get_input_embeddings().weight, vlms.lm_head(student).weight
    if embedding is head:
        logger.warning("the head is tied to the input embeddings: the embeddings are trained")
    parts = (vlms.language_model(student), vlms.lm_head(student))
    found = [parameter for part in parts for parameter in part.parameters()]
    return [each for each in found if each is not embedding or embedding is head]


def training_mode(recipe: Recipe, student: vlms.Vlm) -> None:
    """Dropout only in what is trained; frozen parts stay in evaluation mode."""
    everything = recipe.train.trainable == "everything"
    student.model.train(False)
    (student.model if everything else vlms.language_model(student)).train()
