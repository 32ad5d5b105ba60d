"""The verbs of `drivekd data`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from drivekd.cli.options import PLAIN, DataFile, Format, Root, Workers

data_app = typer.Typer(help="Look at data files, check, convert and corrupt them.", **PLAIN)


@data_app.command("info", epilog="Example: drivekd data info train.json --json")
def data_info(
    path: DataFile,
    format: Format = "auto",
    root: Root = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
    sheet: Annotated[
        Path | None, typer.Option(help="Also draw samples into this PNG, of 12 kinds at most.")
    ] = None,
) -> None:
    """Count the samples of a data file by capability, template, images and length."""
    from drivekd.data.formats.readers import open_data
    from drivekd.data.formats.rows import line_count
    from drivekd.data.info import count, describe

    if sheet is not None:
        from drivekd.report.sheet import contact_sheet, refuse_other_files

        refuse_other_files(sheet)
    opened = open_data(path, format, root=root)
    counts = {"format": opened.format, **count(opened.samples(), line_count(path))}
    if sheet is not None:
        contact_sheet(open_data(path, opened.format, root=root).samples(), sheet)
    typer.echo(json.dumps(counts, indent=1) if as_json else describe(counts))


@data_app.command(
    "corrupt", epilog="Example: drivekd data corrupt val.json out/fog --name Fog --severity 3"
)
def data_corrupt(
    path: DataFile,
    out: Annotated[Path, typer.Argument(help="New folder for the pictures and the questions.")],
    name: Annotated[str, typer.Option(help="A corruption, or all; see docs/data.md.")],
    severity: Annotated[
        int | None, typer.Option(min=1, max=5, help="By default the one that DriveBench uses.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal pictures.")] = 0,
    root: Root = None,
    workers: Workers = None,
) -> None:
    """Write the pictures of a data file corrupted, and the same questions about them.

    An interrupted run goes on where it stopped.
    """
    from drivekd.data.corrupt.run import corrupt_data

    for questions in corrupt_data(path, out, name, severity, seed, root=root, workers=workers):
        typer.echo(questions)


@data_app.command(
    "convert", epilog="Example: drivekd data convert train.json train.jsonl --to jsonl"
)
def data_convert(
    path: DataFile,
    out: Annotated[Path, typer.Argument(help="A new file: .jsonl for lines, else one list.")],
    to: Annotated[
        Literal["drivekd", "sharegpt", "jsonl"], typer.Option(help="jsonl holds everything.")
    ],
    format: Format = "auto",
    root: Root = None,
    labels: Annotated[
        bool, typer.Option(help="Name the camera of each image in prompts that have no <image>.")
    ] = True,
    tags: Annotated[
        Literal["pixel", "fraction"] | None, typer.Option(help="Write object tags in this unit.")
    ] = None,
) -> None:
    """Write a data file in another format, and say what that format could not hold."""
    from drivekd.data.convert import convert, describe

    result = convert(path, out, to, format=format, root=root, labels=labels, tags=tags)
    typer.echo(describe(result))


@data_app.command(
    "check", epilog="Example: drivekd data check train.json --test test.json --out out/check"
)
def data_check(
    path: DataFile,
    test: Annotated[
        Path | None, typer.Option(help="A test file that training must not have seen.")
    ] = None,
    format: Format = "auto",
    root: Root = None,
    fix: Annotated[
        Path | None,
        typer.Option(help="Write a copy without failing rows here, and their list."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for check.json and check.html.")
    ] = None,
) -> None:
    """Look for faults and leaks in a data file. Exit code 1 if there are errors."""
    from drivekd.data.check.run import check, make_room, table
    from drivekd.files.writing import write_json

    if out is not None:
        make_room(out, (path, test, fix))
    report = check(path, test, format=format, root=root, fix=fix)
    typer.echo(table(report))
    if out is not None:
        from drivekd.report.html import write_check_page

        write_json(out / "check.json", report)
        typer.echo(out / "check.json")
        typer.echo(write_check_page(report, out / "check.html"))
    if report["errors"]:
        raise typer.Exit(1)
