"""The verbs that measure answers: `drivekd evaluate` and `drivekd compare`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from drivekd.cli.options import Data, Device, Dtype, Format, MaxSamples, Out, Root, Seed

if TYPE_CHECKING:
    from drivekd.evaluate.answers.who import Who
    from drivekd.evaluate.judging.choice import Judging

EVALUATE = "Example: drivekd evaluate --model out/try/final --data val.jsonl --out out/try/val"
COMPARE = "Example: drivekd compare out/base/val out/try/val"
_FOLDERS = "Folders of evaluations; the first one is what the others are compared with."
_RUNS = "How often all is done: an answer, where answers are drawn, and a verdict."

Model = Annotated[
    str | None,
    typer.Option(
        help="Folder, hub id, world:NAME, or its name on --server; by default none, and "
        "the replies that the data file holds under `pred` are scored."
    ),
]
Server = Annotated[
    str | None, typer.Option(help="Address of an OpenAI-compatible server that answers.")
]
Images = Annotated[
    Literal["real", "black", "grey", "other"],
    typer.Option(help="Or pictures of one colour, or of another scene."),
]
KeyEnv = Annotated[str | None, typer.Option(help="Environment variable that holds the key.")]
System = Annotated[Path | None, typer.Option(help="Text file for the system's turn.")]
Tokens = Annotated[int, typer.Option(min=1, help="Longest reply.")]
Temperature = Annotated[float, typer.Option(min=0, help="0 is greedy, more draws tokens.")]
TopP = Annotated[float, typer.Option(help="Share of the probability that is drawn from.")]
Runs = Annotated[int, typer.Option(min=1, help=_RUNS)]
WithControls = Annotated[bool, typer.Option(help="Also black pictures and the majority.")]
Train = Annotated[
    Path | None, typer.Option(help="Where the majority is counted; by default in --data itself.")
]
JudgeAt = Annotated[
    str | None, typer.Option(help="Address of a chat server, local:MODEL, or scripted.")
]
JudgeModel = Annotated[str | None, typer.Option(help="The judge's name on its server.")]
JudgeTemperature = Annotated[
    float | None, typer.Option(min=0, help="By default 0.2 on a server, 0 locally.")
]
JudgeJson = Annotated[bool, typer.Option("--judge-json", help="Send sheets as JSON schemas.")]
JudgeRuns = Annotated[
    int | None, typer.Option(min=1, help="Verdicts per answer; by default --runs, or 1 if drawn.")
]
Rubric = Annotated[
    Path | None, typer.Option(help="Your prompts of sheets: YAML, or Python that is never run.")
]
Descriptions = Annotated[Path | None, typer.Option(help="DriveBench's visual_description.json.")]
PriceOf = Annotated[
    str | None, typer.Option(metavar="IN,OUT", help="The judge's, per million tokens.")
]
MaxCost = Annotated[float | None, typer.Option(min=0, help="No try that could exceed it.")]
Retry = Annotated[
    bool, typer.Option("--retry-unscored", help="Ask again where no points could be read.")
]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests at a time.")]


def evaluate(
    data: Data,
    out: Out,
    model: Model = None,
    server: Server = None,
    key_env: KeyEnv = None,
    format: Format = "auto",
    root: Root = None,
    images: Images = "real",
    system: System = None,
    max_samples: MaxSamples = None,
    max_new_tokens: Tokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    runs: Runs = 1,
    controls: WithControls = True,
    train: Train = None,
    judge: JudgeAt = None,
    judge_model: JudgeModel = None,
    judge_key_env: KeyEnv = None,
    judge_temperature: JudgeTemperature = None,
    judge_json: JudgeJson = False,
    judge_runs: JudgeRuns = None,
    rubric: Rubric = None,
    descriptions: Descriptions = None,
    price: PriceOf = None,
    max_cost: MaxCost = None,
    retry_unscored: Retry = False,
    concurrency: Concurrency = 8,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Answer the questions of a data file, have the answers judged, and score them.

    An interrupted evaluation continues where it stopped.
    """
    options = dict(locals())
    from drivekd.evaluate import run
    from drivekd.evaluate.answers.asking import Asking
    from drivekd.evaluate.results import table
    from drivekd.report.answers import write_answers

    turn = None if system is None else _text(system)
    if train is not None and not controls:
        raise ValueError("--train is for the controls, which --no-controls leaves out")
    asking = Asking(max_new_tokens, temperature, top_p, seed, runs, turn, images)
    choice = _judging(options)
    questions = run.Questions(data, format, root, max_samples, seed)
    beside = run.Controls(train) if controls else None
    results = run.evaluate(_who(options), questions, out, asking, judging=choice, controls=beside)
    typer.echo(f"{table(results)}\n{write_answers(out)}\n{out / 'scores.json'}")
    if results.missing:
        lacking = f"{results.missing} verdicts are missing"
        raise RuntimeError(f"{lacking}, see above; the same command asks for them again")


def _who(options: Mapping[str, Any]) -> Who:
    from drivekd.evaluate.answers import who

    model, server = options["model"], options["server"]
    if server is not None:
        from drivekd.evaluate.chat import ChatEndpoint

        at_once, key = options["concurrency"], options["key_env"]
        return who.Served(ChatEndpoint(server, model or "", key_env=key, concurrency=at_once))
    if options["key_env"] is not None:
        raise ValueError("--key-env is for a --server; name it, or --judge-key-env for the judge's")
    if model is not None:
        return who.Loaded(model, options["device"], options["dtype"])
    usual = inspect.signature(evaluate).parameters
    for name in _OF_ASKING:
        if options[name] != usual[name].default:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is for a model that answers: name one by --model")
    return who.Predicted(options["data"].name)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a text in UTF-8 ({error})") from None


_OF_ASKING = ("images", "system", "max_new_tokens", "temperature", "top_p", "device", "dtype")
_JUDGE = ("judge_model", "judge_key_env", "judge_temperature", "judge_json")
_SHEETS = ("rubric", "descriptions", "price", "max_cost", "retry_unscored")


def _judging(options: Mapping[str, Any]) -> Judging | None:
    if options["judge"] is None:
        for name in (*_JUDGE, "judge_runs", *_SHEETS):
            if options[name] is not None and options[name] is not False:
                option = f"--{name.replace('_', '-')}"
                raise ValueError(f"{option} is for a judge: name one by --judge, or leave it out")
        return None
    from drivekd.evaluate.judging import choice

    names = ("judge", *_JUDGE, "concurrency", "device")
    judge = choice.judge_of(choice.Wanted(*(options[name] for name in names)))
    runs = options["judge_runs"] or (1 if options["temperature"] else options["runs"])
    return choice.Judging(judge, choice.settings_of(runs, *(options[name] for name in _SHEETS)))


def compare(
    folders: Annotated[list[Path], typer.Argument(help=_FOLDERS)],
    out: Annotated[Path | None, typer.Option("--out", help="A JSON file for the result.")] = None,
    accuracy_only: Annotated[
        bool, typer.Option("--accuracy-only", help="Leave judged scores out.")
    ] = False,
) -> None:
    """Say which model is better, by how much, and whether that is more than noise."""
    from drivekd.evaluate.compare import run

    typer.echo(run(folders, out, judged=not accuracy_only))
