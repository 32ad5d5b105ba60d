"""What may stand under `train` in a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from drivekd.recipe.part import Count, NonNegative, Part, Positive


class Train(Part):
    """The optimizer and its schedule; names as in the ecosystem, defaults of the release.

    Attributes:
        trainable: the language model without its input embeddings [paper's figure], or everything
            [release].
        lr_end: the cosine ends at this share of the learning rate [release].
        per_device_train_batch_size: samples, or rows when packed, of one forward pass.
        gradient_accumulation_steps: forward passes of each process in an optimizer step, which so
            sees per_device_train_batch_size × gradient_accumulation_steps × processes rows.
        max_steps: optimizer steps; -1 = as many as the epochs give.
        bf16: autocast over fp32 masters.
        fp16: refused, see the error; the key exists so that the refusal can say why.
        gradient_checkpointing: compute the activations of layers anew in backward passes.
        fsdp: spread the trained weights, their gradients and the optimizer over the processes, by
            PyTorch's `fully_shard`; nothing changes in a single process [ours].
        offload_teachers: teachers rest in the host's memory and come to the GPU one after another,
            each for its pass: the GPU needs room for the largest, not for all of them [ours].
        num_threads: torch threads of each process.
        cache_features_gb: most memory [GB] for visual tokens kept of one frozen vision tower, which
            may be that of several models.
        cache_targets_gb: most memory [GB] for the teachers' attention, kept where samples are seen
            more than once and every signal is of attention; 0: teachers run at every visit.
    """

    trainable: Literal["language_model", "everything"] = "language_model"
    learning_rate: Positive = 5e-5
    lr_scheduler_type: Literal["cosine", "constant"] = "cosine"
    lr_end: Annotated[float, Field(ge=0, le=1)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: NonNegative = 0.0
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    max_grad_norm: Positive | None = 1.0
    per_device_train_batch_size: Count = 4
    gradient_accumulation_steps: Count = 1
    num_train_epochs: Positive = 1.0
    max_steps: Annotated[int, Field(ge=-1)] = -1
    logging_steps: Count = 10
    save_steps: Count = 500
    save_total_limit: Count | None = 2
    report_to: Literal["tensorboard", "none"] = "tensorboard"
    bf16: bool = False
    fp16: bool = False
    gradient_checkpointing: bool = False
    fsdp: bool = False
    offload_teachers: bool = False
    num_threads: Count = 1
    cache_features_gb: NonNegative = 4.0
    cache_targets_gb: NonNegative = 4.0

    @model_validator(mode="after")
    def _no_fp16(self) -> Train:
        if self.fp16:
            raise ValueError(
                "fp16 is refused: a gradient scaler does not see hand-made gradients, and "
                "attention losses of 1e-7 underflow; use bf16: true or leave both out for float32"
            )
        return self
