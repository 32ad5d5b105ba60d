"""Kinds of questions about a scene, and their wordings, in the manner of DriveBench.

Every answer is short, exact and follows from the scene's ground truth (see `answers`). Which
templates survive, and what a model that never sees the pictures scores on each, is in
docs/world.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drivekd.world import answers
from drivekd.world.answers import Finder
from drivekd.world.scene import Scene
from drivekd.world.sight import ATTRIBUTES, Sighting

NOTHING = "nothing"  # the answer about an empty cell
WORDINGS = (0, 1)  # of the three that a question is drawn from; the others are its paraphrases


@dataclass(frozen=True, slots=True)
class Template:
    """A kind of question: its capability, three wordings (the last is held out), its answer."""

    capability: str
    wordings: tuple[str, str, str]
    find: Finder


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a template with its short exact answer, and its other wordings."""

    template: str
    capability: str
    text: str
    answer: str
    paraphrases: tuple[str, ...]


_FIND: dict[str, Finder] = {
    "colour": answers.colour,
    "kind": answers.kind,
    "status": answers.status_of,
    "weather": answers.weather,
    "road": answers.road,
    "light": answers.light,
    "lead_colour": answers.lead_colour,
    "future": answers.future_of,
    "nearer": answers.nearer,
    "cause": answers.cause,
    "action": answers.action,
    "safe_lane": answers.safe_lane,
    "safe_keep": answers.may("keep speed", 0.5),
    "safe_accelerate": answers.may("accelerate", 0.35),
}
#: capability and name, then three wordings; training never sees the last one as its question
_WORDINGS = """
perception colour
  What is the colour of {0}?
  Which colour does {0} have?
  Name the colour of the object at {0}.
perception kind
  What is {0}?
  What kind of object is {0}?
  Name the category of {0}.
perception status
  What is the moving status of {0}?
  What do the lamps of {0} show?
  Describe the current status of {0}.
perception weather
  What are the weather and light like?
  Under which conditions is the ego vehicle driving?
  Describe the conditions of this drive.
perception road
  What kind of road is this?
  On which type of road is the ego vehicle?
  Name the road type.
perception light
  What does the traffic light show?
  What is the state of the traffic light?
  Name the colour of the traffic light, if there is one.
perception lead_colour
  What is the colour of the vehicle in front of the ego vehicle?
  Which colour does the vehicle ahead in the same lane have?
  Name the colour of the leading vehicle.
reasoning future
  What will {0} do next?
  What is the future motion of {0}?
  Predict the behaviour of {0}.
reasoning nearer
  Which is nearer to the ego vehicle, {0} or {1}? Name its colour.
  What is the colour of the nearer one of {0} and {1}?
  Of {0} and {1}, which colour does the closer one have?
reasoning cause
  What must the ego vehicle react to?
  What is the reason for the ego vehicle to be careful?
  Name what matters most for the ego vehicle's next move.
planning action
  What should the ego vehicle do?
  Which action is best for the ego vehicle?
  Name the safe action for the ego vehicle.
planning safe_lane
  To which side can the ego vehicle change lane safely?
  Which lane change is safe?
  Name the side that is free for a lane change.
planning safe_keep
  Is it safe to keep the speed?
  Can the ego vehicle go on at the same speed?
  May the ego vehicle hold its speed?
planning safe_accelerate
  Is it safe to accelerate?
  Can the ego vehicle speed up?
  May the ego vehicle go faster?
"""


def _templates() -> Iterator[tuple[str, Template]]:
    lines = _WORDINGS.strip().splitlines()
    for head, one, two, three in zip(*(lines[i::4] for i in range(4)), strict=True):
        capability, name = head.split()
        yield name, Template(capability, (one.strip(), two.strip(), three.strip()), _FIND[name])


TEMPLATES = dict(_templates())


def ask(scene: Scene, seen: Sequence[Sighting], seed: int) -> list[Question]:
    """Ask every question that a scene offers, one per template, in the templates' order.

    Each template has a stream of draws of its own: adding or dropping one changes no other's
    questions.
    """
    questions = []
    for name, template in TEMPLATES.items():
        rng = np.random.default_rng([seed, *name.encode()])
        answered = template.find(scene, seen, rng)
        wording = template.wordings[WORDINGS[int(rng.integers(len(WORDINGS)))]]
        if answered is None:
            continue
        answer, objects = answered
        tags = [s.tag(i) for i, s in enumerate(objects, 1)]
        text, *others = (
            words.format(*tags) if "{" in words else words
            for words in (wording, *(w for w in template.wordings if w != wording))
        )
        questions.append(Question(name, template.capability, text, answer, tuple(others)))
    return questions


def ask_about_cells(
    labels: NDArray[np.int8], count: int, rng: np.random.Generator
) -> list[Question]:
    """Draw at most `count` short questions about image cells, most of them about filled ones.

    `colour <r37>` is answered with what fills cell 37. They ground a model that is new, in a file
    of their own beside the scored questions. The last axis of `labels` is that of `sight.cells`.
    """
    flat = labels.reshape(-1, len(ATTRIBUTES))
    said = np.argwhere(flat > 0)
    rng.shuffle(said)
    empty = np.flatnonzero(flat[:, 0] == 0)
    chosen = [(int(cell), int(attribute)) for cell, attribute in said[: count * 7 // 8]]
    chosen += [(int(c), 0) for c in rng.permutation(empty)[: count - count * 7 // 8]]
    questions = []
    for cell, attribute in chosen:
        name, label = list(ATTRIBUTES)[attribute], int(flat[cell, attribute])
        answer = ATTRIBUTES[name][label - 1] if label else NOTHING
        questions.append(Question(f"cell_{name}", "perception", f"{name} <r{cell}>", answer, ()))
    return questions
