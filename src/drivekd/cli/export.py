"""The verb `drivekd export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from drivekd.cli.data import Out

EXPORT = "Example: drivekd export --model out/try/final --out out/try-nf4 --quantise nf4"


def export(
    model: Annotated[str, typer.Option(help="Folder, hub id or world:NAME.")],
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
    from drivekd.deploy.export.export import export as run
    from drivekd.deploy.export.export import summary

    facts = run(
        model,
        out,
        format=format,
        quantise=quantise,
        dtype=dtype,
        adapter=adapter,
        device=device,
        verify=verify,
    )
    typer.echo(f"{summary(facts)}\n{out}")
