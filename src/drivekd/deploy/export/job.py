"""Requests for an export, complete and checked before any weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from drivekd.deploy.export.adapter import SETTINGS, tensors
from drivekd.deploy.export.layouts import refuse_unlike
from drivekd.deploy.export.quantise import Scheme, refuse_unready
from drivekd.models import vlm as vlms
from drivekd.models.offload import refuse_absent

Layout = Literal["hf", "internvl-chat"]
Dtype = Literal["bfloat16", "float32", "float16"]
#: of an exported folder, what was exported and how; only a folder that has it is replaced
NOTE = "export.json"


@dataclass(frozen=True, slots=True)
class Job:
    """One export."""

    model: str  # folder, hub id or `world:NAME`
    out: Path  # the folder to be written, from the root
    format: Layout  # its layout
    scheme: Scheme | None  # how the decoder is rounded, None for not at all
    own: torch.dtype  # type of the source's weights
    dtype: torch.dtype  # type of the export's
    adapter: Path | None  # what is added to the weights
    device: str  # where it runs

    @property
    def exact(self) -> bool:
        """Whether the export computes what its source computes, to the bit."""
        return self.scheme is None and self.dtype == self.own


def job(
    model: str | Path,
    out: Path,
    format: str,
    scheme: Scheme | None,
    dtype: str | None,
    adapter: Path | None,
    device: str,
) -> Job:
    """Check a request; ValueError: it cannot be met."""
    if format not in get_args(Layout):
        raise ValueError(f"format {format!r} is unknown; expected one of {_listed(Layout)}")
    if dtype is not None and dtype not in get_args(Dtype):
        raise ValueError(f"dtype {dtype!r} is unknown; expected one of {_listed(Dtype)}")
    if scheme is not None:
        refuse_unready(scheme)
        if format != "hf":
            raise ValueError(
                f"quantise {scheme} is for --format hf only: the code of {format} has no such "
                "weights; export one or the other"
            )
    refuse_absent(device)
    place = out.resolve()
    _refuse_place(place, vlms.locate(model), adapter)
    if adapter is not None:
        tensors(adapter)
    config = _config(str(model), format)
    _refuse_unreadable(vlms.locate(model))
    own = _own_dtype(config, str(model))
    wanted = own if dtype is None else getattr(torch, dtype)
    return Job(str(model), place, format, scheme, own, wanted, adapter, device)  # type: ignore[arg-type]


def _listed(names: Any) -> str:
    return ", ".join(get_args(names))


def _refuse_place(out: Path, model: str, adapter: Path | None) -> None:
    """Refuse a folder whose writing would cost something that is there."""
    source = Path(model).resolve()
    if source.is_dir():
        if (source / SETTINGS).is_file() and not (source / "config.json").is_file():
            raise ValueError(
                f"model {model!r} is an adapter alone; name the model that it was trained on, and "
                f"add --adapter {model}"
            )
        if adapter is not None and adapter.resolve().is_relative_to(source):
            raise ValueError(
                f"adapter {adapter} lies in model {model!r}, whose weights are the sum already: "
                "leave --adapter out, or name the model that the run started from"
            )
    for kind, folder in (("model", source), ("adapter", adapter and adapter.resolve())):
        if folder is not None and folder.is_dir() and _nested(out, folder):
            raise ValueError(
                f"--out {out} and the {kind} {folder} lie one within the other: choose a folder "
                "beside it"
            )
    if out.is_file():
        raise ValueError(f"--out {out} is a file, and a folder is needed: choose another name")
    replaceable = all((out / name).is_file() for name in (NOTE, "config.json"))
    if out.is_dir() and any(out.iterdir()) and not replaceable:
        raise ValueError(
            f"--out {out} is not empty and no earlier export (it lacks {NOTE} or config.json): "
            "choose a new folder, or empty this one"
        )


def _nested(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _config(model: str, format: str) -> Any:
    config = vlms.config_of(model)
    if getattr(config, "quantization_config", None):
        raise ValueError(
            f"model {model!r} is quantised already: name the model that it was made from"
        )
    if format == "internvl-chat":
        refuse_unlike(config, model)
    return config


def _refuse_unreadable(model: str) -> None:
    """Refuse a folder that cannot turn text and pictures into the model's input."""
    folder = Path(model)
    if not folder.is_dir():  # of the hub: transformers says what it lacks
        return
    processor = folder / "processor_config.json"  # newer files hold the image processor too
    seen = (folder / "preprocessor_config.json").is_file() or (
        processor.is_file() and '"image_processor"' in processor.read_text(encoding="utf-8")
    )
    read = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    missing = ["preprocessor_config.json"] * (not seen) + ["tokenizer.json"] * (not read)
    if missing:
        raise ValueError(
            f"model {model!r} has no {' and no '.join(missing)}, so nothing can read its input; "
            "copy the processor and tokenizer files of the model that it was trained from"
        )


def _own_dtype(config: Any, model: str) -> torch.dtype:
    """Read the type that a configuration gives for its weights."""
    named = str(getattr(config, "dtype", None)).removeprefix("torch.")
    if named not in get_args(Dtype):
        raise ValueError(
            f"model {model!r}: its config.json gives {named} as the type of its weights; expected "
            f"one of {_listed(Dtype)}: write the right one under dtype"
        )
    dtype = getattr(torch, named)
    assert isinstance(dtype, torch.dtype)
    return dtype
