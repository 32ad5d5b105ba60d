"""How much the chat server takes: from one request, and from all of them together."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds; each is at least one.

    Attributes:
        max_batch: requests that run side by side.
        max_waiting: requests beside these that wait, or whose body is being read.
        max_new_tokens: longest answer [tokens].
        max_context: of a conversation and its answer together [tokens]; its memory grows as its
            square.
        max_body_mb: largest request [MB = 10⁶ bytes]; a picture takes 4/3 of its file.
        max_images: pictures of one request.
        max_image_pixels: largest picture [px], width times height.
    """

    max_batch: int = 8
    max_waiting: int = 64
    max_new_tokens: int = 512
    max_context: int = 8192
    max_body_mb: int = 32
    max_images: int = 16
    max_image_pixels: int = 1 << 24

    def __post_init__(self) -> None:
        for field in fields(self):
            if (value := getattr(self, field.name)) < 1:
                raise ValueError(f"{field.name} {value}: expected at least 1")
