"""How much memory a training step takes, estimated from shapes before anything is loaded.

All of it is ours. Weights, gradients and optimizer states are counted exactly; what the forward
pass keeps for the backward pass is an upper estimate, meant to tell 20 GB from 80 GB.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from drivekd.distill.teachers.teacher import Term
from drivekd.models import vlm as vlms
from drivekd.models.published import parameters
from drivekd.recipe import Recipe

FLOAT, HALF = 4, 2
"""Bytes of a number in float32, and in bfloat16."""


@dataclass(frozen=True)
class Row:
    """The longest row of a batch.

    Attributes:
        visual: its visual tokens.
        text: all its other tokens.
    """

    visual: int
    text: int

    @property
    def tokens(self) -> int:
        """Its length."""
        return self.visual + self.text


@dataclass(frozen=True)
class Part:
    """What one kind of thing takes [bytes].

    Attributes:
        name: of the kind.
        alone: in a process that has the whole student.
        sharded: in each of several processes with `train.fsdp`.
    """

    name: str
    alone: float
    sharded: float


def estimate(
    recipe: Recipe,
    student: vlms.Vlm,
    trained: int,
    teachers: Sequence[tuple[vlms.Vlm, Sequence[Term]]],
    row: Row,
    processes: int,
) -> list[Part]:
    """Memory of one process during a step, by kind [ours].

    With P parameters of the student, of which T are trained, and K teachers' losses:

    - weights 4 P bytes; sharded, the T/processes that a process owns and, for the time of the step,
      all that are gathered from them;
    - gradients 4 T (K + 3): one for each loss (see gradients.py; cross-entropy has one, or one per
      capability for `agp_grouped`), the update made of them, and the one being computed;
    - AdamW 8 T; the cast weights that autocast keeps 2 T with `train.bf16`;
    - teachers as loaded, cut above the highest layer used; one at a time with
      `train.offload_teachers`;
    - see `activations` (of a teacher one layer's) and `maps`; three float32 copies of the logits at
      all text positions, although only answers have any.

    Visual tokens and attention that are kept on purpose come on top, up to
    `train.cache_features_gb` for each model and `train.cache_targets_gb`.

    Args:
        recipe: of the run.
        student: its shapes.
        trained: T.
        teachers: shapes of the distinct ones, with what they are asked for.
        row: the longest one.
        processes: over which `train.fsdp` would spread the student.
    """
    terms = [term for _, asked in teachers for term in asked]
    rows = recipe.train.per_device_train_batch_size
    grouped = recipe.combine.combiner == "agp_grouped"
    losses = len(terms) + (max(1, len(terms)) if grouped else 1)
    number = HALF if recipe.train.bf16 else FLOAT
    weights = FLOAT * parameters(student)
    vocabulary = student.model.config.get_text_config().vocab_size
    gathered = weights + FLOAT * trained / processes
    gradients, adam = FLOAT * trained * (losses + 2), 2 * FLOAT * trained
    sizes = [number * parameters(vlm) for vlm, _ in teachers]
    held = max(sizes, default=0) if recipe.train.offload_teachers else sum(sizes)
    cast = HALF * trained if recipe.train.bf16 else 0
    kept = rows * activations(recipe, student, row)
    running = (_per_token(vlm.model.config.get_text_config(), number) for vlm, _ in teachers)
    kept += rows * row.tokens * max(running, default=0)
    compared = rows * maps(terms, row)
    logits = 3 * FLOAT * rows * row.text * vocabulary
    return [
        Part("student, float32", weights, gathered),
        Part(f"gradients: {losses} losses and more", gradients, gradients / processes),
        Part("AdamW's two moments", adam, adam / processes),
        Part("weights cast for autocast", cast, cast),
        Part(f"teachers, {'bfloat16' if recipe.train.bf16 else 'float32'}", held, held),
        Part("activations, at most", kept, kept),
        Part("attention maps, at most", compared, compared),
        Part("logits, at most", logits, logits),
    ]


def activations(recipe: Recipe, student: vlms.Vlm, row: Row) -> int:
    """What the forward pass of one row keeps for the backward passes [bytes, ours].

    A decoder layer of width d, whose heads are together a wide, with an MLP of width i, keeps per
    token at most 4 · 6 d + e (2 d + 8 a + 4 i): two norms in float32 (what enters, what is
    normalised, what leaves); queries, keys and values before and after their norm and rotation, and
    what leaves attention; four of the MLP. e is 2 with `train.bf16`, else 4. With
    `train.gradient_checkpointing` it keeps what enters a layer, 4 d, and all of one layer at a
    time. A vision tower that is trained keeps as much for each of its patches.
    """
    number = HALF if recipe.train.bf16 else FLOAT
    config = student.model.config
    stacks = [(config.get_text_config(), row.tokens)]
    if recipe.train.trainable == "everything":  # four patches make a visual token in every family
        stacks.append((config.vision_config, 4 * row.visual))
    kept = 0
    for stack, tokens in stacks:
        layer = _per_token(stack, number)
        entry = FLOAT * stack.hidden_size
        checkpointed = recipe.train.gradient_checkpointing
        each, once = (entry, layer) if checkpointed else (layer, 0)
        kept += tokens * (stack.num_hidden_layers * each + once)
    return kept


def _per_token(config: Any, number: int) -> int:
    """What one layer keeps for one token [bytes]; `number`: of those that autocast may shorten."""
    heads = int(config.num_attention_heads)
    wide = int(config.hidden_size)
    width = int(getattr(config, "head_dim", None) or wide // heads) * heads
    return FLOAT * 6 * wide + number * (2 * wide + 8 * width + 4 * int(config.intermediate_size))


def maps(terms: Iterable[Term], row: Row) -> int:
    """Attention maps of one row, in float32 [bytes, ours].

    For every layer of the student its map, the target, their difference and its square; for every
    layer of a teacher its map, since a target is the mean of several. Rows are all tokens for
    `full`, text for `text_to_vision`; columns are all tokens.
    """
    count = 0
    for term in terms:
        if term.of_attention:
            theirs = {layer for matched in term.matches.values() for layer in matched}
            held = row.tokens if term.whole else row.text
            count += (4 * len(term.matches) + len(theirs)) * held * row.tokens
    return FLOAT * count
