"""Options that several verbs share, and the settings of every group of verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

PLAIN: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,  # plain help needs no rich and shows in half the time
    "pretty_exceptions_enable": False,
}

Out = Annotated[Path, typer.Option("--out", help="Folder for the results.")]
Device = Annotated[str, typer.Option(help="Where the model runs, for example cuda.")]
Dtype = Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of the model's weights.")]
Model = Annotated[str, typer.Option("--model", help="Folder, hub id or world:NAME.")]
DataFile = Annotated[Path, typer.Argument(help="A JSON or JSONL file of a known format.")]
Data = Annotated[Path, typer.Option(help="A JSON or JSONL file of a known format.")]
Root = Annotated[Path | None, typer.Option("--root", help="Folder that image paths start from.")]
Format = Annotated[
    Literal["auto", "drivekd", "drivelm", "drivebench", "sharegpt"],
    typer.Option(help="Of the file; auto recognises it by the keys of its rows."),
]
MaxSamples = Annotated[int | None, typer.Option(min=1, help="Use only so many, drawn by the seed.")]
Seed = Annotated[int, typer.Option(min=0, help="Of all draws.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; by default one per core.")]
