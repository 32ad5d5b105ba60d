"""Which models see alike: make the same visual tokens of a picture, so that one runs for all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from drivekd.distill.teachers.teacher import fingerprint
from drivekd.models import vlm as vlms

#: Entries of a model's configuration that say nothing about what it makes of a picture.
_ASIDE = frozenset(
    {
        "text_config", "tie_word_embeddings", "architectures", "dtype", "id2label", "label2id",
        "transformers_version", "_name_or_path",
    }
)  # fmt: skip


def alike(models: Sequence[tuple[vlms.Vlm, torch.device]]) -> list[list[int]]:
    """Numbers of models that make, bit by bit, the same visual tokens of a picture [ours].

    They agree in vision tower and projector (sha256 over all weights, with their types), in the
    settings of both and of the image processor, and run on the same device.

    Args:
        models: each with the device that its vision tower runs on.

    Returns:
        Groups in order of their first member; most have one.
    """
    groups = _grouped([_settings(vlm, device) for vlm, device in models])
    found = []
    for members in groups:
        parts = [vlms.vision_parts(models[number][0]) for number in members]
        prints = [fingerprint(each) for each in parts] if len(members) > 1 else [""]
        found += [[members[place] for place in places] for places in _grouped(prints)]
    return sorted(found)


def _grouped(keys: Sequence[str]) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def _settings(vlm: vlms.Vlm, device: torch.device) -> str:
    """All that visual tokens depend on besides the weights."""
    config: Any = vlm.model.config
    kernels = config.vision_config._attn_implementation
    told = [_told(config.to_dict()), vlm.image_processor.to_dict(), kernels, str(device)]
    return json.dumps([vlm.family.name, *told], sort_keys=True, default=str)


def _told(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {key: _told(value) for key, value in config.items() if key not in _ASIDE}
