"""How many samples a second become token ids, with Qwen's tokenizer and chat template.

Samples are six-camera questions with object tags, each frame with several, as in DriveLM. The
last line is a JSON object; results/encode.json keeps it. One at a time is the plain twin: the
same tokens, bit for bit.

    python benchmarks/encode.py TOKENIZER.json --samples 50000
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from provenance import write_result
from transformers import PreTrainedTokenizerFast

from drivekd.data.sample import CAMERAS, Message, Sample
from drivekd.models import tiny
from drivekd.models.encode import encode, encode_all
from drivekd.models.vlm import FAMILIES, Vlm

QUESTIONS_PER_FRAME = 10
"""About as many as DriveLM has for the losses of one frame."""

ONE_BY_ONE = 500
"""Samples that the plain twin encodes."""

WORDS = (
    "What is the moving status of object {tag}?",
    "Based on the observations of {tag}, what are possible actions of {tag}, and for what reason?",
    "In this scenario, what are safe actions to take for the ego vehicle?",
    "Would {tag} be in the moving direction of the ego vehicle?",
    "What object should the ego vehicle notice first when getting to the next possible location?",
)
ANSWERS = (
    "Going ahead.",
    "The action is to keep going at the same speed. The reason is that {tag} is far away.",
    "Yes.",
    "Firstly, notice {tag}, so the ego vehicle should slow down and go ahead carefully.",
)


def samples_of(count: int, folder: Path, seed: int = 0) -> list[Sample]:
    """Draw questions; all frames show the same six files, whose sizes are what is read of them."""
    draw = np.random.default_rng(seed)
    images = {}
    for camera in CAMERAS:
        images[camera] = folder / f"{camera}.jpg"
        Image.new("RGB", (1600, 900)).save(images[camera])
    shown = "".join(f"{camera}: <image>\n" for camera in CAMERAS)
    made = []
    for number in range(count):
        x, y = draw.uniform(0, (1600, 900))
        tag = f"<c{draw.integers(1, 9)},{CAMERAS[draw.integers(6)]},{x:.1f},{y:.1f}>"
        asked = WORDS[draw.integers(len(WORDS))].format(tag=tag)
        said = ANSWERS[draw.integers(len(ANSWERS))].format(tag=tag)
        turns = (Message("user", shown + asked), Message("assistant", said))
        frame = f"frame{number // QUESTIONS_PER_FRAME}"
        made.append(Sample(f"s{number}", turns, dict(images), frame=frame, source="drawn"))
    return made


def with_tokenizer(path: Path) -> Vlm:
    """Make a tiny model of the family with a published tokenizer and the family's template."""
    words = PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token="<|im_end|>")
    family = FAMILIES["qwen2_5_vl"]
    words.add_special_tokens(
        {"additional_special_tokens": [family.image_start, family.image_token, family.image_end]}
    )
    words.chat_template = tiny.tiny_vlm("qwen2_5_vl").tokenizer.chat_template
    words.pad_token = "<|endoftext|>"
    return tiny.tiny_vlm("qwen2_5_vl", tokenizer=words)


def run(tokenizer: Path, count: int) -> dict[str, Any]:
    """Measure both ways and compare their tokens."""
    torch.set_num_threads(1)
    vlm = with_tokenizer(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        samples = samples_of(count, Path(folder))
        began, cpu = time.perf_counter(), time.process_time()
        encoded = list(encode_all(vlm, samples))
        seconds, busy = time.perf_counter() - began, time.process_time() - cpu
        few = samples[:ONE_BY_ONE]
        began = time.perf_counter()
        plain = [encode(vlm, sample) for sample in few]
        alone = time.perf_counter() - began
    same = all(
        torch.equal(one.input_ids, other.input_ids) and torch.equal(one.labels, other.labels)
        for one, other in zip(plain, encoded, strict=False)
    )
    return {
        "samples": count,
        "tokens_per_sample": round(sum(len(e.input_ids) for e in encoded) / count, 1),
        "seconds": round(seconds, 2),
        "processor_seconds": round(busy, 2),
        "samples_per_second": round(count / seconds),
        "samples_per_processor_second": round(count / busy),
        "one_by_one_per_second": round(len(few) / alone),
        "same_tokens": same,
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--no-result", action="store_true", help="print only")
    asked = parser.parse_args()
    found = run(asked.tokenizer, asked.samples)
    if not asked.no_result:
        write_result("encode", found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
