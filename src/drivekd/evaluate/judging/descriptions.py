"""What people wrote about the objects of DriveBench's frames, for the judge to compare with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drivekd.data.sample import Sample
from drivekd.data.tags import read_tags


def read_descriptions(path: Path) -> dict[str, dict[str, str]]:
    """Frame token → object, such as `c1,CAM_FRONT` → its description, from DriveBench's file.

    Raises:
        ValueError: the file is not there or not of this kind.
    """
    try:
        scenes = json.loads(path.read_text(encoding="utf-8"))
        frames = [frame for scene in scenes.values() for frame in scene["key_frames"].items()]
        return {token: _objects(frame["key_object_infos"]) for token, frame in frames}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"descriptions {path}: expected DriveBench's visual_description.json ({error!r})"
        ) from None


def _objects(infos: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    found = {}
    for name, info in infos.items():
        words = (info.get("Category"), info.get("Status"), info.get("Visual_description"))
        for tag in read_tags(name):
            found[f"{tag.name},{tag.camera}"] = ", ".join(str(word) for word in words if word)
    return found


def describe(sample: Sample, table: Mapping[str, Mapping[str, str]]) -> str:
    """The objects that a question names, or all of its frame, one a line; "" for none known.

    An object is known by name and camera, for places are in pixels here and in fractions there.
    """
    objects = table.get(sample.frame or "", {})
    asked = [f"{tag.name},{tag.camera}" for tag in read_tags(sample.question)]
    shown = {name: objects[name] for name in asked if name in objects} if asked else objects
    return "\n".join(f"<{name}>: {text}" for name, text in shown.items())
