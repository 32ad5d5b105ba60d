"""The command line: every verb imports what it needs and calls one function."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from drivekd import __version__
from drivekd.cli import deploy, errors, evaluate, study
from drivekd.cli.data import data_app
from drivekd.cli.options import PLAIN, Device, Model, Out, Workers

if TYPE_CHECKING:
    from drivekd.recipe import Recipe

app = typer.Typer(help="Distil driving vision-language models from several teachers.", **PLAIN)
world_app = typer.Typer(help="Make and show scenes of the embedded world.", **PLAIN)
app.add_typer(data_app, name="data")
app.add_typer(world_app, name="world")

Split = Literal["train", "student", "val", "demo", "transfer", "test"]
RecipeName = Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key; may be repeated."),
]


def _version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"drivekd {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Distil driving vision-language models from several teachers."""


@app.command(epilog="Example: drivekd demo --out out/demo")
def demo(
    out: Out = Path("out/demo"),
    max_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps per arm; fewer for a quick look. Below 20 the world is small too, 16 and "
            "8 scenes, in folders of its own: world/student-16 and world/demo-8.",
        ),
    ] = None,
) -> None:
    """Run the main job on the embedded world: distil, compare, report.

    An interrupted run continues where it stopped.
    """
    from drivekd.demo.run import run

    run(out, max_steps)


@world_app.command("make", epilog="Example: drivekd world make --scenes 100 --split train --out w")
def world_make(
    out: Out,
    scenes: Annotated[int, typer.Option(min=1, help="How many scenes.")],
    split: Annotated[Split, typer.Option(help="No two splits share a scene.")] = "train",
    first: Annotated[int, typer.Option(min=0, help="Number of the first scene.")] = 0,
    size: Annotated[int, typer.Option(min=32, help="Side of a picture [px].")] = 96,
    workers: Workers = None,
) -> None:
    """Write pictures, questions and ground truth; scenes already there are kept."""
    from drivekd.world.make import make

    typer.echo(make(out, scenes, split, first=first, size=size, workers=workers))


@world_app.command("show", epilog="Example: drivekd world show w --out w/sheet.png")
def world_show(
    folder: Annotated[Path, typer.Argument(help="Written by drivekd world make.")],
    out: Annotated[Path, typer.Option("--out", help="The PNG file to write.")],
    scenes: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 6,
) -> None:
    """Draw scenes with their tags, and what is asked about them, on one sheet."""
    from drivekd.world.show import show

    typer.echo(show(folder, out, scenes))


@app.command(epilog="Example: drivekd train demo --max-steps 20 --out out/try")
def train(
    recipe: RecipeName,
    changes: Changes = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the results (output_dir).")
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps (train.max_steps).")
    ] = None,
    max_samples: Annotated[
        int | None,
        typer.Option(min=1, help="Use only so many, drawn by the seed (data.max_samples)."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of the same run.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show sizes, layers, steps and memory; load no weights."),
    ] = False,
) -> None:
    """Train a student by a recipe: with teachers, or by plain cross-entropy."""
    given = {"output_dir": out, "train.max_steps": max_steps, "data.max_samples": max_samples}
    resolved = _resolved(recipe, changes, given)
    if dry_run:
        from drivekd.distill.preview import preview, show

        show(preview(resolved))
        return
    from drivekd.distill.saving import summary
    from drivekd.distill.train import train as run

    final = run(resolved, resume=resume)
    _echo_once(f"{summary.text(final)}\n\n{final}")


@app.command(epilog="Example: drivekd cache my_recipe.yaml --out out/targets")
def cache(
    recipe: RecipeName,
    changes: Changes = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the store (cache.dir).")
    ] = None,
) -> None:
    """Store the teachers' attention on a recipe's samples, for runs that then need no teachers.

    An interrupted run continues where it stopped.
    """
    resolved = _resolved(recipe, changes, {"cache.dir": out})
    from drivekd.distill.targets.filling import fill

    _echo_once(str(fill(resolved)))


app.command(epilog=study.PRESTUDY)(study.prestudy)


def _resolved(recipe: str, changes: Sequence[str] | None, given: Mapping[str, Any]) -> Recipe:
    """Load a recipe with all changes; an error comes before torch is loaded."""
    from drivekd.recipe import load

    short = [f"{k}={json.dumps(v, default=str)}" for k, v in given.items() if v is not None]
    return load(recipe, [*(changes or []), *short])


def _echo_once(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # of several processes that torchrun started
        typer.echo(text)


app.command(epilog=evaluate.EVALUATE)(evaluate.evaluate)
app.command(epilog=evaluate.COMPARE)(evaluate.compare)


@app.command(
    epilog="Example: drivekd ask --model world:teacher_perception --image CAM_FRONT=a.png 'What?'"
)
def ask(
    question: Annotated[str, typer.Argument()],
    model: Model,
    image: Annotated[
        list[str], typer.Option(metavar="CAMERA=FILE", help="A picture; may be repeated.")
    ],
    attention: Annotated[
        Path | None, typer.Option(help="Draw where the model looked into this PNG.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Ask one question about some pictures and print the answer."""
    from drivekd.demo.ask import ask as run
    from drivekd.demo.ask import pictures

    typer.echo(run(model, pictures(image), question, attention, device=device))


app.command(epilog=deploy.BENCH)(deploy.bench)
app.command(epilog=deploy.EXPORT)(deploy.export)
app.command(epilog=deploy.SERVE)(deploy.serve)


@app.command(epilog="Example: drivekd report out/demo")
def report(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
) -> None:
    """Write the HTML page of a run, a pre-study or an evaluation and print its path."""
    from drivekd.report.page import write_page

    typer.echo(write_page(run_dir))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its exit code."""
    errors.run(app, list(sys.argv[1:] if arguments is None else arguments))
