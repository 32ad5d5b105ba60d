"""What is to be measured, checked before anything is loaded, and the engine for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from drivekd.deploy.bench import cost, machine, random_weights
from drivekd.deploy.bench.cost import Load
from drivekd.deploy.bench.engine import Engine, local, refuse_uncompilable
from drivekd.deploy.bench.server import server
from drivekd.models import published
from drivekd.models import vlm as vlms
from drivekd.models.offload import refuse_absent
from drivekd.models.vlm import Vlm

ENGINES = ("sdpa", "compiled", "server")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: most visual tokens of a picture, tokens of a camera's name and of a question, at most [ours]
_MOST_VISUAL, _LABEL, _TEXT = 256, 32, 200
#: without these a model cannot be fed
_NEEDED = ("config.json", "tokenizer_config.json", "preprocessor_config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is to be measured.

    Attributes:
        model: folder, hub id or `world:NAME`; with the engine `server` the name it has there.
        config_only: instead, a published model that is built with random weights.
        engine: one of `ENGINES`.
        url: of the server.
        key_env: the environment variable that holds its key.
        cameras: pictures of a request, one or several numbers.
        batch: requests side by side, likewise.
        new_tokens: of every answer; a server may stop earlier.
        warmup: batches of every kind before those that count.
        repeats: batches of every kind that count, at most.
        budget: no batch is repeated once its kind took so long [s]; None: all are.
        dtype: of the weights, one of `DTYPES`.
        device: where the model runs.
        scores: `scores.json` of `drivekd evaluate`, to show quality beside speed.
    """

    model: str | None = None
    config_only: str | None = None
    engine: str = "sdpa"
    url: str | None = None
    key_env: str | None = None
    cameras: tuple[int, ...] = (1, 6)
    batch: tuple[int, ...] = (1,)
    new_tokens: int = 32
    warmup: int = 1
    repeats: int = 5
    budget: float | None = None
    dtype: str = "float32"
    device: str = "cpu"
    scores: Path | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine, ready to be asked.

    Attributes:
        engine: what answers.
        vlm: the model, where it runs here.
        load_s: how long it took to load or build [s].
    """

    engine: Engine
    vlm: Vlm | None
    load_s: float | None


def check(settings: Settings) -> None:
    """Refuse options that make no sense.

    Raises:
        ValueError: one of them, or two together.
    """
    if (settings.model is None) == (settings.config_only is None):
        raise ValueError("bench: give either a model or the name of a configuration (config_only)")
    for name, value, known in (
        ("engine", settings.engine, ENGINES),
        ("dtype", settings.dtype, tuple(DTYPES)),
    ):
        if value not in known:
            raise ValueError(f"{name} {value!r} is unknown; expected one of {', '.join(known)}")
    if (settings.engine == "server") != (settings.url is not None):
        raise ValueError("bench: the engine server needs a url, and no other engine takes one")
    if settings.engine == "server" and settings.model is None:
        raise ValueError("bench: the engine server needs a model: its name at the server")
    counts = [(name, getattr(settings, name)) for name in ("new_tokens", "repeats")]
    counts += [("batch", batch) for batch in settings.batch]
    for name, count in counts:
        if count < 1:
            raise ValueError(f"bench: {name} is {count}, expected at least 1")
    refuse_absent(settings.device)
    if settings.engine == "compiled":
        refuse_uncompilable(torch.device(settings.device))


@contextmanager
def opened(settings: Settings, *, to_the_end: bool = False) -> Iterator[Opened]:
    """Open the engine of the settings, if its largest request fits into memory.

    Raises:
        ValueError: as `bench`.
    """
    if settings.engine == "server":
        assert settings.url is not None
        assert settings.model is not None
        with server(settings.url, settings.model, settings.key_env) as engine:
            yield Opened(engine, None, None)
        return
    started, dtype = time.perf_counter(), DTYPES[settings.dtype]
    fits = partial(
        refuse_too_large,
        cameras=max(settings.cameras),
        batch=max(settings.batch),
        new_tokens=settings.new_tokens,
        device=settings.device,
        dtype=dtype,
    )
    if settings.config_only is not None:
        bare = random_weights.shell(settings.config_only)
        fits(bare)
        vlm = random_weights.filled(bare, settings.device, dtype)
    else:
        vlm = open_model(str(settings.model), settings.device, dtype, fits)
    seconds = time.perf_counter() - started
    engine = local(vlm, compiled=settings.engine == "compiled", to_the_end=to_the_end)
    yield Opened(engine, vlm, seconds)


def open_model(
    source: str, device: str, dtype: torch.dtype, fits: Callable[[Vlm], None] | None = None
) -> Vlm:
    """Load a model for answering, if all its files are there and `fits` does not refuse its shapes.

    Raises:
        ValueError: a file is missing, the model cannot be read, or it does not fit.
    """
    folder = Path(vlms.locate(source))
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if folder.is_dir() and missing:
        raise ValueError(
            f"model {source!r} has no {' and no '.join(missing)}; expected a whole model folder, "
            "with tokenizer and image processor: copy these files from the model it was made from"
        )
    refuse_absent(device)
    if fits is not None:
        fits(published.skeleton(vlms.config_of(source), source))
    return vlms.load(source, device=device, dtype=dtype)


def refuse_too_large(
    vlm: Vlm, *, cameras: int, batch: int, new_tokens: int, device: str, dtype: torch.dtype
) -> None:
    """Compare what the largest request takes (see `cost.memory`) with what is free.

    Raises:
        ValueError: it is more.
    """
    config = vlm.model.config
    visual = int(config.image_seq_length) if vlm.family.one_size else _MOST_VISUAL
    load = Load([(visual, 1)] * cameras, cameras * (visual + _LABEL) + _TEXT, new_tokens, batch)
    need, free = cost.memory(vlm, load, dtype.itemsize), machine.free_memory(device)
    if need.total <= free:
        return
    names = ("weights", "cache", "activations")
    parts = ", ".join(f"{name} {getattr(need, name) / 1e9:.1f}" for name in names)
    raise ValueError(
        f"model {vlm.source!r} needs about {need.total / 1e9:.1f} GB in {str(dtype)[6:]} ({parts}) "
        f"and {device} has {free / 1e9:.1f} GB free; choose a smaller model, bfloat16, a "
        "smaller batch or another device"
    )
