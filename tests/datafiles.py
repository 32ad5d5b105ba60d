"""Data files for tests: rows of every format, pictures, and how they are written."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from drivekd.data.sample import CAMERAS


def write(path: Path, value: Any) -> Path:
    """Rows as JSONL or a list, or any other value as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in value))
    else:
        path.write_text(json.dumps(value))
    return path


def picture(path: Path, seed: int) -> Path:
    """A picture of smooth random colours, 320×180 px."""
    coarse = np.random.default_rng(seed).integers(0, 255, (18, 32, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((320, 180), Image.Resampling.BICUBIC).save(path, quality=90)
    return path


def bomb(path: Path) -> Path:
    """The beginning of a PNG picture that says it is 20,000×20,000 px large."""
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", b""), (b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in chunks
        )
    )
    return path


def row(question: str = "<image>Where?", answer: str | None = "There.", **more: Any) -> Any:
    """A Drive-KD row about one picture, a.jpg."""
    turns = [{"role": "user", "content": question}]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    return {"messages": turns, "images": ["a.jpg"], "question_type": "perception"} | more


def six(question: str, answer: str = "Yes.", order: tuple[str, ...] = CAMERAS, **more: Any) -> Any:
    """A Drive-KD row about six cameras, samples/CAM_…/x__CAM_…__1.jpg."""
    images = [f"samples/{camera}/x__{camera}__1.jpg" for camera in order]
    return row("<image>" * len(order) + question, answer, images=images, **more)


def scenes(
    question: str, kind: str = "prediction", answer: str = "Yes.", scene: str = "s1", **pair: Any
) -> dict[str, Any]:
    """DriveLM's nested form with one question."""
    paths = {c: f"../nuscenes/samples/{c}/x__{c}__1.jpg" for c in reversed(CAMERAS)}
    frame = {"image_paths": paths, "QA": {kind: [{"Q": question, "A": answer, **pair}]}}
    return {scene: {"key_frames": {f"{scene}f1": frame}}}


def bench(question: str, kind: str = "perception", tag: int | None = 0, **more: Any) -> Any:
    """A DriveBench row."""
    path = {c: f"data/nuscenes/samples/{c}/x__{c}__1.jpg" for c in CAMERAS}
    return {
        "scene_token": "s1",
        "frame_token": "f1",
        "question_type": kind,
        "question": question,
        "answer": "A",
        "tag": None if tag is None else [tag],
        "image_path": path,
    } | more
