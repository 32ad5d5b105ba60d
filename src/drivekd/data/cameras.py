"""Cameras of a question: those it gets, their names in the prompt, and the order of looking."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from drivekd.data.formats.rows import Row, RowError, shown
from drivekd.data.kinds import kind_of, template_of
from drivekd.data.paths import refuse_too_many, resolve
from drivekd.data.sample import CAMERAS, IMAGE_PLACEHOLDER, Message, Sample

#: `<c1,CAM_FRONT,714.3,503.6>`, also where its numbers are broken
_TAG = re.compile(r"<[^<>,]{0,40},\s{0,9}(CAM_[A-Z_]{1,40})\s{0,9},[^<>]{0,80}>")


def in_order(cameras: Iterable[str]) -> list[str]:
    """Sort nuScenes cameras in the benchmark's order, then any others by name."""
    return sorted(cameras, key=lambda c: (CAMERAS.index(c) if c in CAMERAS else len(CAMERAS), c))


def around(cameras: Iterable[str]) -> list[str]:
    """Sort cameras as a driver looks around: left, ahead, right; behind from the left; others."""
    left_to_right = [CAMERAS[i] for i in (1, 0, 2, 4, 3, 5)]
    place = {camera: i for i, camera in enumerate(left_to_right)}
    return sorted(cameras, key=lambda camera: place.get(camera, len(place)))


def in_words(camera: str) -> str:
    """`CAM_FRONT_LEFT` → `front left`."""
    return camera.removeprefix("CAM_").replace("_", " ").lower()


def named(question: str) -> set[str]:
    """Return the cameras that a question's object tags name."""
    return set(_TAG.findall(question)) if "<" in question else set()


def prompt(question: str, cameras: Iterable[str], labels: bool = True) -> str:
    """Write one line per camera, then the question: equal cameras give an equal, packable prefix.

    An image without a camera (`image_0`) has no name there. Without labels the placeholders are
    alone, as in Drive-KD's public samples.
    """
    names = ("" if re.fullmatch(r"image_\d+", camera) else f"{camera}: " for camera in cameras)
    lines = (f"{name}{IMAGE_PLACEHOLDER}\n" if labels else IMAGE_PLACEHOLDER for name in names)
    return "".join(lines) + question.replace(IMAGE_PLACEHOLDER, "").strip()


def question_sample(
    row: Row,
    *,
    id: str,
    question: str,
    answer: str | None,
    files: Mapping[str, str],
    capability: str | None,
    scene: str | None,
    frame: str | None,
    meta: Mapping[str, object],
) -> Sample:
    """Make a sample of a question about one key frame of several cameras.

    Single-view rule [paper, DriveBench]: a question whose tags name cameras gets only those
    cameras' images, any other gets all of them.
    """
    wanted = named(question)
    if unknown := wanted - set(files):
        raise RowError(
            f"{row.where}: the question names {shown(sorted(unknown))}, but the frame has "
            f"images of {shown(list(files))}",
            "camera_absent",
        )
    cameras = in_order(wanted or files)
    images = {camera: resolve(files[camera], row.folder, row.where) for camera in cameras}
    user = Message("user", prompt(question, cameras, row.labels))
    return Sample(
        id=id,
        messages=(user,) if answer is None else (user, Message("assistant", answer)),
        images=images,
        capability=capability,
        template=template_of(question),
        scene=scene,
        frame=frame,
        source=row.where,
        meta=meta,
    )


def capability_of(kind: str | None) -> str | None:
    """Map a question type of DriveLM or DriveBench to its capability [paper, inferred].

    Reasoning is prediction and behavior together; None for any other type, such as `robust_qas` of
    the corruption files. Case and spaces around do not count.
    """
    return _CAPABILITY.get((kind or "").strip().lower())


_CAPABILITY = {
    "perception": "perception",
    "prediction": "reasoning",
    "behavior": "reasoning",
    "behaviour": "reasoning",
    "reasoning": "reasoning",
    "planning": "planning",
    "plan": "planning",
}


def task_of(sample: Sample) -> str | None:
    """Name a question's task in the benchmark: perception, prediction, behavior or planning.

    A question type says it. Where that is missing or names a capability (Drive-KD's rows, the
    corruption files), perception and planning are their own task, and the wording decides about
    reasoning, where the template is one of the benchmark's [ours]. None where nothing decides.
    """
    said = str(sample.meta.get("question_type") or "").strip().lower()
    if said in _TASKS:
        return _TASKS[said]
    if sample.capability in ("perception", "planning"):
        return sample.capability
    kind = kind_of(sample.question)
    capabilities = {sample.capability, kind.capability if kind else None}
    if kind is None or kind.name != sample.template or capabilities != {"reasoning"}:
        return None
    return "behavior" if kind.name == "ego_behavior" else "prediction"


#: question types that name a task, as files spell them
_TASKS = {task: task for task in ("perception", "prediction", "behavior", "planning")}
_TASKS |= {"behaviour": "behavior", "plan": "planning"}


def camera_files(row: Row, key: str) -> dict[str, str]:
    """Return the mapping from camera to path under a key of a row; a RowError for anything else."""
    value = row.value.get(key)
    if not isinstance(value, Mapping) or not value:
        raise RowError(f"{row.where}: `{key}` must map cameras to image paths, got {shown(value)}")
    if wrong := [camera for camera, path in value.items() if not isinstance(path, str)]:
        raise RowError(
            f"{row.where}: `{key}` must map cameras to paths, got {shown(value[wrong[0]])} for "
            f"{shown(wrong[0])}"
        )
    refuse_too_many(len(value), row.where)
    return dict(value)
