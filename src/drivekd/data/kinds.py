"""The kinds of questions that DriveLM and DriveBench ask, recognised by their wording."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of question, the capability it exercises, and the words that give it away."""

    name: str
    capability: str
    words: str


#: In this order: the first whose words a question holds. Wordings and their sections are facts of
#: DriveLM-nuScenes; names are ours, the mapping of sections to capabilities is Drive-KD's.
KINDS = (
    Kind("moving_status", "perception", "moving status of"),
    Kind("observed_status", "perception", "observed status of"),
    Kind("visual_description", "perception", "visual description of"),
    Kind("important_objects", "perception", "what are the important objects"),
    Kind("relative_position", "perception", "relative positioning of"),
    Kind("describe_scene", "perception", "describe the current scene"),
    Kind("traffic_elements", "perception", "traffic element"),
    Kind("status_around", "perception", "what is the status of"),
    Kind("objects_around", "perception", "what are objects to"),
    Kind("any_around", "perception", "are there "),
    Kind("first_second_third", "reasoning", "notice first"),
    Kind("traffic_signal", "planning", "traffic signal that the ego"),  # before "traffic sign"
    Kind("sign_or_barrier", "reasoning", "traffic sign or a road barrier"),
    Kind("sign", "reasoning", "traffic sign"),
    Kind("occluded", "reasoning", "likely to be occluded by"),
    Kind("moving_direction", "reasoning", "in the moving direction of"),
    Kind("future_state", "reasoning", "future state of"),
    Kind("who_considers", "reasoning", "most relevant to its decision"),
    Kind("who_considers", "reasoning", "most likely to consider"),
    Kind("changes_motion", "reasoning", "change its motion state based on"),
    Kind("actions_of_objects", "reasoning", "possible actions to be taken by"),
    Kind("ego_behavior", "reasoning", "predict the behavior of the ego"),
    Kind("should_consider", "planning", "the ego vehicle should consider in"),
    Kind("should_consider", "planning", "necessary for the ego vehicle to take"),
    Kind("into_account", "reasoning", "into account"),
    Kind("priority", "planning", "priority of the objects"),
    Kind("collision_probability", "planning", "probability of colliding with"),
    Kind("collision_actions", "planning", "lead to a collision"),
    Kind("possible_actions", "planning", "actions could the ego vehicle take"),
    Kind("most_possible_action", "planning", "most possible action of the ego"),
    Kind("safe_actions", "planning", "safe actions to take"),
    Kind("dangerous_actions", "planning", "dangerous actions to take"),
    Kind("target_action", "planning", "target action of the ego"),
)


def kind_of(question: str) -> Kind | None:
    """Return the kind of a question, None for a wording that neither benchmark uses."""
    lowered = question.lower()
    return next((kind for kind in KINDS if kind.words in lowered), None)


def template_of(question: str) -> str | None:
    kind = kind_of(question)
    return None if kind is None else kind.name
