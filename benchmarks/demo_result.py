"""Keep the figures of a finished `make demo` in results/demo.json.

python benchmarks/demo_result.py    # on the commit that made them
"""

from __future__ import annotations

import json
from pathlib import Path

from provenance import write_result

OUT = Path("out/demo")


def main() -> None:
    summary = json.loads((OUT / "summary.json").read_text(encoding="utf-8"))
    recipe = (OUT / "drivekd" / "recipe.yaml").read_text(encoding="utf-8")
    print(write_result("demo", {**summary, "recipe": recipe}))


if __name__ == "__main__":
    main()
