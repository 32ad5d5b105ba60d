"""The pre-study of the embedded world's teachers, on validation scenes.

    python benchmarks/prestudy_world.py

Writes out/prestudy/TEACHER and results/prestudy.json for the three capability teachers,
docs/pictures/prestudy.png, the picture of planning's, and results/capacity.json: how near the
shipped student comes to each of the four teachers.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from shutil import copyfile

from provenance import write_result

from drivekd.data.sample import CAPABILITIES
from drivekd.report.prestudy import draw
from drivekd.study import capacity
from drivekd.study.prestudy import run
from drivekd.study.table import table
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
    questions = make(OUT / "world", given.scenes, "val")
    found = {}
    for capability in CAPABILITIES:
        folder = OUT / capability
        content = run(f"world:teacher_{capability}", questions, folder, student=STUDENT)
        picture, _ = draw(content, folder)
        print(table(content))
        found[capability] = content
        if capability == SHOWN and given.scenes == SCENES:
            copyfile(picture, Path("docs/pictures/prestudy.png"))
    nearness = capacity.run(capacity.prepare(STUDENT, CANDIDATES, questions), OUT)
    print(capacity.table(nearness))
    suffix = "" if given.scenes == SCENES else "_quick"
    print(write_result(f"prestudy{suffix}", {"teachers": found}))
    print(write_result(f"capacity{suffix}", nearness))


if __name__ == "__main__":
    main()
