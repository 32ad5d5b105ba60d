"""The base of every section of a recipe, and its faults in one line with the nearest key."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Part(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str | dict | BaseModel) else value


#: for a tuple of which a recipe may name a single element
OneOrMore = BeforeValidator(_several)


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Write all faults of a recipe, validated against this model, on one line."""
    faults = [_fault(dict(fault), model) for fault in error.errors(include_url=False)]
    return "; ".join(dict.fromkeys(faults))


def _fault(fault: dict[str, Any], model: type[BaseModel]) -> str:
    # Tags such as <file> stand for kinds of a value, not for keys.
    location = [str(key) for key in fault["loc"] if not str(key).startswith("<")]
    # A value that may be one of several types is reported once per type, the type's name last.
    if len(location) > 1 and location[-1] in ("int", "str", "function-after[_layer_spec()"):
        location.pop()
    dotted = ".".join(location)
    if fault["type"] == "extra_forbidden":
        return _unknown_key(tuple(location), model)
    if fault["type"] == "missing":
        return f"the key `{dotted}` is missing"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"`{dotted}`: {message}" if dotted else message
    return f"`{dotted}`: {message[0].lower() + message[1:]}, got {fault['input']!r}{_hint(fault)}"


def _hint(fault: dict[str, Any]) -> str:
    """Suggest the nearest of the few values that a key may have."""
    if fault["type"] != "literal_error":
        return ""
    allowed = re.findall(r"'([^']*)'", fault["ctx"]["expected"])
    close = difflib.get_close_matches(str(fault["input"]), allowed, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _unknown_key(location: tuple[str, ...], model: type[BaseModel]) -> str:
    *parents, key = location
    dotted = ".".join(location)
    siblings = [".".join((*parents, name)) for name in _fields_at(tuple(parents), model)]
    leaves = {path.rsplit(".", 1)[-1]: path for path in siblings}
    close = difflib.get_close_matches(key, leaves, n=1, cutoff=0.6)
    if not close:  # perhaps the right key in the wrong place
        leaves = {path.rsplit(".", 1)[-1]: path for path in _all_keys(model)}
        close = difflib.get_close_matches(key, leaves, n=1, cutoff=0.8)
    hint = f"did you mean `{leaves[close[0]]}`?" if close else f"known: {', '.join(siblings)}"
    return f"unknown key `{dotted}`; {hint}"


def _fields_at(parents: tuple[str, ...], model: type[BaseModel]) -> list[str]:
    """List the keys under a dotted place, in which names given by the user count, too."""
    for key in parents:
        field = model.model_fields.get(key)
        if field is not None:
            model = next(iter(_models(field.annotation)), model)
    return list(model.model_fields)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for argument in get_args(annotation) for inner in _models(argument)]


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """List every key of a model and its parts, dotted; NAME where the user names a row."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        for inner in _models(field.annotation):
            named = "" if field.annotation is inner else "NAME."
            keys += _all_keys(inner, f"{prefix}{name}.{named}")
    return keys
