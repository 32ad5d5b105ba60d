"""A run as data: what a recipe may say, read from YAML and written to it."""

from drivekd.recipe.combine import Combine
from drivekd.recipe.data import Cache, Data
from drivekd.recipe.files import shipped
from drivekd.recipe.recipe import (
    Capability,
    Recipe,
    Signal,
    Weighting,
    load,
    parse,
    to_yaml,
)
from drivekd.recipe.train import Lora, Train

__all__ = [
    "Cache",
    "Capability",
    "Combine",
    "Data",
    "Lora",
    "Recipe",
    "Signal",
    "Train",
    "Weighting",
    "load",
    "parse",
    "shipped",
    "to_yaml",
]
