"""Other words for the questions of DriveLM and DriveBench, by rules: the answer stays the same."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Rule:
    """A question as the benchmarks ask it, and two other wordings.

    `{a}` and `{b}` stand for object tags, `{side}`, `{things}`, `{be}`, `{deed}` and `{form}` for
    the words of `SLOTS`. Every wording has each of them as often as the question, so that whatever
    tells two questions apart tells their wordings apart, too.

    Attributes:
        asked: the whole question.
        second: the same in other words: a question that is answered by yes or no stays one, who
            does what to whom stays, and what an answer must contain is asked for in full.
        third: once more.
    """

    asked: str
    second: str
    third: str

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """What the whole question must look like."""
        parts = re.split(r"\{(\w+)\}", self.asked)
        return re.compile(
            "".join(
                f"(?P<{part}>{SLOTS[part]})" if i % 2 else re.escape(part)
                for i, part in enumerate(parts)
            )
        )


_TAG = r"<[^<>]{1,120}>"

#: what a rule's placeholder may stand for
SLOTS = {
    "a": _TAG,
    "b": _TAG,
    "side": "(?:front|back)(?: left| right)?",
    "things": "[a-z][a-z ]{1,60}",
    "be": "is|are",
    "deed": "[a-z][a-z ]{1,80}",
    "form": r"[^?]{1,600}",
}

#: options are offered behind a question and stay as they are
_OPTIONS = re.compile(
    r"\s{1,3}Please select the correct answer from the following options:.*", re.DOTALL
)

#: Wordings of the left are facts of DriveLM-nuScenes; the others are ours.
RULES = (
    # perception
    Rule(
        "What is the moving status of object {a}?",
        "Which moving status does object {a} have?",
        "Name the moving status of object {a}.",
    ),
    Rule(
        "What is the observed status of object {a}?",
        "Which status of object {a} is observed?",
        "Name the status that object {a} is seen in.",
    ),
    Rule(
        "What is the visual description of {a}?",
        "What does {a} look like?",
        "Describe the look of {a}.",
    ),
    Rule(
        "What are the important objects in the current scene? Those objects will be considered for "
        "the future reasoning and driving decision.",
        "Which objects in the current scene are important? They will be considered for the future "
        "reasoning and driving decision.",
        "Name the important objects in the current scene, those to be considered for the future "
        "reasoning and driving decision.",
    ),
    Rule(
        "What is the relative positioning of the important objects in the current scene?",
        "How are the important objects in the current scene positioned relative to each other?",
        "Tell where the important objects in the current scene are, relative to one another.",
    ),
    Rule(
        "Which lanes are each important object on in the scene?",
        "On which lane is each important object in the scene?",
        "Name the lane of each important object in the scene.",
    ),
    Rule(
        "Please describe the current scene.",
        "What does the current scene look like?",
        "Give a description of the current scene.",
    ),
    Rule(
        "Is there any traffic element in the front view?",
        "Does the front view show any traffic element?",
        "Can any traffic element be seen in the front view?",
    ),
    Rule(
        "Identify all the traffic elements in the front view, categorize them, determine their "
        "status, and predict the bounding box around each one. {form}",
        "Which traffic elements are in the front view? For all of them give the category, the "
        "status, and the predicted bounding box. {form}",
        "Find every traffic element in the front view and tell its category, its status, and the "
        "bounding box that you predict around it. {form}",
    ),
    Rule(
        "What is the status of the {things} that {be} to the {side} of the ego car?",
        "In which state {be} the {things} to the {side} of the ego car?",
        "Describe the status of the {things} that {be} to the {side} of the ego car.",
    ),
    Rule(
        "What are objects to the {side} of the ego car?",
        "Which objects are to the {side} of the ego car?",
        "Name the objects to the {side} of the ego car.",
    ),
    Rule(
        "Are there {things} to the {side} of the ego car?",
        "Can {things} be found to the {side} of the ego car?",
        "Does the ego car have {things} to its {side}?",
    ),
    # prediction
    Rule(
        "Is {a} a traffic sign or a road barrier?",
        "Is the object {a} a traffic sign or a road barrier?",
        "Does {a} show a traffic sign or a road barrier?",
    ),
    Rule(
        "Are {a} and {b} traffic signs?",
        "Do {a} and {b} show traffic signs?",
        "Are the objects {a} and {b} traffic signs?",
    ),
    Rule(
        "What kind of traffic sign is {a}?",
        "Which type of traffic sign does {a} show?",
        "Name the kind of the traffic sign {a}.",
    ),
    Rule(
        "What does {a} mean?",
        "What is the meaning of {a}?",
        "Tell what {a} means.",
    ),
    Rule(
        "Which object is most likely to be occluded by {a}? Would this object affect the ego "
        "vehicle? Based on this object, what action of the ego vehicle is dangerous?",
        "What object does {a} most likely occlude? Would that object affect the ego vehicle? Based "
        "on that object, which action of the ego vehicle is dangerous?",
        "Name the object that is most likely hidden by {a}. Does this object have an effect on the "
        "ego vehicle? Which action of the ego vehicle is dangerous because of this object?",
    ),
    Rule(
        "Would {a} be in the moving direction of the ego vehicle?",
        "Is {a} going to be in the moving direction of the ego vehicle?",
        "Would the ego vehicle have {a} in its moving direction?",
    ),
    Rule(
        "Will {a} be in the moving direction of {b}?",
        "Is {a} going to be in the moving direction of {b}?",
        "Will {b} have {a} in its moving direction?",
    ),
    Rule(
        "What is the future state of {a}?",
        "In which state will {a} be in the future?",
        "Predict the future state of {a}.",
    ),
    Rule(
        "What object would consider {a} to be most relevant to its decision?",
        "Which object would find {a} the most relevant to its decision?",
        "Name the object to whose decision {a} would be most relevant.",
    ),
    Rule(
        "Except for the ego vehicle, what object would consider {a} to be most relevant to its "
        "decision?",
        "Which object other than the ego vehicle would find {a} the most relevant to its decision?",
        "Name the object, other than the ego vehicle, to whose decision {a} is most relevant.",
    ),
    Rule(
        "In this scenario, what object is most likely to consider {a}?",
        "Which object most likely considers {a} in this scenario?",
        "Name the object that is the most likely one to consider {a} in this scenario.",
    ),
    Rule(
        "Will {a} change its motion state based on {b}?",
        "Is {a} going to change its motion state because of {b}?",
        "Will {b} make {a} change its motion state?",
    ),
    Rule(
        "Would {a} take {b} into account?",
        "Is {a} going to take {b} into account?",
        "Would {b} be taken into account by {a}?",
    ),
    Rule(
        "Based on the observations of {a}, what are possible actions to be taken by {b}? What is "
        "the reason?",
        "What actions can {b} possibly take, based on the observations of {a}? What is the reason?",
        "Given the observations of {a}, name possible actions of {b}, and the reason.",
    ),
    Rule(
        "What object should the ego vehicle notice first when the ego vehicle is getting to the "
        "next possible location? What is the state of the object that is first noticed by the ego "
        "vehicle and what action should the ego vehicle take? What object should the ego vehicle "
        "notice second when the ego vehicle is getting to the next possible location? What is the "
        "state of the object perceived by the ego vehicle as second and what action should the ego "
        "vehicle take? What object should the ego vehicle notice third? What is the state of the "
        "object perceived by the ego vehicle as third and what action should the ego vehicle take?",
        "On its way to the next possible location, which object should the ego vehicle notice "
        "first? In which state is the object noticed first, and which action should the ego "
        "vehicle take? Which object should it notice second on its way to the next possible "
        "location? In which state is the object perceived as second, and which action should the "
        "ego vehicle take? Which object should it notice third? In which state is the object "
        "perceived as third, and which action should the ego vehicle take?",
        "Name the objects that the ego vehicle should notice first, second and third when it is "
        "getting to the next possible location. For the first, for the second and for the third of "
        "them tell the state of the object and the action that the ego vehicle should take.",
    ),
    Rule(
        "Predict the behavior of the ego vehicle.",
        "How will the ego vehicle behave?",
        "Tell what the behavior of the ego vehicle will be.",
    ),
    # planning
    Rule(
        "What actions could the ego vehicle take based on {a}? Why take this action and what's the "
        "probability?",
        "Based on {a}, which actions are open to the ego vehicle? Why take this action and how "
        "probable is it?",
        "Name actions that the ego vehicle could take based on {a}, why it should take this "
        "action, and the probability.",
    ),
    Rule(
        "What actions taken by the ego vehicle can lead to a collision with {a}?",
        "Which actions of the ego vehicle can make it collide with {a}?",
        "Name the actions by which the ego vehicle can cause a collision with {a}.",
    ),
    Rule(
        "Is {a} an object that the ego vehicle should consider in the current scene?",
        "Should the ego vehicle consider the object {a} in the current scene?",
        "Is the object {a} to be considered by the ego vehicle in the current scene?",
    ),
    Rule(
        "Is it necessary for the ego vehicle to take {a} into account?",
        "Does the ego vehicle need to take {a} into account?",
        "Must {a} be taken into account by the ego vehicle?",
    ),
    Rule(
        "In this scenario, what are safe actions to take for the ego vehicle?",
        "Which actions can the ego vehicle safely take in this scenario?",
        "Name actions that are safe for the ego vehicle to take in this scenario.",
    ),
    Rule(
        "In this scenario, what are dangerous actions to take for the ego vehicle?",
        "Which actions would be a danger for the ego vehicle in this scenario?",
        "Name actions that are dangerous for the ego vehicle to take in this scenario.",
    ),
    Rule(
        "What is the probability of colliding with {a} after the ego vehicle {deed}?",
        "After the ego vehicle {deed}, what is the chance of a collision with {a}?",
        "Tell how probable it is that the ego vehicle collides with {a} after it {deed}.",
    ),
    Rule(
        "Based on {a} in this scene, what is the most possible action of the ego vehicle?",
        "Which action of the ego vehicle is the most possible one, based on {a} in this scene?",
        "Name the most possible action of the ego vehicle, given {a} in this scene.",
    ),
    Rule(
        "Based on the observation of {a}, what actions may {b} take?",
        "Which actions may {b} take, based on the observation of {a}?",
        "Given the observation of {a}, name the actions that {b} may take.",
    ),
    Rule(
        "What is the traffic signal that the ego vehicle should pay attention to?",
        "Which traffic signal should the ego vehicle heed?",
        "Name the traffic signal that demands the attention of the ego vehicle.",
    ),
    Rule(
        "What is the target action of the ego vehicle?",
        "Which action is the ego vehicle aiming at?",
        "Name the target action of the ego vehicle.",
    ),
    Rule(
        "What is the priority of the objects that the ego vehicle should consider?(in descending "
        "order)",
        "In which order of priority should the ego vehicle consider the objects?(in descending "
        "order)",
        "Rank the objects that the ego vehicle should consider by priority, in descending order.",
    ),
)


def reworded(question: str) -> tuple[str, ...]:
    """Two other wordings of a question that a rule matches as a whole, () for another question.

    Options that are offered behind it stay as they are. Case and spaces count: what a rule does not
    know is left alone.
    """
    options = _OPTIONS.search(question)
    stem = question[: options.start()] if options else question
    tail = options[0] if options else ""
    for rule in RULES:
        found = rule.pattern.fullmatch(stem)
        if found:
            words = found.groupdict()
            return rule.second.format(**words) + tail, rule.third.format(**words) + tail
    return ()
