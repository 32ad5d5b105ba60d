"""Multi-teacher attention distillation of vision-language models for driving.

The public names, once. They are resolved on first use, so that importing the package costs
nothing: `drivekd --help` never waits for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

#: public name → module that defines it
_PUBLIC = {
    "Sample": "drivekd.data.sample",
    "Message": "drivekd.data.sample",
    "read": "drivekd.data.formats.readers",
    "Recipe": "drivekd.recipe",
    "load_recipe": "drivekd.recipe",
    "load": "drivekd.models.vlm",
    "save": "drivekd.models.vlm",
    "generate": "drivekd.models.generate",
    "train": "drivekd.distill.train",
    "ask": "drivekd.demo.ask",
}
_RENAMED = {"load_recipe": "load"}

__all__ = ["__version__", *sorted(_PUBLIC)]  # noqa: PLE0604, RUF100


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'drivekd' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), _RENAMED.get(name, name))


def __dir__() -> list[str]:
    return sorted(__all__)
