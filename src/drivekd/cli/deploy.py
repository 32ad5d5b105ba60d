"""The verbs that put a model to use: `drivekd bench`, `drivekd export` and `drivekd serve`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from drivekd.cli.options import Device, Dtype, Model, Out

BENCH = "Example: drivekd bench --model world:student_base --cameras 6"
EXPORT = "Example: drivekd export --model out/try/final --out out/try-nf4 --quantise nf4"
SERVE = "Example: drivekd serve --model out/try/final --served-name driver --key-env SERVE_KEY"

_AnyModel = Annotated[
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
_Scores = Annotated[
    Path | None, typer.Option(help="scores.json of drivekd evaluate: quality beside speed.")
]
_Stream = Annotated[
    float | None, typer.Option(metavar="HZ", help="Instead, answer frames of a world as they come.")
]
_World = Annotated[
    Path | None, typer.Option(help="Folder of that world; made where it is missing.")
]


def bench(
    model: _AnyModel = None,
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
    dtype: Dtype = "float32",
    device: Device = "cpu",
    scores: _Scores = None,
    stream: _Stream = None,
    world: _World = None,
) -> None:
    """Measure time to the first token, time per token and memory; the last line is JSON."""
    given = dict(locals())  # the options by name, as `Settings` calls them
    from drivekd.deploy.bench import bench as benches
    from drivekd.deploy.bench.live import describe
    from drivekd.deploy.bench.opening import Settings
    from drivekd.world.make import make

    if world is not None and stream is None:
        raise ValueError("--world is of --stream: give that, too")
    if stream is not None and (scores or cameras or batch):
        raise ValueError("--stream takes no --scores, --cameras or --batch: leave them out")
    given |= {"cameras": tuple(cameras or (1, 6)), "batch": tuple(batch or (1,))}
    settings = Settings(**{k: v for k, v in given.items() if k not in ("stream", "world")})
    if stream is not None:
        content = benches.live(settings, stream, partial(make, split="demo"), world)
        typer.echo(describe(content["stream"]))
    else:
        content = benches.bench(settings)
        typer.echo(benches.table(content))
    typer.echo(json.dumps(content))


def export(
    model: Model,
    out: Out,
    format: Annotated[
        Literal["hf", "internvl-chat"],
        typer.Option(help="Layout: transformers' own, or that of InternVL's code on the hub."),
    ] = "hf",
    quantise: Annotated[
        Literal["int8", "nf4"] | None,
        typer.Option(help="Round the decoder's linear layers, by bitsandbytes."),
    ] = None,
    dtype: Annotated[
        Literal["bfloat16", "float32", "float16"] | None,
        typer.Option(help="Of the other weights; by default that of the model."),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="Folder of peft's, added to the weights first.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where it is checked, for example cuda.")] = "cpu",
    verify: Annotated[
        bool, typer.Option(help="Read the folder back, and compare bits and greedy answers.")
    ] = True,
) -> None:
    """Write a model as a folder for plain transformers or a server, and check it.

    A lossless export must answer as the model does; of a rounded one the equal answers are counted.
    """
    options = dict(locals())
    from drivekd.deploy.export.export import export as run
    from drivekd.deploy.export.export import summary

    facts = run(options.pop("model"), options.pop("out"), **options)
    typer.echo(f"{summary(facts)}\n{out}")


def serve(
    model: Model,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default is for this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Variable with the key that clients must send."),
    ] = None,
    served_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What clients call it; by default MODEL.")
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="More that wait; then come 429 and Retry-After.")
    ] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    max_context: Annotated[
        int, typer.Option(min=1, help="Longest conversation with its answer [tokens].")
    ] = 8192,
    max_body_mb: Annotated[int, typer.Option(min=1, help="Largest request [MB].")] = 32,
    max_images: Annotated[int, typer.Option(min=1, help="Pictures of a request.")] = 16,
    max_image_pixels: Annotated[
        int, typer.Option(min=1, help="Largest picture, width times height [px].")
    ] = 1 << 24,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Answer chat requests in OpenAI's protocol: a small server for machines without vLLM.

    Waiting requests run together; those that come later wait for the end of the batch. Production
    traffic belongs on vLLM or SGLang, with the exported folder:
    `vllm serve FOLDER` or `python -m sglang.launch_server --model-path FOLDER`.
    """
    options = dict(locals())
    from drivekd.deploy.serving.limits import Limits
    from drivekd.deploy.serving.serve import serve as run

    limits = Limits(**{name: options.pop(name) for name in list(options) if name[:4] == "max_"})
    run(options.pop("model"), limits, **options)
