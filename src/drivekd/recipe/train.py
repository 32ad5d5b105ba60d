"""The section `train` of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from drivekd.recipe.part import Count, NonNegative, OneOrMore, Part, Positive, Share


class Lora(Part):
    """Low-rank adapters beside linear layers of the language model; names as in peft.

    The base weights stay as they were; `final/` holds the sum of both as a plain model.

    Attributes:
        r: rank of each adapter.
        lora_alpha: an adapter's output is multiplied by lora_alpha / r.
        lora_dropout: of an adapter's input.
        target_modules: last names of the linear layers that get one.
    """

    r: Count = 16
    lora_alpha: Count = 32
    lora_dropout: Share = 0.0
    target_modules: Annotated[tuple[str, ...], Field(min_length=1), OneOrMore] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )


def _some_steps(value: int) -> int:
    if value == 0:
        raise ValueError(
            "0 steps train nothing: expected 1 or more, or -1 for as many as num_train_epochs give"
        )
    return value


class Train(Part):
    """The optimizer and its schedule; names as in the ecosystem, defaults of the release.

    Attributes:
        trainable: the language model without its input embeddings [paper's figure], everything
            [release], or `lora`: adapters in the language model alone.
        lora: see `Lora`; only for `trainable: lora`.
        lr_scheduler_type: of the learning rate behind the warm-up.
        lr_end: cosine and linear end at this share of the learning rate [release].
        warmup_steps: optimizer steps of linear warm-up.
        warmup_ratio: the same as a share of all optimizer steps, rounded up; only one of the two.
        per_device_train_batch_size: samples, or rows when packed, of one forward pass.
        gradient_accumulation_steps: forward passes of each process in an optimizer step, which so
            sees per_device_train_batch_size × gradient_accumulation_steps × processes rows.
        group_by_length: rows of like length share a step and so its batches, which then have less
            padding; each row is seen as often as without, and packed rows count as a whole.
        dataloader_num_workers: threads that read and process pictures of the coming steps while
            one runs; 0: each picture when it is needed. The results are the same bits.
        max_steps: optimizer steps; -1 = as many as the epochs give.
        eval_strategy: when the loss on `data.eval` (eval/loss/ce) is taken: every `eval_steps`
            optimizer steps, at the end of each epoch, or never; and after the last step, unless
            never. Nothing happens where `data.eval` names no file.
        eval_steps: for `eval_strategy: steps`; where absent, as `save_steps`.
        load_best_model_at_end: `final/` is the checkpoint, or the end of the run, with the least
            eval/loss/ce (the only measure, so there is no `metric_for_best_model`);
            `save_total_limit` spares that checkpoint.
        save_total_limit: keep the newest so many checkpoints; all of them where null.
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

    trainable: Literal["language_model", "everything", "lora"] = "language_model"
    lora: Lora = Field(default_factory=Lora)
    learning_rate: Positive = 5e-5
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    lr_end: Annotated[float, Field(ge=0, le=1)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    weight_decay: NonNegative = 0.0
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.999
    max_grad_norm: Positive | None = 1.0
    per_device_train_batch_size: Count = 4
    gradient_accumulation_steps: Count = 1
    group_by_length: bool = False
    dataloader_num_workers: Annotated[int, Field(ge=0)] = 0
    num_train_epochs: Positive = 1.0
    max_steps: Annotated[int, Field(ge=-1), AfterValidator(_some_steps)] = -1
    eval_strategy: Literal["no", "steps", "epoch"] = "steps"
    eval_steps: Count | None = None
    load_best_model_at_end: bool = False
    logging_steps: Count = 10
    save_steps: Count = 500
    save_total_limit: Count | None = 2
    report_to: Literal["tensorboard", "none"] | None = None
    bf16: bool = False
    fp16: bool = False
    gradient_checkpointing: bool = False
    fsdp: bool = False
    offload_teachers: bool = False
    num_threads: Count = 1
    cache_features_gb: NonNegative = 4.0
    cache_targets_gb: NonNegative = 4.0

    @property
    def evaluation_steps(self) -> int:
        """Optimizer steps between two evaluations under `eval_strategy: steps`."""
        return self.eval_steps or self.save_steps

    @field_validator("eval_strategy", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: Any) -> Any:
        return "no" if value is False else value  # what YAML makes of an unquoted no

    @model_validator(mode="after")
    def _no_fp16(self) -> Train:
        if self.fp16:
            raise ValueError(
                "fp16 is refused: a gradient scaler does not see hand-made gradients, and "
                "attention losses of 1e-7 underflow; use bf16: true or leave both out for float32"
            )
        return self

    @model_validator(mode="after")
    def _one_warmup(self) -> Train:
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError(
                f"warmup_steps: {self.warmup_steps} and warmup_ratio: {self.warmup_ratio:g} both "
                "set the length of the warm-up; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _adapters(self) -> Train:
        if self.trainable != "lora" and self.lora != Lora():
            raise ValueError(
                f"lora has no meaning with trainable: {self.trainable}; set trainable: lora, or "
                "leave lora out"
            )
        if self.trainable == "lora" and self.fsdp:
            raise ValueError(
                "fsdp: true spreads trained weights over processes, but with trainable: lora they "
                "are few and the frozen ones stay whole in each; set fsdp: false"
            )
        return self

    @model_validator(mode="after")
    def _evaluation(self) -> Train:
        if self.eval_steps is not None and self.eval_strategy != "steps":
            raise ValueError(
                f"eval_steps has no meaning with eval_strategy: {self.eval_strategy}; set "
                "eval_strategy: steps, or leave eval_steps out"
            )
        if not self.load_best_model_at_end:
            return self
        if self.eval_strategy != "steps":
            raise ValueError(
                "load_best_model_at_end chooses among checkpoints, which are written every "
                f"save_steps, by their evaluation; eval_strategy: {self.eval_strategy} takes none "
                "there. Set eval_strategy: steps"
            )
        if self.save_steps % self.evaluation_steps:
            raise ValueError(
                f"load_best_model_at_end needs an evaluation of every checkpoint: expected "
                f"save_steps to be a multiple of eval_steps, got {self.save_steps} and "
                f"{self.evaluation_steps}"
            )
        return self
