"""Recipe files: shipped or the user's own, YAML in, dotted overrides."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml


def read(path_or_name: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], str]:
    """The raw keys of a recipe with overrides applied, and the name to call it by in errors.

    Raises:
        FileNotFoundError: there is no such file or shipped recipe.
        ValueError: it is no YAML of keys and values, or an override is none of KEY=VALUE.
    """
    text, where = _text(path_or_name)
    try:
        raw = yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader with two corrections
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{where}: expected keys and values at the top, got {type(raw).__name__}")
    for override in overrides:
        _override(raw, override)
    return raw, where


def shipped() -> list[str]:
    """Names of the recipes that come with the package, runs all of them."""
    folder = resources.files("drivekd") / "recipes"
    with resources.as_file(folder) as root:
        names = {p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.yaml")}
    return sorted(names - {"world_teachers"})  # a chain of runs with a schema of its own


class _Loader(yaml.SafeLoader):
    """A SafeLoader that reads 5e-5 as a number and refuses a key written twice."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in mapping:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands twice", key_node.start_mark
            )
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def _text(path_or_name: str | Path) -> tuple[str, str]:
    """The YAML text and the name to call it by in errors."""
    name = str(path_or_name)
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise FileNotFoundError(f"no recipe file {name}; shipped recipes: {names(shipped())}")
        return path.read_text(encoding="utf-8"), name
    if name not in shipped():
        close = difflib.get_close_matches(name, shipped(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"shipped recipes: {names(shipped())}"
        raise FileNotFoundError(f"no shipped recipe {name!r}, and no name of a .yaml file; {hint}")
    return (resources.files("drivekd") / "recipes" / f"{name}.yaml").read_text("utf-8"), name


def _override(raw: dict[str, Any], override: str) -> None:
    """Set one dotted key of a nested dictionary, in place."""
    dotted, separator, value = override.partition("=")
    keys = dotted.strip().split(".")
    if not separator or not all(keys):
        raise ValueError(f"override {override!r}: expected KEY=VALUE, e.g. train.max_steps=2")
    part = raw
    for key in keys[:-1]:
        if part.get(key) is None:
            part[key] = {}
        part = part[key]
        if not isinstance(part, dict):
            raise ValueError(f"override {override!r}: {key} holds a value, not further keys")
    try:
        part[keys[-1]] = yaml.load(value, Loader=_Loader)  # noqa: S506
    except yaml.YAMLError:
        raise ValueError(f"override {override!r}: the value is no valid YAML") from None


def names(known: Iterable[str]) -> str:
    """Names for an error."""
    return ", ".join(known) or "none"
