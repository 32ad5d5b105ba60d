"""Verdicts a second without a network, asked and from a full store; the last line is JSON.

python benchmarks/judge.py --answers 3000
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from pathlib import Path

from provenance import write_result

from drivekd.data.sample import Message, Sample
from drivekd.evaluate.answers.answer import answer_of
from drivekd.evaluate.judging.judge import judge_answers
from drivekd.evaluate.judging.judges import ScriptedJudge
from drivekd.evaluate.judging.sheets import SHEETS


def script(prompt: str) -> str:
    mark = re.findall(r'"mark": "(\w+)"', prompt)[-1]
    points = enumerate(SHEETS["planning"].criteria, 1)
    rows = [f"{i}. {criterion.name}: {criterion.points}" for i, criterion in points]
    return "\n".join((mark, *rows, "Total: 100"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=3000)
    count = parser.parse_args().answers
    samples = [
        Sample(
            f"q{i}",
            (
                Message("user", f"What should the ego vehicle do, {i}?"),
                Message("assistant", "Stop."),
            ),
            {},
            capability="planning",
        )
        for i in range(count)
    ]
    answers = [
        answer_of(sample, "Slow down and stop, since a person crosses.") for sample in samples
    ]
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("asked", "kept"):
            started = time.perf_counter()
            verdicts = judge_answers(answers, samples, ScriptedJudge(script), Path(folder))
            rates[f"{name}_per_s"] = round(count / (time.perf_counter() - started), 1)
            assert all(verdict.total == 100 for verdict in verdicts)
    print(write_result("judge", {"verdicts": rates | {"answers": count}}))
    print(json.dumps(rates | {"answers": count}))


if __name__ == "__main__":
    main()
