"""Recipe files: shipped or the user's own, YAML in, one based on another, dotted overrides."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml


def read(path_or_name: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], str]:
    """The raw keys of a recipe with overrides applied, and the name to call it by in errors.

    A recipe with the key `base`, a shipped recipe's name or a file beside it, is a patch of that
    recipe as RFC 7396 defines one: mappings merge, null removes a key, anything else replaces.

    Raises:
        FileNotFoundError: there is no such file or shipped recipe.
        ValueError: it is no YAML of keys and values, it is based on itself, or an override is none
            of KEY=VALUE.
    """
    raw = _read(str(path_or_name), ())
    for override in overrides:
        _override(raw, override)
    return raw, str(path_or_name)


def _read(name: str, above: tuple[str, ...]) -> dict[str, Any]:
    """The keys of one recipe over those of its base; `above` are the recipes based on it."""
    if name in above:
        raise ValueError(f"{above[0]}: base goes round in a circle: {' → '.join((*above, name))}")
    try:
        raw = yaml.load(_text(name), Loader=_Loader)  # noqa: S506  a SafeLoader, corrected
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{name}: expected keys and values at the top, got {type(raw).__name__}")
    if "base" not in raw:
        return raw
    base = str(raw.pop("base"))
    if _is_file(base):
        base = str(Path(name).parent / base)
    return patched(_read(base, (*above, name)), raw)


def patched(whole: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with a merge patch applied (RFC 7396)."""
    result = dict(whole)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            inner = result.get(key)
            result[key] = patched(inner if isinstance(inner, dict) else {}, value)
        else:
            result[key] = value
    return result


def shipped() -> list[str]:
    """Names of the recipes that come with the package, each of them a run."""
    folder = resources.files("drivekd") / "recipes"
    with resources.as_file(folder) as root:
        names = {p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.yaml")}
    return sorted(name for name in names if not name.startswith(_LAUNCHER))


#: Configurations for `accelerate launch --config_file`.
_LAUNCHER = "accelerate/"


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
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} is no plain word", key_node.start_mark
            )
        if key in mapping:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands twice", key_node.start_mark
            )
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _text(name: str) -> str:
    """The YAML text of a file or a shipped recipe."""
    if _is_file(name):
        path = Path(name)
        if not path.is_file():
            raise FileNotFoundError(f"no recipe file {name}; shipped recipes: {names(shipped())}")
        return path.read_text(encoding="utf-8")
    if name not in shipped():
        close = difflib.get_close_matches(name, shipped(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"shipped recipes: {names(shipped())}"
        raise FileNotFoundError(f"no shipped recipe {name!r}, and no name of a .yaml file; {hint}")
    return (resources.files("drivekd") / "recipes" / f"{name}.yaml").read_text("utf-8")


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
