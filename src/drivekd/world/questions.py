"""The kinds of questions about a scene, and how they are worded, in the manner of DriveBench.

Every answer is short, exact and follows from the scene's ground truth (see `answers`). Which
templates survive, and what a model that never sees the pictures scores on each, is in
docs/world.md.

Source: [ours].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drivekd.data.sample import CAMERAS
from drivekd.world import answers
from drivekd.world.answers import Finder
from drivekd.world.scene import Scene
from drivekd.world.sight import Sighting


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


TEMPLATES: dict[str, Template] = {
    "colour": Template(
        "perception",
        (
            "What is the colour of {0}?",
            "Which colour does {0} have?",
            "Name the colour of the object at {0}.",
        ),
        answers.colour,
    ),
    "kind": Template(
        "perception",
        ("What is {0}?", "What kind of object is {0}?", "Name the category of {0}."),
        answers.kind,
    ),
    "status": Template(
        "perception",
        (
            "What is the moving status of {0}?",
            "What do the lamps of {0} show?",
            "Describe the current status of {0}.",
        ),
        answers.status_of,
    ),
    "weather": Template(
        "perception",
        (
            "What are the weather and light like?",
            "Under which conditions is the ego vehicle driving?",
            "Describe the conditions of this drive.",
        ),
        answers.weather,
    ),
    "road": Template(
        "perception",
        (
            "What kind of road is this?",
            "On which type of road is the ego vehicle?",
            "Name the road type.",
        ),
        answers.road,
    ),
    "light": Template(
        "perception",
        (
            "What does the traffic light show?",
            "What is the state of the traffic light?",
            "Name the colour of the traffic light, if there is one.",
        ),
        answers.light,
    ),
    "lead_colour": Template(
        "perception",
        (
            "What is the colour of the vehicle in front of the ego vehicle?",
            "Which colour does the vehicle ahead in the same lane have?",
            "Name the colour of the leading vehicle.",
        ),
        answers.lead_colour,
    ),
    "future": Template(
        "reasoning",
        (
            "What will {0} do next?",
            "What is the future motion of {0}?",
            "Predict the behaviour of {0}.",
        ),
        answers.future_of,
    ),
    "nearer": Template(
        "reasoning",
        (
            "Which is nearer to the ego vehicle, {0} or {1}? Name its colour.",
            "What is the colour of the nearer one of {0} and {1}?",
            "Of {0} and {1}, which colour does the closer one have?",
        ),
        answers.nearer,
    ),
    "cause": Template(
        "reasoning",
        (
            "What must the ego vehicle react to?",
            "What is the reason for the ego vehicle to be careful?",
            "Name what matters most for the ego vehicle's next move.",
        ),
        answers.cause,
    ),
    "action": Template(
        "planning",
        (
            "What should the ego vehicle do?",
            "Which action is best for the ego vehicle?",
            "Name the safe action for the ego vehicle.",
        ),
        answers.action,
    ),
    "safe_lane": Template(
        "planning",
        (
            "To which side can the ego vehicle change lane safely?",
            "Which lane change is safe?",
            "Name the side that is free for a lane change.",
        ),
        answers.safe_lane,
    ),
    "safe_keep": Template(
        "planning",
        (
            "Is it safe to keep the speed?",
            "Can the ego vehicle go on at the same speed?",
            "May the ego vehicle hold its speed?",
        ),
        answers.may("keep speed", 0.5),
    ),
    "safe_accelerate": Template(
        "planning",
        (
            "Is it safe to accelerate?",
            "Can the ego vehicle speed up?",
            "May the ego vehicle go faster?",
        ),
        answers.may("accelerate", 0.35),
    ),
}


def ask(
    scene: Scene,
    seen: Sequence[Sighting],
    seed: int,
    *,
    wordings: Sequence[int] = (0, 1),
    names: Sequence[str] = tuple(TEMPLATES),
) -> list[Question]:
    """Every question that a scene offers, one per template, in the templates' order.

    Args:
        scene: the ground truth.
        seen: what the cameras show of it.
        seed: of the draws of wordings, and of answers where a scene offers several; each template
            has a stream of its own, so that adding or dropping one changes no other's questions.
        wordings: which of the three wordings to draw from (2 is held out from training).
        names: the templates to ask.
    """
    questions = []
    for name in names:
        template, rng = TEMPLATES[name], np.random.default_rng([seed, *name.encode()])
        found = template.find(scene, seen, rng)
        wording = template.wordings[wordings[int(rng.integers(len(wordings)))]]
        if found is None:
            continue
        answer, objects = found
        tags = [s.tag(i) for i, s in enumerate(objects, 1)]
        text, *others = (
            words.format(*tags) if "{" in words else words
            for words in (wording, *(w for w in template.wordings if w != wording))
        )
        questions.append(Question(name, template.capability, text, answer, tuple(others)))
    return questions


def camera_prefix() -> str:
    """The labelled placeholders that every question of the world begins with."""
    return "".join(f"{camera}: <image>\n" for camera in CAMERAS)
