"""What is to be measured, checked before anything is loaded, and the engine for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from drivekd.deploy.bench import random_weights
from drivekd.deploy.bench.engine import Engine, local, refuse_uncompilable
from drivekd.deploy.bench.opening import open_model, refuse_too_large
from drivekd.deploy.bench.server import server
from drivekd.models.offload import refuse_absent
from drivekd.models.vlm import Vlm

ENGINES = ("sdpa", "compiled", "server")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
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
        warmup: batches of each kind before those that count.
        repeats: batches of each kind that count, at most.
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


def check(asked: Asked) -> None:
    """Refuse options that make no sense.

    Raises:
        ValueError: one of them, or two together.
    """
    if (asked.model is None) == (asked.config_only is None):
        raise ValueError("bench: give either a model or the name of a configuration (config_only)")
    for name, value, known in (
        ("engine", asked.engine, ENGINES),
        ("dtype", asked.dtype, tuple(DTYPES)),
    ):
        if value not in known:
            raise ValueError(f"{name} {value!r} is unknown; expected one of {', '.join(known)}")
    if (asked.engine == "server") != (asked.url is not None):
        raise ValueError("bench: the engine server needs a url, and no other engine takes one")
    if asked.engine == "server" and asked.model is None:
        raise ValueError("bench: the engine server needs a model: its name at the server")
    counts = [(name, getattr(asked, name)) for name in ("new_tokens", "repeats")]
    counts += [("batch", each) for each in asked.batch]
    for name, count in counts:
        if count < 1:
            raise ValueError(f"bench: {name} is {count}, expected at least 1")
    refuse_absent(asked.device)
    if asked.engine == "compiled":
        refuse_uncompilable(torch.device(asked.device))


@contextmanager
def opened(asked: Asked, *, to_the_end: bool = False) -> Iterator[Opened]:
    """The engine that was asked for.

    Args:
        asked: model, engine, precision and device; the largest request must fit into memory.
        to_the_end: see `local`.

    Raises:
        ValueError: as `bench`.
    """
    if asked.engine == "server":
        assert asked.url is not None
        assert asked.model is not None
        with server(asked.url, asked.model, asked.key_env) as engine:
            yield Opened(engine, None, None)
        return
    started, dtype = time.perf_counter(), DTYPES[asked.dtype]
    fits = partial(
        refuse_too_large,
        cameras=max(asked.cameras),
        batch=max(asked.batch),
        new_tokens=asked.new_tokens,
        device=asked.device,
        dtype=dtype,
    )
    if asked.config_only is not None:
        bare = random_weights.shell(asked.config_only)
        fits(bare)
        vlm = random_weights.filled(bare, asked.device, dtype)
    else:
        vlm = open_model(str(asked.model), asked.device, dtype, fits)
    seconds = time.perf_counter() - started
    engine = local(vlm, compiled=asked.engine == "compiled", to_the_end=to_the_end)
    yield Opened(engine, vlm, seconds)
