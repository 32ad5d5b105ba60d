"""What may stand under `data` in a recipe."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from drivekd.recipe.part import Count, Part


class Data(Part):
    """Where the samples come from and how they are put into batches.

    Attributes:
        train: files of training samples, any format that `drivekd.data.readers.read` knows.
        eval: files whose loss is logged, never trained on.
        images: the real pictures, or mid-grey ones of the same size (the blind control).
        pack: questions with the identical prefix share one row [ours].
        questions_per_row: at most so many questions of a packed row per visit, drawn anew each
            time; all of them where absent [ours].
        max_scenes: use only so many scenes, drawn by the seed.
        max_samples: use only so many samples, drawn by the seed.
        max_length: most tokens of a sample, visual ones included; a longer one is refused before
            training starts. Where absent, the max_position_embeddings of student and teachers.
        max_images: the same of its pictures; any number where absent.
        max_row_tokens: packed rows that could be longer are cut into several, each of which a batch
            counts as a row; any length where absent [ours].
        root: folder that relative image paths start from, where it is not the file's own.
        mismatch: the negative control: over the image columns every text row is drawn to the
            teacher's attention of another text row that sees the same images; over the text
            columns it is drawn to its own [ours].
        max_image_tokens: most visual tokens of a picture, for student and teachers whose family
            adapts them to its size; a 1600x900 camera would take 1,222 of Qwen2.5-VL's [ours].
        exclude_frames: frame tokens never trained on, such as those of the test set.
    """

    train: tuple[str, ...] = ()
    eval: tuple[str, ...] = ()
    images: Literal["real", "grey"] = "real"
    pack: bool = True
    questions_per_row: Count | None = None
    max_scenes: Count | None = None
    max_samples: Count | None = None
    max_length: Count | None = None
    max_images: Count | None = None
    max_row_tokens: Count | None = None
    root: str | None = None
    mismatch: bool = False
    max_image_tokens: Count = 256
    exclude_frames: tuple[str, ...] = ()

    @field_validator("train", "eval", "exclude_frames", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value
