"""Keep the figures of a finished `make demo` in results/demo.json.

python benchmarks/demo_result.py    # on the commit that made them
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from provenance import write_result

OUT = Path("out/demo")


def main() -> None:
    committed = int(subprocess.check_output(["git", "log", "-1", "--format=%ct"], text=True))
    if (OUT / "drivekd" / "run.json").stat().st_mtime < committed:
        raise SystemExit(f"{OUT} is older than the commit: remove it and run the demo again")
    summary = json.loads((OUT / "summary.json").read_text(encoding="utf-8"))
    recipe = (OUT / "drivekd" / "recipe.yaml").read_text(encoding="utf-8")
    print(write_result("demo", {**summary, "recipe": recipe}))


if __name__ == "__main__":
    main()
