"""Who answers in an evaluation: a loaded model, a model on a server, or a file of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from drivekd.data.sample import Sample
from drivekd.evaluate.answer import Answer
from drivekd.evaluate.answer_file import write_answers
from drivekd.evaluate.asking import Asking, answers
from drivekd.evaluate.chat import ChatEndpoint
from drivekd.evaluate.predictions import read_predictions
from drivekd.evaluate.remote import remote_answers
from drivekd.models.vlm import Vlm, load


@runtime_checkable
class Who(Protocol):
    """Whoever answers questions.

    Attributes:
        name: for people.
        sees: whether it can be shown other pictures, as the black control needs.
    """

    @property
    def name(self) -> str: ...

    @property
    def sees(self) -> bool: ...

    def answer(self, samples: Sequence[Sample], asking: Asking, out: Path) -> list[Answer]:
        """An answer per sample and run, kept in `out`, continued from it."""


@dataclass(slots=True)
class Loaded:
    """A model in this process, loaded when it is first asked."""

    name: str
    device: str = "cpu"
    dtype: str = "float32"
    sees: bool = True
    _vlm: Vlm | None = field(default=None, repr=False)

    def answer(self, samples: Sequence[Sample], asking: Asking, out: Path) -> list[Answer]:
        if self._vlm is None:
            dtype = getattr(torch, self.dtype)
            self._vlm = load(self.name, device=self.device, dtype=dtype, answering=True)
        return answers(self._vlm, samples, asking, out)


@dataclass(frozen=True, slots=True)
class Served:
    """A model behind an OpenAI-compatible server."""

    endpoint: ChatEndpoint
    sees: bool = True

    @property
    def name(self) -> str:
        return f"{self.endpoint.model} at {self.endpoint.url}"

    def answer(self, samples: Sequence[Sample], asking: Asking, out: Path) -> list[Answer]:
        return remote_answers(self.endpoint, samples, asking, out)


@dataclass(frozen=True, slots=True)
class Predicted:
    """Replies that stand in the data file, under `pred`."""

    name: str
    sees: bool = False

    def answer(self, samples: Sequence[Sample], asking: Asking, out: Path) -> list[Answer]:  # noqa: ARG002
        found = read_predictions(samples)
        write_answers(found, out)
        return found
