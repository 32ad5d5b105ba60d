"""The pre-study of the embedded world's three capability teachers, on validation scenes.

    python benchmarks/prestudy_world.py

Writes out/prestudy/TEACHER, results/prestudy.json and docs/pictures/prestudy.png, the picture of
planning's teacher.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from shutil import copyfile

from provenance import write_result

from drivekd.data.sample import CAPABILITIES
from drivekd.report.prestudy import draw
from drivekd.study.prestudy import run
from drivekd.study.table import table
from drivekd.world.make import make

SCENES = 100
OUT = Path("out/prestudy")
SHOWN = "planning"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=SCENES)
    given = parser.parse_args()
    questions = make(OUT / "world", given.scenes, "val")
    found = {}
    for capability in CAPABILITIES:
        folder = OUT / capability
        content = run(
            f"world:teacher_{capability}", questions, folder, student="world:student_base"
        )
        picture, _ = draw(content, folder)
        print(table(content))
        found[capability] = content
        if capability == SHOWN and given.scenes == SCENES:
            copyfile(picture, Path("docs/pictures/prestudy.png"))
    name = "prestudy" if given.scenes == SCENES else "prestudy_quick"
    print(write_result(name, {"teachers": found}))


if __name__ == "__main__":
    main()
