"""Size, speed and score of a model in every format that `drivekd export` writes.

    python benchmarks/export.py

The model is the world's general teacher, of 1.5 million numbers; the questions are those of 60
validation scenes. Each format is exported, read back as plain transformers reads it, in the type it
was written in, and scored; `equal` is the share of questions that it answers exactly as float32
does. Decoding is timed for one question at a time, a fixed number of new tokens, the formats in
turn; `speed` is the median over the rounds of tokens a second, divided by those of float32 in the
same round.

Neither size nor speed at this width says much about a large model, where the decoder's linear
layers are nearly all of the weights and reading them takes most of the time: here the rest, which
no format rounds, weighs more. What cannot be written is listed under `refused`, with the reason.

Writes results/export.json, or export_quick.json where a setting is not the default; the last line
of output is one JSON object {format: {"mb", "average", "equal", "speed"}}.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

for _name, _value in (("OMP_NUM_THREADS", "1"), ("HF_HUB_OFFLINE", "1")):
    os.environ.setdefault(_name, _value)

import torch  # noqa: E402
from provenance import write_result  # noqa: E402

from drivekd.data.formats.readers import read  # noqa: E402
from drivekd.data.sample import Sample  # noqa: E402
from drivekd.deploy.export.export import export  # noqa: E402
from drivekd.deploy.export.verify import plainly_loaded  # noqa: E402
from drivekd.evaluate.answers.answer import Answer  # noqa: E402
from drivekd.evaluate.answers.asking import answers  # noqa: E402
from drivekd.evaluate.score import score  # noqa: E402
from drivekd.files.progress import track  # noqa: E402
from drivekd.models.encode import encode  # noqa: E402
from drivekd.models.images import pixels  # noqa: E402
from drivekd.models.vlm import FAMILIES, Vlm  # noqa: E402
from drivekd.world.make import make  # noqa: E402

#: what every other format is compared with
PLAIN = "float32"
#: int8 with the type that bitsandbytes computes it in, nf4 with the usual one
FORMATS: Mapping[str, Mapping[str, Any]] = {
    PLAIN: {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "int8": {"dtype": "float16", "quantise": "int8"},
    "nf4": {"dtype": "bfloat16", "quantise": "nf4"},
    "internvl-chat": {"format": "internvl-chat"},
}


@dataclass(frozen=True)
class Settings:
    """What is exported, and how much is asked."""

    model: str = "world:teacher"  # what is exported
    scenes: int = 60  # of the validation split
    rounds: int = 7  # of timing, after one that does not count
    timed: int = 4  # questions of a round
    tokens: int = 48  # new tokens of each


FULL = Settings()


def written(settings: Settings, folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Every format in a folder of its own: what the export says, and what was refused and why."""
    facts, refused = {}, {}
    for name, options in FORMATS.items():
        try:
            facts[name] = export(settings.model, folder / name, **options)
        except ValueError as error:
            refused[name] = str(error)
    return facts, refused


def scored(given: Sequence[Answer], plain: Sequence[Answer]) -> dict[str, Any]:
    """Percent right, and how often the reply is that of the plain format."""
    scores = score(given)
    assert scores.average is not None
    equal = sum(one.reply == other.reply for one, other in zip(given, plain, strict=True))
    return {
        "average": round(scores.average.accuracy, 2),
        "interval": [scores.average.low, scores.average.high],
        "capabilities": {name: round(row.accuracy, 2) for name, row in scores.capabilities.items()},
        "equal": round(100 * equal / len(given), 2),
    }


@torch.no_grad()
def rate(vlm: Vlm, samples: Sequence[Sample], tokens: int) -> float:
    """New tokens a second, pictures included, one question at a time."""
    model: Any = vlm.model
    started = time.perf_counter()
    for sample in samples:
        encoded = encode(vlm, sample, add_answer=False)
        ids = encoded.input_ids[None]
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels(vlm, encoded.images)["pixel_values"].to(model.dtype),
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            do_sample=False,
        )
    return len(samples) * tokens / (time.perf_counter() - started)


def timed(models: Mapping[str, Vlm], samples: Sequence[Sample], settings: Settings) -> Any:
    """Tokens a second of each model in each round, all models in every round."""
    rates: dict[str, list[float]] = {name: [] for name in models}
    for _ in track(range(1 + settings.rounds), label="timing"):
        for name, vlm in models.items():
            rates[name].append(rate(vlm, samples[: settings.timed], settings.tokens))
    return {name: values[1:] for name, values in rates.items()}


def run(settings: Settings = FULL) -> dict[str, Any]:
    """All that is written, scored and timed."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        samples = list(read(make(folder / "world", settings.scenes, "val")))
        facts, refused = written(settings, folder)
        family = FAMILIES["internvl"]
        models = {name: plainly_loaded(folder / name, family) for name in facts}
        replies = {}
        for name, vlm in models.items():
            print(f"{name}:", flush=True)
            replies[name] = answers(vlm, samples)
        rates = timed(models, samples, settings)
    formats = {}
    for name, said in facts.items():
        ratios = [one / other for one, other in zip(rates[name], rates[PLAIN], strict=True)]
        formats[name] = {
            "mb": said["weights_mb"]["export"],
            "quantised_layers": said["quantised_layers"],
            "check": said["check"],
            **scored(replies[name], replies[PLAIN]),
            "tokens_per_s": round(median(rates[name]), 2),
            "speed": round(median(ratios), 3),
            "speed_range": [round(min(ratios), 3), round(max(ratios), 3)],
        }
    return {
        "questions": len(samples),
        "formats": formats,
        "refused": refused,
        "settings": asdict(settings),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=FULL.scenes)
    parser.add_argument("--rounds", type=int, default=FULL.rounds)
    given = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()
    settings = Settings(scenes=given.scenes, rounds=given.rounds)
    content = run(settings)
    content["load_average"] = {"before": load, "after": os.getloadavg()}
    print(write_result("export" if settings == FULL else "export_quick", content))
    for name, reason in content["refused"].items():
        print(f"{name} was refused: {reason}")
    kept = ("mb", "average", "equal", "speed")
    print(json.dumps({n: {k: e[k] for k in kept} for n, e in content["formats"].items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
