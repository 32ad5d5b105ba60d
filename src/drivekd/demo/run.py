"""The main job in order: world, student runs, controls, scores, attention, report."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivekd.data.sample import CAPABILITIES, Sample
from drivekd.files.workers import side_by_side
from drivekd.files.writing import write_json
from drivekd.recipe import Recipe, load

if TYPE_CHECKING:
    from drivekd.evaluate.score import Scores
    from drivekd.models.images import ImageMode

TRAIN_SCENES, DEMO_SCENES = 200, 120
QUICK_STEPS, QUICK_SCENES = 20, (16, 8)  # fewer steps than that use only so many scenes
TICK = 5.0  # [s] between two notes of the time spent

TRAINED = ("drivekd", "full_everywhere", "ce_only", "blind")  # longest first
SCORED = (*TRAINED, "student_base", "teacher", "teacher_blind")


def arm_recipe(arm: str, output_dir: Path, changes: Sequence[str] = ()) -> Recipe:
    """Load the recipe of an arm: `demo` for `drivekd`, for the others the ablation of that name.

    All share start, steps and data order.
    """
    recipe = "demo" if arm == "drivekd" else f"ablations/{arm}"
    return load(recipe, [*changes, f"name={arm}", f"output_dir={json.dumps(str(output_dir))}"])


def run(out: Path, max_steps: int | None = None) -> Path:
    """Run the demo and return the path of its report; a second call continues an interrupted one.

    Fewer optimizer steps per arm than `QUICK_STEPS` use a smaller world, see `worlds`.
    """
    from drivekd.report.page import write_page

    with timed(out) as seconds:
        summary = _compared(out, max_steps, seconds)
        page = write_page(out)
    _print_table(summary)
    print(f"report: {page}\nmodel:  {out / 'drivekd' / 'final'} (loads in plain transformers)")
    return page


def _compared(out: Path, max_steps: int | None, seconds: Callable[[], float]) -> dict[str, Any]:
    """Make data, train, answer, score, and look at attention."""
    from drivekd.data.formats.readers import read
    from drivekd.world.make import make

    (train, scenes), (test, held_out) = worlds(out, max_steps)
    train_file, demo_file = make(train, scenes, "student"), make(test, held_out, "demo")
    changes = [f"data.train={json.dumps([str(train_file)])}"]
    changes += [f"train.max_steps={max_steps}"] if max_steps is not None else []
    base = load("demo", changes)
    _parallel(_train_arm, [arm_recipe(arm, out / arm, changes) for arm in TRAINED])
    _parallel(_evaluate_arm, [(out, base, demo_file, arm) for arm in SCORED])
    _majority(out, list(read(train_file)), list(read(demo_file)))
    _attention(out, base, list(read(demo_file)))
    _about(out, base)
    return _summary(out, seconds())


def worlds(out: Path, max_steps: int | None) -> tuple[tuple[Path, int], tuple[Path, int]]:
    """Return folder and number of scenes to train on, and of those to answer questions about.

    A quick look has a small world in folders of its own, so that it never rewrites the question
    files of a full run.
    """
    world = out / "world"
    if max_steps is None or max_steps >= QUICK_STEPS:
        return (world / "student", TRAIN_SCENES), (world / "demo", DEMO_SCENES)
    few, fewer = QUICK_SCENES
    return (world / f"student-{few}", few), (world / f"demo-{fewer}", fewer)


@contextmanager
def timed(out: Path) -> Iterator[Callable[[], float]]:
    """Count the wall time [s] of all calls in this folder, interrupted ones too.

    Yields the seconds so far. `seconds.json` is written every `TICK` seconds, so that a call that
    is killed loses no more than that.
    """
    out.mkdir(parents=True, exist_ok=True)
    note, started, done = out / "seconds.json", time.monotonic(), threading.Event()
    try:
        earlier = float(json.loads(note.read_text())["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        earlier = 0.0  # the first call here, or a note not worth an error

    def seconds() -> float:
        return earlier + time.monotonic() - started

    def write() -> None:
        with suppress(OSError):  # a full disk: what fails next says so of a file that matters
            write_json(note, {"seconds": round(seconds(), 1)})

    def tick() -> None:
        while not done.wait(TICK):
            write()

    ticking = threading.Thread(target=tick, daemon=True)
    ticking.start()
    try:
        yield seconds
    finally:
        done.set()
        ticking.join()
        write()


def _parallel(function: Callable[[Any], None], jobs: Sequence[Any]) -> None:
    """Run jobs in as many processes as there are cores, one torch thread each."""
    for _ in side_by_side(function, jobs, min(len(jobs), os.cpu_count() or 1)):
        pass


def _train_arm(recipe: Recipe) -> None:
    from drivekd.distill.train import train

    train(recipe, resume=True)


def model_of(out: Path, base: Recipe, arm: str, capability: str) -> str:
    """Return the model of an arm: a trained one in `out`, the others shipped."""
    if arm == "student_base":
        return base.student
    if arm == "teacher":
        return base.capabilities[capability].teacher
    return "world:teacher_blind" if arm == "teacher_blind" else str(out / arm / "final")


def _evaluate_arm(job: tuple[Path, Recipe, Path, str]) -> None:
    import torch

    from drivekd.data.formats.readers import read
    from drivekd.evaluate.score import write_scores

    out, base, file, arm = job
    torch.set_num_threads(1)
    images: ImageMode = "grey" if arm in ("blind", "teacher_blind") else "real"
    sources = {c: model_of(out, base, arm, c) for c in CAPABILITIES}
    scores = score_team(sources, list(read(file)), images, out / arm)
    write_scores(scores, out / arm / "scores.json")


def score_team(
    sources: Mapping[str, str], samples: Sequence[Sample], images: ImageMode, folder: Path
) -> Scores:
    """Let each capability's model answer its questions into `folder/answers.jsonl`, and score.

    Equal models are loaded once.
    """
    from drivekd.evaluate.answers.asking import Asking, answers
    from drivekd.evaluate.score import score
    from drivekd.models.vlm import load as load_model

    given, parts = [], []
    for i, source in enumerate(dict.fromkeys(sources.values())):
        mine = [s for s in samples if sources[s.capability or ""] == source]
        parts.append(folder / f"answers.{i}.jsonl")
        given += answers(load_model(source), mine, Asking(images=images), parts[-1])
    rows = "".join(part.read_text(encoding="utf-8") for part in parts)
    (folder / "answers.jsonl").write_text(rows, encoding="utf-8")
    return score(given)


def _majority(out: Path, train: Sequence[Sample], test: Sequence[Sample]) -> None:
    from drivekd.evaluate.score import majority, score, write_scores

    write_scores(score(majority(train, test)), out / "majority" / "scores.json")


def _attention(out: Path, base: Recipe, samples: Sequence[Sample]) -> None:
    """Let teacher and students look at the same questions; see `chosen`."""
    import torch

    from drivekd.demo.looking import attention_cases, write_scenes
    from drivekd.models.vlm import load as load_model

    torch.set_num_threads(1)  # maps of tiny models: threads only get in each other's way
    teachers = {c: load_model(model_of(out, base, "teacher", c)) for c in CAPABILITIES}
    models = {arm: load_model(str(out / arm / "final")) for arm in ("ce_only", "drivekd")}
    picked = chosen(samples, verdicts(out / "drivekd" / "answers.jsonl"))
    shown = {s.scene for s in picked[:4]}
    attention_cases({"teacher": teachers, **models}, picked, out / "attention")
    write_scenes([s for s in samples if s.scene in shown], out / "scenes.json")


def _about(out: Path, base: Recipe) -> None:
    """Write the facts that the page shows besides the numbers."""
    facts = {
        "student": base.student,
        "teachers": ", ".join(c.teacher for c in base.capabilities.values()),
        "seed": str(base.seed),
        "combiner": base.combine.combiner,
    }
    commands = [
        {"command": "make demo", "what": "this page"},
        {"command": "drivekd report " + str(out), "what": "the page again, from the same results"},
    ]
    about = {"title": "Drive-KD in the embedded world", "facts": facts, "commands": commands}
    write_json(out / "about.json", about)


def verdicts(path: Path) -> dict[str, bool]:
    """Map the questions of an answers.jsonl, by id, to whether the answer is right."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["id"]: row["correct"] for row in rows}


def chosen(samples: Sequence[Sample], right: Mapping[str, bool]) -> list[Sample]:
    """Choose a question of every template, and of every capability a right and a wrong answer.

    Each is of a scene not used before where there is one. A capability without any right, or any
    wrong, answer has none of that sort.
    """
    picked: list[Sample] = []

    def pick(among: Sequence[Sample]) -> None:
        used = {s.scene for s in picked}
        picked.append(next((s for s in among if s.scene not in used), among[0]))

    for template in dict.fromkeys(s.template for s in samples):
        pick([s for s in samples if s.template == template])
    for capability in CAPABILITIES:
        for verdict in (True, False):
            fits = [s for s in samples if s.capability == capability and right.get(s.id) is verdict]
            if fits and not any(s in fits for s in picked):
                pick(fits)
    return picked


def _summary(out: Path, seconds: float) -> dict[str, Any]:
    """Gather the scores of all arms into `summary.json`."""
    from drivekd.report.results import ARMS as ROWS

    scores, counts = {}, {}
    for arm in (row.key for row in ROWS if row.key in (*SCORED, "majority")):
        scored = json.loads((out / arm / "scores.json").read_text())
        scores[arm] = {c: scored["capabilities"][c]["accuracy"] for c in CAPABILITIES}
        scores[arm]["average"] = scored["average"]["accuracy"]
        counts = {c: scored["capabilities"][c]["n"] for c in CAPABILITIES}
    summary = {"scores": scores, "n": counts, "seconds": seconds}
    write_json(out / "summary.json", summary)
    return summary


def _print_table(summary: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Right answers on held-out demo scenes, percent")
    for column in ("arm", *CAPABILITIES, "average"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm, row in summary["scores"].items():
        table.add_row(arm, *(f"{row[c]:.1f}" for c in (*CAPABILITIES, "average")))
    Console().print(table)
