"""The pre-study of the embedded world's teachers, on validation scenes.

    python benchmarks/prestudy_world.py

Writes out/prestudy/TEACHER, results/prestudy.json and results/stability.json for the three
capability teachers, docs/pictures/prestudy.png and stability.png, the pictures of planning's, and
results/capacity.json: how near the shipped student comes to each of the four teachers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from shutil import copyfile
from typing import Any

from provenance import write_result

from drivekd.data.sample import CAPABILITIES
from drivekd.report.prestudy import draw
from drivekd.report.stability import draw_stability
from drivekd.study import capacity, tables
from drivekd.study.prestudy import run
from drivekd.study.stability import DROP
from drivekd.world.make import make

SCENES = 100
OUT = Path("out/prestudy")
SHOWN = "planning"
STUDENT = "world:student_base"
CANDIDATES = ["world:teacher", *(f"world:teacher_{name}" for name in CAPABILITIES)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=SCENES)
    given = parser.parse_args()
    complete = given.scenes == SCENES
    suffix = "" if complete else "_quick"
    questions = make(OUT / "world", given.scenes, "val")
    studies = {name: study(name, questions, complete) for name in CAPABILITIES}
    for i, name in enumerate(("prestudy", "stability")):
        print(write_result(f"{name}{suffix}", {"teachers": {k: v[i] for k, v in studies.items()}}))
    nearness = capacity.run(capacity.prepare(STUDENT, CANDIDATES, questions), OUT)
    print(tables.capacity(nearness))
    print(write_result(f"capacity{suffix}", nearness))


def study(
    capability: str, questions: Path, complete: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `prestudy.json` and `stability.json` of one teacher hold; their pictures, if shown."""
    folder = OUT / capability
    content = run(f"world:teacher_{capability}", questions, folder, student=STUDENT, drop=DROP)
    steady = json.loads((folder / "stability.json").read_text(encoding="utf-8"))
    print(f"{tables.prestudy(content)}\n{tables.stability(steady)}")
    for picture in (draw(content, folder)[0], draw_stability(steady, folder)[0]):
        if capability == SHOWN and complete:
            copyfile(picture, Path("docs/pictures") / picture.name)
    return content, steady


if __name__ == "__main__":
    main()
