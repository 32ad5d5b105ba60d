"""The pydantic models of a recipe, read from YAML and written to it.

Defaults are the paper's assignment where the paper states one, the release's where only the
release does, ours otherwise; each field says which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from drivekd.data.sample import CAPABILITIES
from drivekd.recipe.combine import Combine
from drivekd.recipe.data import Cache, Data
from drivekd.recipe.files import names, read
from drivekd.recipe.part import NonNegative, Part, Positive, explain
from drivekd.recipe.train import Train

_BOUND = r"\s*(first|penultimate|last|\d+)(\s*[+-]\s*\d+)?\s*"
_PART = rf"(\s*all\s*|{_BOUND}(\.\.{_BOUND})?)"
_LAYERS = re.compile(rf"{_PART}(,{_PART})*", re.IGNORECASE)

Signal = Literal["text_to_vision", "full", "hidden", "logits_kl"]


def _layer_spec(spec: int | str) -> int | str:
    if not _LAYERS.fullmatch(str(spec)):
        raise ValueError(
            f"{spec!r} names no layers; write first, penultimate, last, all, a number counted from "
            "1, a range such as 1..penultimate, or several of these with commas"
        )
    return spec


LayerSpec = Annotated[int | str, AfterValidator(_layer_spec)]


class Capability(Part):
    """A teacher, the signal that draws the student to it, and the layers of both.

    Attributes:
        teacher: path, hub id or `world:NAME`; equal names share one forward pass.
        student_layers: layers of the student, e.g. `first`, `1..penultimate` [paper]; none for
            `logits_kl`, which compares what leaves the last one.
        teacher_layers: the same on the teacher; the student's specification where absent.
        signal: attention maps, their text→vision block or all of them [paper]; or, for the
            ablations [ours], `hidden`: states behind layers at text positions, through a learned
            linear map to the teacher's width; `logits_kl`: KL(teacher‖student) on answer tokens.
        loss: mean squared error [paper] or cosine [ours]; nothing else than mse for `logits_kl`.
        grouping: how student layers are matched to teacher layers: window [release] or
            proportional [ours].
        rho: gradient norm of this loss relative to cross-entropy's, before Π [ours].
        reachable_only: leave out pairs of attention that causality forbids [ours].
        temperature: τ that both logits are divided by, for `logits_kl` only; the loss is
            multiplied by τ² [ours].
    """

    teacher: str
    student_layers: LayerSpec | None = None
    teacher_layers: LayerSpec | None = None
    signal: Signal
    loss: Literal["mse", "cosine"] = "mse"
    grouping: Literal["window", "proportional"] = "window"
    rho: NonNegative = 5.4
    reachable_only: bool = False
    temperature: Positive = 1.0

    @model_validator(mode="before")
    @classmethod
    def _same_layers(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("student_layers") is not None:
            same = {"teacher_layers": values["student_layers"]}
            return same | {k: v for k, v in values.items() if (k, v) != ("teacher_layers", None)}
        return values

    @model_validator(mode="after")
    def _keys_of_the_signal(self) -> Capability:
        if self.signal != "logits_kl" and self.student_layers is None:
            raise ValueError(
                f"signal {self.signal} compares layers: expected student_layers, got none; write "
                "for instance student_layers: 1..penultimate"
            )
        for key in _WITHOUT_MEANING[self.signal]:
            usual = type(self).model_fields[key].default
            if getattr(self, key) != usual:
                raise ValueError(
                    f"{key} has no meaning for signal {self.signal}: expected "
                    f"{'null' if usual is None else usual}, got {getattr(self, key)}; leave the "
                    "key out, or choose another signal"
                )
        return self


#: Keys of a capability that its signal does not read.
_WITHOUT_MEANING: Mapping[Signal, tuple[str, ...]] = {
    "text_to_vision": ("temperature",),
    "full": ("temperature",),
    "hidden": ("reachable_only", "temperature"),
    "logits_kl": ("student_layers", "teacher_layers", "loss", "grouping", "reachable_only"),
}


def _mode(name: Any) -> Any:
    if name == "online":
        raise ValueError(
            "'online' is no mode any more: it moved λ of 1e5 by 0.4 in 2,000 units; write "
            "'grad_norm', which follows the gradient norms, or 'fixed'"
        )
    return name


class Weighting(Part):
    """The teachers' weights λ.

    Attributes:
        mode: by gradient norms [ours], or by plain numbers [release's form].
        w_ce: weight of cross-entropy.
        decay: of the running means of gradient norms, under `mode: grad_norm` [ours].
        cap: λ never exceeds so many times its value once the running means are full, after
            1/(1−decay) units, under `mode: grad_norm` [ours].
        fixed: λ per capability under `mode: fixed`.
    """

    mode: Annotated[Literal["grad_norm", "fixed"], BeforeValidator(_mode)] = "grad_norm"
    w_ce: Positive = 1.0
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    cap: Positive = 30.0
    fixed: dict[str, NonNegative] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _keys_of_the_mode(self) -> Weighting:
        unread = ("fixed",) if self.mode == "grad_norm" else ("decay", "cap")
        usual = Weighting.model_construct()
        for key in unread:
            if getattr(self, key) != getattr(usual, key):
                raise ValueError(
                    f"{key} has no meaning under mode: {self.mode}; leave it out, or choose "
                    "another mode"
                )
        return self


class Recipe(Part):
    """Everything that a run is made of.

    Attributes:
        name: of the run.
        seed: data order, projection order and dropout each draw from a stream derived from it.
        student: path, hub id or `world:NAME`.
        output_dir: where checkpoints, logs and the resolved recipe go.
        data: see `Data`.
        capabilities: one teacher each; none = plain cross-entropy.
        mixing: Π, a row per capability of a sample, a column per teacher; rows are normalised.
            Rows not given have .8 on the diagonal and .1 elsewhere [release].
        weighting: see `Weighting`.
        combine: see `Combine`.
        train: see `Train`.
        cache: see `Cache`.
    """

    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    student: str
    output_dir: str
    data: Data = Field(default_factory=Data)
    capabilities: dict[str, Capability] = Field(default_factory=dict)
    mixing: dict[str, dict[str, NonNegative]] = Field(default_factory=dict)
    weighting: Weighting = Field(default_factory=Weighting)
    combine: Combine = Field(default_factory=Combine)
    train: Train = Field(default_factory=Train)
    cache: Cache = Field(default_factory=Cache)

    @model_validator(mode="before")
    @classmethod
    def _fill_mixing(cls, values: Any) -> Any:
        given = values.get("mixing") if isinstance(values, dict) else None
        teachers = values.get("capabilities") if isinstance(values, dict) else None
        if not isinstance(teachers, Mapping) or not isinstance(given, Mapping | None):
            return values
        return {**values, "mixing": _mixing(given or {}, tuple(teachers))}

    @model_validator(mode="after")
    def _held_out(self) -> Recipe:
        if self.train.load_best_model_at_end and not self.data.eval:
            raise ValueError(
                "train.load_best_model_at_end chooses by the loss on data.eval, which names no "
                "file; name one, or set train.load_best_model_at_end: false"
            )
        return self

    @model_validator(mode="after")
    def _known_capabilities(self) -> Recipe:
        known = tuple(self.capabilities)
        rows, fixed = self.mixing, self.weighting.fixed
        wrong = [f"mixing.{r}" for r in rows if r not in known and r not in CAPABILITIES]
        wrong += [f"mixing.{r}.{c}" for r, shares in rows.items() for c in shares if c not in known]
        wrong += [f"weighting.fixed.{name}" for name in fixed if name not in known]
        if wrong:
            raise ValueError(f"{wrong[0]}: no such capability or teacher; there are {names(known)}")
        missing = [name for name in known if name not in self.weighting.fixed]
        if self.weighting.mode == "fixed" and missing:
            raise ValueError(f"weighting.fixed lacks a number for {names(missing)}")
        return self

    @model_validator(mode="after")
    def _only_attention_is_stored(self) -> Recipe:
        for name, capability in self.capabilities.items():
            if self.cache.dir is not None and capability.signal in ("hidden", "logits_kl"):
                raise ValueError(
                    f"cache.dir stores attention, but capabilities.{name} has signal "
                    f"{capability.signal}; leave cache.dir out, or choose an attention signal"
                )
        return self


def load(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path_or_name: a YAML file, or the name of a shipped recipe without `.yaml`, e.g. `demo` or
            `ablations/sum_ceK`. A recipe with the key `base` is a patch of another one.
        overrides: changes such as `train.max_steps=2`; the value is read as YAML.

    Raises:
        FileNotFoundError: there is no such file or shipped recipe.
        ValueError: a key or value is wrong; the message is one line that names it.
    """
    raw, where = read(path_or_name, overrides)
    return parse(raw, where)


def parse(raw: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Make a recipe of plain dictionaries; a ValueError of one line starts with `where`."""
    try:
        return Recipe.model_validate(dict(raw))
    except ValidationError as error:
        raise ValueError(f"{where}: {explain(error, Recipe)}") from None


def to_yaml(recipe: Recipe) -> str:
    """Write the resolved recipe as YAML, of which `load` makes an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _mixing(given: Mapping[str, Any], teachers: tuple[str, ...]) -> dict[str, Any]:
    """Complete the table Π: given rows normalised, absent ones .8 / .1 [release]."""
    rows: dict[str, Any] = {
        row: {column: 0.8 if column == row else 0.1 for column in teachers} for row in teachers
    }
    rows |= given
    return {row: _normalised(row, shares, teachers) for row, shares in rows.items()}


def _normalised(row: str, shares: Any, teachers: tuple[str, ...]) -> Any:
    if not isinstance(shares, Mapping) or not all(_is_number(x) for x in shares.values()):
        return shares  # pydantic says what is wrong with it
    if any(x < 0 for x in shares.values()) or not sum(shares.values()) > 0:
        raise ValueError(
            f"mixing.{row}: shares must be non-negative and not all zero, got {dict(shares)}"
        )
    total = sum(shares.values())
    scale = 1.0 if abs(total - 1) < 1e-9 else total  # so that a written recipe reads back equal
    return dict.fromkeys(teachers, 0.0) | {k: x / scale for k, x in shares.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
