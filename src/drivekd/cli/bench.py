"""`drivekd bench`: how fast a model answers, and what it takes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

BENCH = "Example: drivekd bench --model world:student_base --cameras 6"

_Model = Annotated[
    str | None, typer.Option(help="Folder, hub id or world:NAME; its name at a server.")
]
_ConfigOnly = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="A published model instead, with random weights."),
]
_Engine = Annotated[
    Literal["sdpa", "compiled", "server"],
    typer.Option(help="Plain transformers; static cache and torch.compile; or a server."),
]
_Url = Annotated[str | None, typer.Option(help="Of the server, such as http://127.0.0.1:8000/v1.")]
_KeyEnv = Annotated[str | None, typer.Option(help="Environment variable with the server's key.")]
_Cameras = Annotated[
    list[int] | None,
    typer.Option(min=1, max=6, help="Pictures of a request; may be repeated. Default 1 and 6."),
]
_Batch = Annotated[
    list[int] | None,
    typer.Option(min=1, help="Requests side by side; may be repeated. Default 1."),
]
_Budget = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="Repeat nothing that took so long already."),
]
_Stream = Annotated[
    float | None, typer.Option(metavar="HZ", help="Instead, answer frames of a world as they come.")
]


def bench(
    model: _Model = None,
    config_only: _ConfigOnly = None,
    engine: _Engine = "sdpa",
    url: _Url = None,
    key_env: _KeyEnv = None,
    cameras: _Cameras = None,
    batch: _Batch = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer.")] = 32,
    warmup: Annotated[int, typer.Option(min=0, help="Batches that do not count.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Batches that count, at most.")] = 5,
    budget: _Budget = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Of the weights.")
    ] = "float32",
    device: Annotated[str, typer.Option(help="Where the model runs, for example cuda.")] = "cpu",
    scores: Annotated[
        Path | None, typer.Option(help="scores.json of drivekd evaluate: quality beside speed.")
    ] = None,
    stream: _Stream = None,
    world: Annotated[
        Path | None, typer.Option(help="Folder of that world; made where it is missing.")
    ] = None,
) -> None:
    """Measure time to the first token, time per token and memory; the last line is JSON."""
    given = dict(locals())  # the options by name, as `Asked` calls them
    from drivekd.deploy.bench import bench as benches
    from drivekd.deploy.bench.asked import Asked
    from drivekd.deploy.bench.live import told
    from drivekd.world.make import make

    if world is not None and stream is None:
        raise ValueError("--world is of --stream: give that, too")
    if stream is not None and (scores or cameras or batch):
        raise ValueError("--stream takes no --scores, --cameras or --batch: leave them out")
    given |= {"cameras": tuple(cameras or (1, 6)), "batch": tuple(batch or (1,))}
    asked = Asked(**{k: v for k, v in given.items() if k not in ("stream", "world")})
    if stream is not None:
        content = benches.live(asked, stream, partial(make, split="demo"), world)
        typer.echo(told(content["stream"]))
    else:
        content = benches.bench(asked)
        typer.echo(benches.table(content))
    typer.echo(json.dumps(content))
