"""Export: a trained model as a folder for plain transformers or a server, checked before it counts.

from drivekd.deploy.export.export import export
export("out/try/final", Path("out/try-nf4"), quantise="nf4", dtype="bfloat16")
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from drivekd import __version__
from drivekd.data.sample import Sample
from drivekd.deploy.export import card
from drivekd.deploy.export.adapter import merge
from drivekd.deploy.export.job import NOTE, Dtype, Job, Layout, job
from drivekd.deploy.export.layouts import chat_config, from_chat, same, to_chat
from drivekd.deploy.export.quantise import Scheme, kept, quantised, rounded_layers, untouched
from drivekd.deploy.export.verify import agreement, plainly_loaded, questions, replies
from drivekd.files.writing import atomic_folder, write_json
from drivekd.models import vlm as vlms
from drivekd.models.vlm import Vlm

_SHARD = "5GB"  # the largest file of weights
_AS_IN_FILE = 2**31  # no cap on visual tokens but the one in the folder itself


def export(
    model: str | Path,
    out: Path,
    *,
    format: Layout = "hf",
    quantise: Scheme | None = None,
    dtype: Dtype | None = None,
    adapter: Path | None = None,
    device: str = "cpu",
    verify: bool = True,
) -> dict[str, Any]:
    """Write a model, and all that reads its input, into a folder: as a whole or not at all.

    `out` is a new or empty folder, or one of an earlier export, which is replaced; `format` the
    layout of transformers or of InternVL's code on the hub (layouts.py). Quantising rounds the
    decoder's linear layers to 8 or 4 bits; `dtype`, by default the source's, is that of the other
    weights; an `adapter` of peft's is added to the weights first. To `verify` is to read the folder
    back: it must hold the bits that it should, and a lossless one must answer as its source does;
    of others the equal answers are counted. `internvl-chat` is read back and renamed, not run.

    Returns:
        What the folder's `export.json` says.

    Raises:
        ValueError: a request that cannot be met, before anything is written.
        OSError: the folder cannot be written.
        RuntimeError: what was written is not what was exported; nothing is left of it.
    """
    request = job(model, out, format, quantise, dtype, adapter, device)
    vlm = _loaded(request)
    with _writing(request.out) as draft, tempfile.TemporaryDirectory() as rest:
        samples = questions(Path(rest)) if verify and format == "hf" else []
        answers = replies(vlm, samples)
        facts = _facts(request, vlm)
        _cast(vlm, request.dtype)
        if format == "hf":
            facts |= _write_hf(request, vlm, draft)
        else:
            _write_chat(request, vlm, draft)
        facts["weights_mb"]["export"] = _megabytes(f.stat().st_size for f in _files(draft))
        if verify:
            facts["check"] = _checked(request, vlm, draft, samples, answers)
        _describe(request, facts, draft)
    return facts


def summary(facts: dict[str, Any]) -> str:
    """Say what was exported, in a few lines for people."""
    before, after = (facts["weights_mb"][side] for side in ("source", "export"))
    how = facts["quantise"] or "not quantised"
    return (
        f"{facts['format']}, {facts['dtype']}, {how}: {after:.1f} MB of weights (the source: "
        f"{facts['source_dtype']}, {before:.1f} MB)\nchecked: {card.checked(facts)}"
    )


def _loaded(job: Job) -> Vlm:
    """Load the source with its adapter, in its own type."""
    wide = job.own if job.adapter is None else torch.float32  # the sum is rounded once, at the end
    vlm = vlms.load(job.model, device=job.device, dtype=wide, max_image_tokens=_AS_IN_FILE)
    if job.adapter is not None:
        vlm = merge(vlm, job.adapter)
        _cast(vlm, job.own)
    return vlm


@torch.no_grad()
def _cast(vlm: Vlm, dtype: torch.dtype) -> None:
    """Cast weights to another type; buffers that are not saved stay exact, as in transformers.

    ValueError: a number is too large for the type, or none.
    """
    for name, parameter in vlm.model.named_parameters():
        parameter.data = parameter.data.to(dtype)
        if not torch.isfinite(parameter).all():
            raise ValueError(
                f"model {vlm.source!r}: {name} has numbers that are not finite in {dtype}: choose "
                "another --dtype, or an earlier checkpoint"
            )
    for part in (vlm.model.config, vlm.model.config.text_config, vlm.model.config.vision_config):
        part.dtype = dtype


def _facts(job: Job, vlm: Vlm) -> dict[str, Any]:
    size = _megabytes(p.numel() * p.element_size() for p in vlm.model.parameters())
    return {
        "source": job.model,
        "family": vlm.family.name,
        "adapter": None if job.adapter is None else str(job.adapter),
        "format": job.format,
        "dtype": str(job.dtype).removeprefix("torch."),
        "source_dtype": str(job.own).removeprefix("torch."),
        "quantise": job.scheme,
        "unquantised": list(kept(vlm)),
        "quantised_layers": 0,
        "weights_mb": {"source": size, "export": 0.0},
        "check": None,
        "drivekd": __version__,
        "transformers": transformers.__version__,
    }


@contextmanager
def _writing(out: Path) -> Iterator[Path]:
    """Give a place to fill, and one line where the disk is full."""
    try:
        with atomic_folder(out) as draft:
            yield draft
    except SafetensorError as error:
        free = shutil.disk_usage(next(p for p in out.parents if p.exists())).free / 2**20
        raise OSError(
            f"{out} could not be written: {error} ({free:.0f} MiB free); nothing of it is left"
        ) from error


def _write_hf(job: Job, vlm: Vlm, draft: Path) -> dict[str, Any]:
    if job.scheme is None:
        vlms.save(vlm, draft, shard_size=_SHARD)
        return {}
    plain = draft / "plain"  # bitsandbytes rounds what transformers reads from a folder
    vlms.save(vlm, plain, shard_size=_SHARD)
    rounded = quantised(vlm, plain, job.scheme, job.dtype, job.device)
    shutil.rmtree(plain)
    vlms.save(rounded, draft, shard_size=_SHARD)
    return {"quantised_layers": len(rounded_layers(rounded))}


def _write_chat(job: Job, vlm: Vlm, draft: Path) -> None:
    dtype = str(job.dtype).removeprefix("torch.")
    save_torch_state_dict(to_chat(_weights(vlm)), draft, max_shard_size=_SHARD)
    write_json(draft / "config.json", chat_config(vlm.model.config, dtype))
    generation: Any = vlm.model.generation_config
    generation.save_pretrained(draft)
    vlms.save_readers(vlm, draft)


def _weights(vlm: Vlm) -> dict[str, Tensor]:
    """Return a model's tensors by name, one of each that are tied."""
    weights = vlm.model.state_dict()
    if vlm.model.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    return weights


def _describe(job: Job, facts: dict[str, Any], draft: Path) -> None:
    source = Path(vlms.locate(job.model)) / "README.md"
    text = source.read_text(encoding="utf-8") if source.is_file() else None
    (draft / "README.md").write_text(card.text(text, facts, job.out), encoding="utf-8")
    write_json(draft / NOTE, facts)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _megabytes(sizes: Iterable[int]) -> float:
    return round(sum(sizes) / 1e6, 3)


def _checked(
    job: Job, vlm: Vlm, draft: Path, samples: Sequence[Sample], answers: Sequence[Sequence[int]]
) -> dict[str, int]:
    """Read a written folder back; RuntimeError: it is not what was exported."""
    if job.format == "internvl-chat":
        tensors = from_chat({k: v for file in _files(draft) for k, v in load_file(file).items()})
        _insist(same(_weights(vlm), tensors), job, "its tensors are not those of the model")
        return {"round_trip": len(tensors)}
    read = plainly_loaded(draft, vlm.family, job.device)
    weights = _weights(vlm)
    if job.scheme is not None:
        weights = untouched(vlm, read, weights)
    tensors = {name: value for name, value in _weights(read).items() if name in weights}
    _insist(same(weights, tensors), job, "its tensors are not those of the model")
    given = agreement(answers, replies(read, samples))
    differ = given["questions"] - given["equal"]
    what = f"{differ} of {given['questions']} greedy answers differ from the source's"
    _insist(not differ or not job.exact, job, f"{what}, although no number was changed")
    return given


def _insist(right: bool, job: Job, what: str) -> None:
    if not right:
        raise RuntimeError(
            f"export of {job.model!r} read back in plain transformers: {what}; nothing was "
            f"written to {job.out}"
        )
