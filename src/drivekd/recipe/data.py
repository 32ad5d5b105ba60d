"""The sections `data` and `cache` of a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from drivekd.recipe.part import Count, OneOrMore, Part, Positive


class HubData(Part):
    """A Hugging Face dataset, read by the package `datasets`; names as in its `load_dataset`.

    Attributes:
        path: ORG/NAME on the hub, or a local folder or file of parquet, arrow or JSON.
        name: its configuration, where it has several.
        split: the part of it.
        streaming: read it as it comes; false: download it into the cache of `datasets` first.
    """

    path: str
    name: str | None = None
    split: str = "train"
    streaming: bool = True

    @property
    def title(self) -> str:
        """Its name in messages."""
        return f"{self.path} ({', '.join(filter(None, (self.name, self.split)))})"


def _kind(value: Any) -> str:
    return "<dataset>" if isinstance(value, dict | HubData) else "<file>"


Source = Annotated[
    Annotated[str, Tag("<file>")] | Annotated[HubData, Tag("<dataset>")], Discriminator(_kind)
]
"""A file, or a dataset; the tags keep errors to the one that was meant."""


def listed(sources: Iterable[str | HubData]) -> str:
    """Name sources in a message."""
    return ", ".join(source if isinstance(source, str) else source.title for source in sources)


class Data(Part):
    """The samples and how batches are made of them.

    Attributes:
        train: files of training samples, any format that `drivekd.read` knows, or
            `HubData` whose rows have such a format.
        eval: the same of samples whose loss is logged, never trained on.
        mixture: shares of capabilities among the questions that are trained on, in any scale, a
            share for each capability that has samples. An epoch still visits as many questions as
            there are; a capability with fewer than its share starts over, one with more goes on in
            the next epoch. Where absent, every question is visited once an epoch [ours].
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

    train: Annotated[tuple[Source, ...], OneOrMore] = ()
    eval: Annotated[tuple[Source, ...], OneOrMore] = ()
    mixture: dict[str, Positive] = Field(default_factory=dict)
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
    exclude_frames: Annotated[tuple[str, ...], OneOrMore] = ()

    @model_validator(mode="after")
    def _mixture_of_questions(self) -> Data:
        if self.mixture and self.pack:
            raise ValueError(
                "mixture draws single questions, but pack puts all questions about the same "
                "pictures into one row, of whatever capability; set pack: false, or leave mixture "
                "out"
            )
        return self


class Cache(Part):
    """The teachers' attention on disk, computed once and read by every later run [ours].

    Attributes:
        dir: folder of the store; none: teachers run in every training.
        dtype: of the stored numbers; `uint8` is scaled by each row's maximum.
        max_gb: largest size [GB] of the store; one that would grow beyond it is not written.
    """

    dir: str | None = None
    dtype: Literal["float16", "uint8", "float32"] = "float16"
    max_gb: Positive = 50.0
