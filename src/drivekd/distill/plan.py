"""Everything that is decided before the first step: models, terms, order, what is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from drivekd.distill import corpus
from drivekd.distill.order import Order, windows
from drivekd.distill.processes import sharding
from drivekd.distill.processes.parallel import ALONE, Ranks
from drivekd.distill.processes.sharding import Shards
from drivekd.distill.targets import keeping, storing
from drivekd.distill.targets.storing import Stored
from drivekd.distill.teachers import agreement, attention, bridges, teacher
from drivekd.distill.teachers.bridges import Bridges
from drivekd.distill.teachers.teacher import Teacher, Term
from drivekd.distill.trained import load_student, trained
from drivekd.files.identity import identities
from drivekd.files.progress import track
from drivekd.method.combine import torchjd
from drivekd.models import offload
from drivekd.models import vlm as vlms
from drivekd.models.ahead import ahead, unseen
from drivekd.models.batch import Encoded, flat
from drivekd.models.features import FeatureCache
from drivekd.recipe import Capability, Recipe


@dataclass(frozen=True)
class Models:
    """Who takes part and what is compared.

    Attributes:
        student: the model that is trained, in place.
        features: its cache of visual features; None where its vision tower is trained or caching
            is off.
        teachers: the distinct frozen models; none where their attention is stored.
        stored: their attention on disk; None without a store.
        targets: where the teachers' maps come from: the store, live teachers, or a cache in front
            of them.
        terms: one per capability, in the recipe's order: the columns of Π.
        mixing: Π, a row of K shares [K] per capability of a sample.
        bridges: learned maps between the widths of student and teachers, for `hidden` signals.
        bf16: whether all of them compute under autocast to bfloat16.
        shards: the student in pieces; None where every process has all of it.
    """

    student: vlms.Vlm
    features: FeatureCache | None
    teachers: tuple[Teacher, ...]
    stored: Stored | None
    targets: teacher.Targets
    terms: tuple[Term, ...]
    mixing: Mapping[str | None, Tensor]
    bridges: Bridges
    bf16: bool
    shards: Shards | None


@dataclass(frozen=True)
class Trained:
    """What is trained, and by which processes.

    Attributes:
        names: of the trained parameters.
        parameters: tied ones once; or this process's pieces of them.
        ranks: the processes that train together.
    """

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    ranks: Ranks


@dataclass(frozen=True)
class Schedule:
    """What a run sees, in which order, and which losses each sample can carry.

    Attributes:
        encoded: the training samples.
        held_out: the evaluation samples.
        order: of the training samples.
        total_steps: optimizer steps of the whole run.
        groups: capabilities whose cross-entropy has a row of its own; () = one row for all.
        rows: names of the rows of the Gram matrix: the cross-entropy's, then one per teacher; no
            capability's name can make two of them equal.
        carriers: whether each sample can have a gradient in each row, by the data alone [N, rows].
            So losses that cannot occur are not differentiated, and kept coefficients are known not
            to fit.
        ordered: what a projection takes in a random order: capabilities, with None the anchor.
    """

    encoded: Sequence[Encoded]
    held_out: Sequence[Encoded]
    order: Order
    total_steps: int
    groups: tuple[str, ...]
    rows: tuple[str, ...]
    carriers: NDArray[np.bool_]
    ordered: tuple[str | None, ...]


@dataclass(frozen=True)
class Plan:
    """A run, ready to start: what was asked for, and what was decided by it."""

    recipe: Recipe
    models: Models
    trained: Trained
    schedule: Schedule


def build(
    recipe: Recipe,
    student: vlms.Vlm | None = None,
    given: Mapping[str, vlms.Vlm] | None = None,
    ranks: Ranks = ALONE,
) -> Plan:
    """Load what the recipe names, check it, and decide everything that the loop needs.

    Args:
        recipe: of the run.
        student: used instead of loading `recipe.student`; trained in place.
        given: teachers to use instead of loading them, by the name the recipe gives them.
        ranks: the processes that train together.

    Raises:
        ValueError: the recipe, the data and the models do not fit together.
    """
    refuse_unsupported(recipe, ranks)
    samples = corpus.training_samples(recipe)
    if student is None:
        student = load_student(recipe)
    attention.install(student.model)
    encoded = corpus.encode_all(student, samples)
    corpus.check_limits(recipe, student, encoded)
    held_out = corpus.encode_all(student, corpus.evaluation_samples(recipe, samples))
    corpus.check_limits(recipe, student, held_out, kind="evaluation")
    taught = _taught(recipe, student, (encoded, held_out), given or {}, ranks)
    names, parameters = trained(recipe, student)
    in_pieces = recipe.train.fsdp and ranks.size > 1
    shards = sharding.shard(student, names, ranks) if in_pieces else None
    schedule = _schedule(recipe, taught.terms, encoded, held_out, ranks)
    order, total_steps = schedule.order, schedule.total_steps
    shown = windows(order, 0, total_steps)
    batches = (batch for window in shown for batch in ranks.share(window.batches))
    parts = (recipe, taught.teachers, taught.terms, student, encoded, taught.stored)
    again = total_steps > order.steps_per_epoch or bool(order.portions)
    models = Models(
        student,
        taught.features,
        taught.teachers,
        taught.stored,
        keeping.targets(*parts, again=again, batches=batches),
        taught.terms,
        _mixing(recipe, taught.terms, student.device),
        _bridges(recipe, student, taught.teachers),
        recipe.train.bf16,
        shards,
    )
    held = parameters if shards is None else shards.pieces
    return Plan(recipe, models, Trained(names, held, ranks), schedule)


def _schedule(
    recipe: Recipe,
    terms: Sequence[Term],
    encoded: Sequence[Encoded],
    held_out: Sequence[Encoded],
    ranks: Ranks,
) -> Schedule:
    combiner, names = recipe.combine.combiner, tuple(term.capability for term in terms)
    groups = corpus.capabilities(terms, encoded) if combiner == "agp_grouped" and terms else ()
    anchored = combiner == "pcgrad" or combiner.startswith(torchjd.PREFIX)
    ordered = (*([None] if anchored else ()), *dict.fromkeys((*names, *groups)))
    order = corpus.order_of(
        recipe,
        corpus.rows_of(recipe, encoded),
        ranks.size,
        [each.sample for each in encoded],
        corpus.sizes(recipe, encoded),
    )
    by_batch = recipe.combine.granularity == "micro_batch"
    order = replace(order, ordered=len(ordered), by_batch=by_batch)
    rows = tuple(f"ce/{name}" for name in groups) or ("ce",)
    return Schedule(
        encoded,
        held_out,
        order,
        steps_of(recipe, order),
        groups,
        (*rows, *(f"teacher/{name}" for name in names)),
        corpus.carriers(recipe, terms, groups, encoded),
        ordered,
    )


def refuse_unsupported(recipe: Recipe, ranks: Ranks) -> None:
    """Refuse keys that exclude each other, before anything is read or loaded.

    Raises:
        ValueError: naming them, and the way out.
    """
    if recipe.combine.granularity == "micro_batch" and ranks.size > 1:
        raise ValueError(
            f"combine.granularity: micro_batch projects one batch after the other, each with the λ "
            f"that the one before left; {ranks.size} processes run theirs at the same time. Set "
            "combine.granularity: step, or train in one process"
        )
    if recipe.combine.granularity == "micro_batch" and recipe.data.pack and recipe.capabilities:
        raise ValueError(
            "combine.granularity: micro_batch projects the gradients of single samples, but "
            "data.pack puts all questions of a scene into one batch; set data.pack: false or "
            "combine.granularity: step"
        )
    if recipe.combine.combiner.startswith(torchjd.PREFIX):
        torchjd.torchjd_solver(recipe.combine.combiner)
    if recipe.train.trainable == "everything" and recipe.data.images != "real":
        raise ValueError(
            f"data.images: {recipe.data.images} needs the frozen vision tower's cached features; "
            "train.trainable: everything trains it. Use trainable: language_model"
        )
    for name, capability in recipe.capabilities.items():
        if recipe.data.mismatch and capability.signal in ("hidden", "logits_kl"):
            raise ValueError(
                f"data.mismatch: true exchanges attention between words, but capabilities.{name} "
                f"has signal {capability.signal}; set data.mismatch: false or an attention signal"
            )


# -------------------------------------------------------------------------------- who teaches


@dataclass(frozen=True)
class _Taught:
    """Who teaches what, what all of them see with, or the store in the teachers' place."""

    features: FeatureCache | None
    teachers: tuple[Teacher, ...]
    terms: tuple[Term, ...]
    stored: Stored | None


def _taught(
    recipe: Recipe,
    student: vlms.Vlm,
    samples: tuple[Sequence[Encoded], Sequence[Encoded]],
    given: Mapping[str, vlms.Vlm],
    ranks: Ranks,
) -> _Taught:
    """The teachers and what they teach, or all of it from a store and no teachers.

    `samples`: those of training, and those held out.
    """
    encoded, held_out = samples
    stored = storing.ready(recipe, student, encoded, given, ranks)
    if stored is not None:
        corpus.check(recipe, stored.terms, encoded)
        features, _ = keeping.visual(recipe, student, (), encoded, held_out)
        return _Taught(features, (), stored.terms, stored)
    blind = _teachers(recipe, student, encoded, given)
    by_name = {term.capability: term for each in blind for term in each.terms}
    terms = tuple(by_name[name] for name in recipe.capabilities)
    corpus.check(recipe, terms, encoded)
    features, teachers = keeping.visual(recipe, student, blind, encoded, held_out)
    if not recipe.cache.dir or not terms:
        return _Taught(features, teachers, terms, None)
    stored = storing.filled(recipe, student, encoded, teachers, terms, given, ranks)
    # Anew, as in a run that finds the store full: filling saw other groups of pictures.
    features, _ = keeping.visual(recipe, student, (), encoded, held_out)
    return _Taught(features, (), terms, stored)


def _teachers(
    recipe: Recipe,
    student: vlms.Vlm,
    encoded: Sequence[Encoded],
    given: Mapping[str, vlms.Vlm],
) -> tuple[Teacher, ...]:
    """One `Teacher` per distinct name, each with the terms of all its capabilities, no features."""
    dtype = torch.bfloat16 if recipe.train.bf16 else torch.float32
    away = recipe.train.offload_teachers
    place = torch.device("cpu") if away else student.device
    teachers = []
    own = len(vlms.decoder_layers(student))
    for source, taught in uses(recipe).items():
        vlm = given.get(source)
        depth = teacher.depth(source) if vlm is None else len(vlms.decoder_layers(vlm))
        terms = tuple(teacher.term(name, use, own, depth) for name, use in taught.items())
        if vlm is None:
            vlm = teacher.load(
                source,
                taught,
                device=place,
                dtype=dtype,
                max_image_tokens=recipe.data.max_image_tokens,
            )
        corpus.check_limits(recipe, vlm, encoded)
        agreement.check_agreement(student, vlm, ", ".join(taught), encoded)
        if any(use.signal == "logits_kl" for use in taught.values()):
            agreement.check_outputs(student, vlm, ", ".join(taught))
        if away:
            offload.rest(vlm.model)
        comes = student.device if away else None
        teachers.append(Teacher(teacher.freeze(vlm), terms, None, comes))
    return tuple(teachers)


def uses(recipe: Recipe) -> dict[str, dict[str, Capability]]:
    """The distinct teachers by name, each with the capabilities that it teaches."""
    taught: dict[str, dict[str, Capability]] = {}
    for name, capability in recipe.capabilities.items():
        taught.setdefault(capability.teacher, {})[name] = capability
    return taught


def _bridges(recipe: Recipe, student: vlms.Vlm, teachers: Sequence[Teacher]) -> Bridges:
    def width(vlm: vlms.Vlm) -> int:
        return int(vlm.model.config.get_text_config().hidden_size)

    return bridges.build(
        [term for each in teachers for term in each.terms],
        {term.capability: width(each.vlm) for each in teachers for term in each.terms},
        width(student),
        seed=recipe.seed,
        device=student.device,
    )


def _mixing(
    recipe: Recipe, terms: Sequence[Term], device: torch.device
) -> dict[str | None, Tensor]:
    return {
        capability: torch.tensor([row[term.capability] for term in terms], device=device)
        for capability, row in recipe.mixing.items()
    }


def fill_caches(plan: Plan) -> None:
    """Compute the visual features of this process's share, in an order that resuming keeps.

    A cache filled on the way would see other groups of pictures after resuming, and rounding
    depends on what is computed together. The precision is that of training.
    """
    models, schedule = plan.models, plan.schedule
    seen = {
        index
        for window in windows(schedule.order, 0, schedule.total_steps)
        for index in flat(plan.trained.ranks.share(window.batches))
    }
    pictures = list(dict.fromkeys(schedule.encoded[index].images for index in sorted(seen)))
    held_out = list(dict.fromkeys(each.images for each in schedule.held_out))
    done: set[int] = set()
    student = Teacher(models.student, (), models.features)
    for each in (student, *models.teachers):
        cache, images = each.features, pictures + held_out * (each is student)
        if cache is None or cache.latest or id(cache) in done:
            continue
        done.add(id(cache))  # models that see alike have one cache
        cache.pictures.update(identities(path for files in images for path in files))
        workers = plan.recipe.train.dataloader_num_workers if cache.image_mode == "real" else 0
        label, news = f"visual features of {each.vlm.source}", unseen(each.vlm)
        with (
            offload.visiting(each.vlm.model, each.device),
            ahead(images, news, workers) as coming,
            torch.autocast(student.vlm.device.type, torch.bfloat16, enabled=models.bf16),
        ):
            for files in track(coming, total=len(images), label=label):
                cache.features(each.vlm, files)


def steps_of(recipe: Recipe, order: Order) -> int:
    """Optimizer steps of the whole run."""
    if recipe.train.max_steps >= 0:
        return recipe.train.max_steps
    return max(1, round(recipe.train.num_train_epochs * order.steps_per_epoch))
