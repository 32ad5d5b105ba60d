"""Visual tokens of image files, and a cache that runs a frozen vision tower once per picture."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from drivekd.files.identity import identity
from drivekd.models.images import PLAIN, ImageMode, pixels, token_grid
from drivekd.models.vlm import Vlm, vision_parts


def image_features(
    vlm: Vlm,
    paths: Sequence[Path],
    image_mode: ImageMode = "real",
    other: Mapping[Path, Path] | None = None,
) -> list[Tensor]:
    """Visual tokens [m, d] of each file, after the projector; gradients flow where enabled.

    Of a family that also adds features of lower vision layers behind its first decoder layers
    (deepstack) [m, levels · d]: the tokens, then what is added behind layer 1, layer 2, …

    Raises:
        ValueError: for an unreadable file or a missing stand-in.
    """
    if not paths:
        return []
    inputs = pixels(vlm, paths, image_mode, other)
    model: Any = vlm.model.get_submodule("model")
    output = model.get_image_features(**inputs)
    # Releases differ: a tensor, a tuple, or an output object with either under `pooler_output`.
    found = [
        getattr(output, "pooler_output", output),
        *(getattr(output, "deepstack_features", None) or ()),
    ]
    apart = (_by_file(vlm, level, paths) for level in found)
    return [torch.cat(parts, dim=-1) for parts in zip(*apart, strict=True)]


def _by_file(vlm: Vlm, features: Any, paths: Sequence[Path]) -> list[Tensor]:
    """One tensor per file, where a release has not cut them apart already."""
    if isinstance(features, Tensor) and features.ndim == 2:
        lengths = [rows * columns for rows, columns in (token_grid(vlm, p) for p in paths)]
        return list(torch.split(features, lengths))
    return list(features)


def levels(vlm: Vlm) -> int:
    """How many features a visual token consists of: itself, and one per level of deepstack."""
    return 1 + len(getattr(vlm.model.config.vision_config, "deepstack_visual_indexes", ()))


def feature_bytes(vlm: Vlm, grids: Iterable[tuple[int, int]]) -> int:
    """Memory [bytes] of the visual tokens of pictures with these token grids."""
    embeddings: Any = vlm.model.get_input_embeddings()
    tokens = sum(rows * columns for rows, columns in grids)
    width = levels(vlm) * embeddings.embedding_dim
    return tokens * int(width * embeddings.weight.element_size())


@dataclass(eq=False)
class _Tokens:
    """What is known of one model, and the state of its vision weights when it was computed."""

    version: int
    of: dict[Hashable, Tensor] = field(default_factory=dict)


@dataclass(eq=False)
class FeatureCache:
    """Visual tokens by model and file, kept on the model's device in the model's precision.

    One cache may serve a student and its teachers: entries belong to the model they were made
    with. They are dropped when that model's vision weights change in place (an optimizer step,
    `load_state_dict`); a change through `.data` is not noticed.

    Attributes:
        image_mode: which picture stands for a file.
        other: for image mode `other`, each file to its stand-in.
        chunk: pictures per run of the vision tower.
        alike: the models that use it make the same tokens of a picture, bit by bit: whichever asks
            first runs its tower, until the weights of one change.
        latest: keep only the pictures that were last asked for, and make them all at once, as
            without a cache: no memory for more, but models that are alike run one tower.
        pictures: identities of files that are not looked at again, as those of a run.
    """

    image_mode: ImageMode = "real"
    other: Mapping[Path, Path] | None = None
    chunk: int = 24
    alike: bool = False
    latest: bool = False
    pictures: dict[Path, str] = field(default_factory=dict, repr=False)
    _store: WeakKeyDictionary[PreTrainedModel, _Tokens] = field(
        default_factory=WeakKeyDictionary, repr=False
    )
    _first: WeakKeyDictionary[PreTrainedModel, int] = field(
        default_factory=WeakKeyDictionary, repr=False
    )
    _common: dict[Hashable, Tensor] = field(default_factory=dict, repr=False)

    def features(self, vlm: Vlm, paths: Sequence[Path]) -> list[Tensor]:
        """Visual tokens [m, d] of each file, without gradient, computed if not yet known.

        Raises:
            ValueError: if the vision tower is being trained, or for an unreadable file.
        """
        weights = [p for part in vision_parts(vlm) for p in part.parameters()]
        if torch.is_grad_enabled() and any(p.requires_grad for p in weights):
            raise ValueError(
                f"model {vlm.source!r}: cached image features carry no gradient, but its vision "
                "tower or projector is to be trained. Freeze them or "
                "pass no cache (recipe: train.cache_features_gb: 0)"
            )
        known = self._known(vlm, sum(p._version for p in weights))
        asked = {self._key(vlm, p): p for p in paths}
        missing = {key: path for key, path in asked.items() if key not in known}
        if self.latest and list(asked) != list(known):  # a group of others rounds otherwise
            known.clear()
            missing = asked
        keys, files = list(missing), list(missing.values())
        chunk = max(1, len(files)) if self.latest else self.chunk
        for start in range(0, len(files), chunk):
            part = slice(start, start + chunk)
            with torch.no_grad():
                made = image_features(vlm, files[part], self.image_mode, self.other)
            known.update(zip(keys[part], made, strict=True))
        return [known[self._key(vlm, p)] for p in paths]

    def _known(self, vlm: Vlm, version: int) -> dict[Hashable, Tensor]:
        if self.alike and self._first.setdefault(vlm.model, version) == version:
            return self._common
        tokens = self._store.get(vlm.model)
        if tokens is None or tokens.version != version:
            tokens = self._store[vlm.model] = _Tokens(version)
        return tokens.of

    def _key(self, vlm: Vlm, path: Path) -> Hashable:
        key: Hashable = None
        if self.image_mode in PLAIN:  # all of one colour and one token grid are the same picture
            key = token_grid(vlm, path)
        else:
            shown = [path, *([] if self.other is None else [self.other.get(path, path)])]
            key = tuple(self.pictures.get(each) or identity(each) for each in shown)
        # Made while a pass computes in half precision they are others than outside of it.
        half = self.latest and torch.is_autocast_enabled(vlm.device.type)
        return (key, half)
