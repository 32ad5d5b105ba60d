"""Which cameras a question gets, and how its prompt names them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from drivekd.data.paths import resolve
from drivekd.data.rows import Row
from drivekd.data.sample import CAMERAS, IMAGE_PLACEHOLDER, Message, Sample

#: `<c1,CAM_FRONT,714.3,503.6>`
_TAG = re.compile(r"<[^<>,]*,\s*(CAM_[A-Z_]+)\s*,[^<>]*>")


def in_order(cameras: Iterable[str]) -> list[str]:
    """NuScenes cameras in the benchmark's order, then any others by name."""
    return sorted(cameras, key=lambda c: (CAMERAS.index(c) if c in CAMERAS else len(CAMERAS), c))


def named(question: str) -> set[str]:
    """The cameras that a question's object tags name."""
    return set(_TAG.findall(question))


def prompt(question: str, cameras: Iterable[str]) -> str:
    """One line per camera, then the question; equal cameras give an equal, packable prefix."""
    labels = "".join(f"{camera}: {IMAGE_PLACEHOLDER}\n" for camera in cameras)
    return labels + question.replace(IMAGE_PLACEHOLDER, "").strip()


def question_sample(
    row: Row,
    *,
    id: str,
    question: str,
    answer: str | None,
    files: Mapping[str, str],
    kind: str | None,
    scene: str | None,
    frame: str | None,
    meta: Mapping[str, object],
) -> Sample:
    """A sample of a question about one key frame of several cameras.

    Single-view rule [paper, DriveBench]: a question whose tags name cameras gets only those
    cameras' images, any other gets all of them.

    Raises:
        ValueError: the question names a camera of which the frame has no image.
    """
    wanted = named(question)
    if unknown := wanted - set(files):
        raise ValueError(
            f"{row.where}: the question names {', '.join(sorted(unknown))}, but the frame has "
            f"images of {', '.join(files) or 'no camera'}"
        )
    cameras = in_order(wanted or files)
    images = {camera: resolve(files[camera], row.folder, row.where) for camera in cameras}
    messages = [Message("user", prompt(question, cameras))]
    if answer is not None:
        messages.append(Message("assistant", answer))
    return Sample(
        id=id,
        messages=tuple(messages),
        images=images,
        capability=capability_of(kind),
        scene=scene,
        frame=frame,
        source=row.where,
        meta={"question_type": kind, **meta},
    )


def capability_of(kind: str | None) -> str | None:
    """Drive-KD's mapping of DriveLM's and DriveBench's question types [paper, inferred].

    Reasoning is prediction and behavior together; None for a type that the mapping leaves out,
    such as `robust_qas` of the corruption files.
    """
    return _CAPABILITY.get(kind or "")


_CAPABILITY = {
    "perception": "perception",
    "prediction": "reasoning",
    "behavior": "reasoning",
    "planning": "planning",
}


def camera_files(row: Row, key: str) -> dict[str, str]:
    """The mapping from camera to path under a key of a row.

    Raises:
        ValueError: it is no such mapping.
    """
    value = row.value.get(key)
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{row.where}: `{key}` must map cameras to image paths, got {value!r:.60}")
    if wrong := [camera for camera, path in value.items() if not isinstance(path, str)]:
        raise ValueError(f"{row.where}: `{key}.{wrong[0]}` must be a path, got {value[wrong[0]]!r}")
    return dict(value)
