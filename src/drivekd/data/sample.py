"""One driving question with its images: what readers make, and every other part takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from drivekd.data.tags import Tag, read_tags

CAPABILITIES = ("perception", "reasoning", "planning")

#: nuScenes cameras in the order in which prompts name them (DriveBench's order).
CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_LEFT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)

IMAGE_PLACEHOLDER = "<image>"

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn; user turns hold one `<image>` placeholder per image, where the image belongs."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation about some images.

    Attributes:
        id: unique within its file.
        messages: turns in order; the last one is the answer where there is one.
        images: camera name (or `image_0`, `image_1`, … where unknown) to file, in the order of
            the placeholders.
        capability: the capability that the question exercises; None where nothing assigns one.
        template: the kind of question (`colour`, `safe_action`, …), where the source knows it.
        scene: the token of the drive; samples of one scene are never split over two sets.
        frame: the token of the key frame.
        paraphrases: other wordings of the question, of which the answer is the same.
        source: file (and row) the sample was read from.
        meta: whatever else the source says; never read by training.
    """

    id: str
    messages: tuple[Message, ...]
    images: Mapping[str, Path]
    capability: str | None = None
    template: str | None = None
    scene: str | None = None
    frame: str | None = None
    paraphrases: tuple[str, ...] = ()
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answer(self) -> str | None:
        """The text of the final assistant turn, None for an unanswered question."""
        last = self.messages[-1] if self.messages else None
        return last.content if last is not None and last.role == "assistant" else None

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns up to, not including, the final answer."""
        return self.messages[:-1] if self.answer is not None else self.messages

    @property
    def question(self) -> str:
        """The last user turn without its image placeholders and camera labels' line breaks."""
        turns = [m.content for m in self.messages if m.role == "user"]
        return turns[-1].rsplit(IMAGE_PLACEHOLDER, 1)[-1].strip() if turns else ""

    @property
    def tags(self) -> tuple[Tag, ...]:
        """The object tags of all turns in order, in the source's unit."""
        return tuple([tag for message in self.messages for tag in read_tags(message.content)])
