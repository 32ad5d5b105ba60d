"""The verb `drivekd prestudy`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from drivekd.cli.options import Device, Format, MaxSamples, Out, Root

PRESTUDY = "Example: drivekd prestudy --teacher world:teacher_planning --data val.jsonl --out pre"

Dtype = Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of the teacher's weights.")]
Reading = Annotated[
    Literal["usual", "token_wise", "pooled"],
    typer.Option(help="How tokens become features; see docs/prestudy.md."),
]


def prestudy(
    teacher: Annotated[str, typer.Option(help="Folder, hub id or world:NAME.")],
    data: Annotated[Path, typer.Option(help="Driving questions: JSON or JSONL, any known format.")],
    out: Out,
    student: Annotated[
        str | None, typer.Option(help="Whose depth the layers are given for.")
    ] = None,
    general: Annotated[
        Path | None, typer.Option(help="Questions that are not about driving; drawn where absent.")
    ] = None,
    format: Format = "auto",
    root: Root = None,
    max_samples: MaxSamples = None,
    candidate: Annotated[
        list[str] | None, typer.Option(help="Teacher to probe --student with; may be repeated.")
    ] = None,
    stability: Annotated[
        bool, typer.Option("--stability", help="Also measure what rewording does to attention.")
    ] = False,
    drop: Annotated[
        float | None,
        typer.Option(min=0.01, max=1.0, help="Fall of cosine that counts with --stability; 0.3."),
    ] = None,
    reading: Reading = "usual",
    seed: Annotated[int, typer.Option(min=0, help="Of draws and bands.")] = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Find which layers and which signal of a teacher to distil: four panels and a recipe."""
    from drivekd.study import capacity, tables
    from drivekd.study.prestudy import run
    from drivekd.study.stability import DROP

    if drop is not None and not stability:
        raise ValueError("--drop is the limit of --stability: give that, too")
    files: dict[str, Any] = {"format": format, "root": root}
    files |= {"max_samples": max_samples, "seed": seed}
    probes = capacity.prepare(student, candidate, data, **files) if candidate else None
    limit = (drop or DROP) if stability else None
    files |= {"student": student, "general": general, "drop": limit, "reading": reading}
    run(teacher, data, out, device=device, dtype=dtype, **files)
    _show(out, stability)
    if probes is not None:
        typer.echo(f"{tables.capacity(capacity.run(probes, out))}\n{out / 'capacity.json'}")


def _show(out: Path, stability: bool) -> None:
    """Draw what a study left in its folder, and print its tables and the names of its files."""
    from drivekd.report.prestudy import draw
    from drivekd.report.stability import draw_stability
    from drivekd.study import tables

    content = json.loads((out / "prestudy.json").read_text(encoding="utf-8"))
    typer.echo(tables.prestudy(content))
    files = [*draw(content, out), out / "prestudy.json", out / "recipe.fragment.yaml"]
    if stability:
        content = json.loads((out / "stability.json").read_text(encoding="utf-8"))
        typer.echo(tables.stability(content))
        files += [*draw_stability(content, out), out / "stability.json"]
    for path in files:
        typer.echo(path)
