"""A judge without a model: points by shared words, to try everything around it without cost.

It reads our own sheets only. Its points say how many words an answer shares with its reference, and
nothing about driving: never report them.
"""

from __future__ import annotations

import json
import re
from collections import Counter

from drivekd.data.options import options_of
from drivekd.evaluate.judging.judges import ScriptedJudge
from drivekd.evaluate.reading.metrics import normalise, read_option
from drivekd.evaluate.reading.options import yes_no

_PARTS = re.compile(
    r"\AQuestion:\n(?P<question>.*?)\nReference answer:\n(?P<reference>.*?)\n"
    r"Objects in the scene,.*?"
    r"<<<(?P<fence>[0-9a-f]{16})\n(?P<answer>.*?)\n(?P=fence)>>>",
    re.DOTALL,
)
_MARK = re.compile(r'"mark": "([0-9a-f]+)"')
_CRITERION = re.compile(r"^\d+\. .+ \((\d+) points\): NUMBER$", re.MULTILINE)


def scripted_judge() -> ScriptedJudge:
    return ScriptedJudge(sheet_by_words, name="shared-words")


def sheet_by_words(prompt: str) -> str:
    """A filled sheet, or a sentence where the prompt is none of ours."""
    found, mark = _PARTS.match(prompt), _MARK.findall(prompt)
    if found is None or not mark:
        return "This judge reads the project's own sheets only, the first time they are asked for."
    points = [int(most) for most in _CRITERION.findall(prompt[found.end() :])]
    share = shared_words(found["answer"], found["reference"])
    scores = [float(round(share * most)) for most in points]
    same = _same_choice(found["question"], found["answer"], found["reference"])
    if same is not None:
        scores[0] = float(same * points[0])
    return json.dumps({"mark": mark[-1], "scores": scores, "total": sum(scores)})


def shared_words(answer: str, reference: str) -> float:
    """F1 of the words of both, each as often as it occurs; 1 for the same words."""
    said, wanted = Counter(normalise(answer).split()), Counter(normalise(reference).split())
    total = said.total() + wanted.total()
    return 2 * (said & wanted).total() / total if total else 0.0


def _same_choice(question: str, answer: str, reference: str) -> bool | None:
    """Whether both take the same option, or say the same of yes and no; None for neither."""
    options = dict(options_of(question))
    if options:
        wanted = read_option(reference, options)
        return None if wanted is None else read_option(answer, options) == wanted
    if (wanted := yes_no(reference)) and normalise(reference).startswith(("yes", "no")):
        return yes_no(answer) == wanted
    return None
