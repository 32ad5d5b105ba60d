"""Who answers in an evaluation: a loaded model, a model on a server, or a file of predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from drivekd.data.sample import Sample
from drivekd.evaluate.answers.answer import Answer
from drivekd.evaluate.answers.answer_file import write_answers
from drivekd.evaluate.answers.asking import Asking, answers, prepared
from drivekd.evaluate.answers.predictions import read_predictions
from drivekd.evaluate.answers.remote import remote_answers
from drivekd.evaluate.chat import ChatEndpoint
from drivekd.models.vlm import Vlm, load


@runtime_checkable
class Who(Protocol):
    """Whoever answers questions.

    Attributes:
        name: for people.
        asked: whether questions are put to it, so that it can be shown other pictures.
        settings: what else an evaluation should record of it.
    """

    @property
    def name(self) -> str: ...

    @property
    def asked(self) -> bool: ...

    @property
    def settings(self) -> Mapping[str, str]: ...

    def answer(self, samples: Sequence[Sample], asking: Asking, out: Path) -> list[Answer]:
        """An answer per sample and run, kept in `out`, continued from it."""


@dataclass(slots=True)
class Loaded:
    """A model in this process, loaded when it is first asked."""

    name: str
    device: str = "cpu"
    dtype: str = "float32"
    asked: bool = True
    _vlm: Vlm | None = field(default=None, repr=False)

    @property
    def settings(self) -> Mapping[str, str]:
        return {"device": self.device, "dtype": self.dtype}

    def answer(self, samples: Sequence[Sample], asking: Asking, out: Path) -> list[Answer]:
        if self._vlm is None:
            dtype = getattr(torch, self.dtype)
            self._vlm = load(self.name, device=self.device, dtype=dtype, answering=True)
        return answers(self._vlm, samples, asking, out)


@dataclass(frozen=True, slots=True)
class Served:
    """A model behind an OpenAI-compatible server."""

    endpoint: ChatEndpoint
    asked: bool = True

    @property
    def name(self) -> str:
        return self.endpoint.model

    @property
    def settings(self) -> Mapping[str, str]:
        return {"server": self.endpoint.url}

    def answer(self, samples: Sequence[Sample], asking: Asking, out: Path) -> list[Answer]:
        return remote_answers(self.endpoint, samples, asking, out)


@dataclass(frozen=True, slots=True)
class Predicted:
    """Replies that the data file holds, under `pred`."""

    name: str
    asked: bool = False

    @property
    def settings(self) -> Mapping[str, str]:
        return {}

    def answer(self, samples: Sequence[Sample], asking: Asking, out: Path) -> list[Answer]:
        replies = read_predictions(prepared(samples, asking))
        write_answers(samples, replies, out, "predictions")
        return replies
