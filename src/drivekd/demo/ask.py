"""One question about some pictures: the answer, and on request a picture of where the model looked.

from drivekd.demo.ask import ask
print(ask("world:teacher_planning", {"CAM_FRONT": "a.png"}, "What should the ego vehicle do?"))
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from drivekd.data.pictures import read_image
from drivekd.data.sample import CAMERAS, IMAGE_PLACEHOLDER, Message, Sample
from drivekd.data.tags import Tag, read_tags
from drivekd.demo.looking import Rows, View, look
from drivekd.files.writing import writing
from drivekd.models.features import FeatureCache
from drivekd.models.generate import generate
from drivekd.models.vlm import Vlm, load
from drivekd.report.figures import attention_strip

_CELLS = 4  # a camera's side in region tokens
_UNPOINTED = re.compile(r"(<\s*[A-Za-z]+\d*\s*,[^<>]*>)(?!\s*<r\d+>)")


def pictures(texts: Sequence[str]) -> dict[str, Path]:
    """Pictures by camera from `CAMERA=FILE` or `FILE` each, as the command line gives them.

    Raises:
        ValueError: a camera was given twice.
    """
    found: dict[str, Path] = {}
    for number, text in enumerate(texts):
        camera, separator, file = text.partition("=")
        name, file = (camera, file) if separator else (f"image_{number}", text)
        if name in found:
            raise ValueError(f"--image {name} was given twice: name each camera once")
        found[name] = Path(file)
    return found


def ask(
    model: Vlm | str | Path,
    images: Mapping[str, str | Path],
    question: str,
    attention: Path | None = None,
    *,
    layer: str | int = "penultimate",
    rows: Rows = "answer",
    max_new_tokens: int = 64,
    device: str = "cpu",
) -> str:
    """Answers a question about the pictures of some cameras.

    Args:
        model: a loaded model, or what `load` takes (a folder, a hub id, `world:NAME`).
        images: camera name to picture; the prompt names them in the fixed camera order.
        question: what to ask. Objects may be named by tags `<c1,CAM_FRONT,0.4700,0.6800>`, x and
            y as fractions of the picture from the upper left.
        attention: where to draw the attention on each picture (PNG).
        layer: the layer drawn: a number counted from 1, `first`, `penultimate`, `last`.
        rows: whose attention: of the position that predicts the answer's first token, or the
            mean over the question's tokens.
        max_new_tokens: longest answer [tokens].
        device: where a model that is loaded here runs.

    Returns:
        The answer as the model wrote it.

    Raises:
        ValueError: no pictures, an unknown camera, a file that is not there, an empty question,
            or a picture format that cannot be written.
    """
    if attention is not None and attention.suffix.lower() != ".png":
        raise ValueError(f"attention {attention}: expected a file name ending in .png")
    sample = _sample(images, question)
    vlm = (
        model if isinstance(model, Vlm) else load(model, device=device, answering=attention is None)
    )
    sample = _pointed(vlm, sample)
    features = FeatureCache()
    reply = generate(vlm, [sample], max_new_tokens=max_new_tokens, features=features)[0].strip()
    if attention is not None:
        seen = look(vlm, sample, View(layer, rows), features=features)
        pictures = {camera: read_image(path) for camera, path in sample.images.items()}
        whose = "the answer's first position" if rows == "answer" else "the question, mean"
        note = f"attention of {whose}, layer {seen.layer} of {seen.layers}"
        title = _title(sample, reply)
        with writing(attention):
            attention_strip(pictures, seen.maps, title=title, note=note).save(attention)
    return reply


def _sample(images: Mapping[str, str | Path], question: str) -> Sample:
    """The question as every question of the world is put: labelled pictures, then the text."""
    if not images:
        raise ValueError(
            "ask: no pictures; give at least one, for example CAM_FRONT=front.png (cameras:"
            f" {', '.join(CAMERAS)})"
        )
    if not question.strip():
        raise ValueError("ask: the question is empty; write what you want to know")
    if IMAGE_PLACEHOLDER in question:
        raise ValueError(
            f"ask: the question contains {IMAGE_PLACEHOLDER}, which stands for a picture and is put"
            " there by itself; leave it out"
        )
    unknown = [name for name in images if name not in CAMERAS and _meant(name)]
    if unknown:
        raise ValueError(
            f"ask: unknown camera {unknown[0]!r}; expected one of {', '.join(CAMERAS)}"
        )
    missing = [(name, path) for name, path in images.items() if not Path(path).is_file()]
    if missing:
        raise ValueError(f"ask: picture of {missing[0][0]}: no file {missing[0][1]}")
    known = [camera for camera in CAMERAS if camera in images]
    order = known + [name for name in images if name not in CAMERAS]
    labels = "".join(_line(name) for name in order)
    return Sample(
        id="question",
        messages=(Message("user", labels + question.strip()),),
        images={name: Path(images[name]) for name in order},
        source="ask",
    )


def _meant(name: str) -> bool:
    """Whether a name looks like that of a nuScenes camera, `CAM_REAR` or `front`."""
    return name.upper().startswith("CAM_") or f"CAM_{name.upper()}" in CAMERAS


def _line(name: str) -> str:
    unnamed = re.fullmatch(r"image_\d+", name)
    return f"{IMAGE_PLACEHOLDER}\n" if unnamed else f"{name}: {IMAGE_PLACEHOLDER}\n"


def _pointed(vlm: Vlm, sample: Sample) -> Sample:
    """Puts the region token behind each tag where the model has region tokens and it is missing."""
    if "<r0>" not in vlm.tokenizer.get_vocab():
        return sample
    content = _UNPOINTED.sub(
        lambda match: match.group(0) + _region(read_tags(match.group(0))),
        sample.messages[0].content,
    )
    return Sample(sample.id, (Message("user", content),), sample.images, source=sample.source)


def _region(tags: list[Tag]) -> str:
    """`<rK>`, K = 16·camera + 4·row + column; nothing for a tag that is not in fractions."""
    if not tags or tags[0].camera not in CAMERAS:
        return ""
    x, y = tags[0].x, tags[0].y
    if not (0 <= x <= 1 and 0 <= y <= 1):
        return ""
    row, column = min(int(y * _CELLS), _CELLS - 1), min(int(x * _CELLS), _CELLS - 1)
    return f"<r{_CELLS * _CELLS * CAMERAS.index(tags[0].camera) + _CELLS * row + column}>"


def _title(sample: Sample, reply: str) -> str:
    return f"{re.sub(r'<r[0-9]+>', '', sample.question)}  →  {reply}"
